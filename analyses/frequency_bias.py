"""Which spatial frequencies of a picture features rest on: k-NN on low-pass and high-pass filtered pictures."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from kamim_analysis.bootstrap import mean_interval
from kamim_analysis.encoders import pool
from kamim_analysis.shapes import Size

from ._analysis import Analysis, Batch, Findings, Subject, as_array
from .attention_maps import to_pixels
from .knn import KS, knn_predicted, subject_protocol

QUESTION = "Do features rest on coarse shapes or on fine detail of a picture?"
HOW_TO_READ = (
    "Accuracy that stays when only frequencies above a cut-off are left rests on fine detail; accuracy that stays when "
    "only those below it are left rests on coarse shapes and colours."
)
SOURCE = "Wang et al., arXiv 1905.13545; Park et al., arXiv 2305.00729"
COST = "a further forward pass a picture for each filter: 12 at 224 px"
BY_DEFAULT = False
#: the number of neighbours that the papers quote
_USUAL_K = 20


def cut_offs(size: tuple[int, int]) -> list[int]:
    """Cut-offs in cycles per picture: powers of two from 2 to below Nyquist's frequency, half the shorter side.

    In cycles per picture, rather than parts of Nyquist's frequency, a cut-off leaves the same of a picture for models
    of any resolution, so that they can be compared. As a fraction of Nyquist's frequency it is cycles / (side / 2).

    >>> cut_offs((224, 224)), cut_offs((64, 96))
    ([2, 4, 8, 16, 32, 64], [2, 4, 8, 16])
    """
    return [2**i for i in range(1, min(size).bit_length()) if 2 * 2**i < min(size)]


def radius(size: Size, device: torch.device | None = None) -> Float[Tensor, "y half"]:
    """Frequency of each coefficient of `rfft2`, in cycles per picture along its shorter side: [H, W // 2 + 1].

    sqrt(f_y^2 + f_x^2) with both in cycles per pixel, times the shorter side; of a square picture the distance from DC
    in the spectrum. Beyond Nyquist's frequency, in the corners, there are diagonal waves up to its sqrt(2)-fold.

    >>> radius(Size(4, 4))[1]
    tensor([1.0000, 1.4142, 2.2361], dtype=torch.float64)
    """
    side = min(size)
    y = torch.fft.fftfreq(size.height, 1 / size.height, dtype=torch.float64, device=device) * (side / size.height)
    x = torch.fft.rfftfreq(size.width, 1 / size.width, dtype=torch.float64, device=device) * (side / size.width)
    return torch.hypot(y[:, None], x)


def low_pass(images: Float[Tensor, "b 3 y x"], cycles: int | float) -> Float[Tensor, "b 3 y x"]:
    """What is left of pictures up to a cut-off, in cycles per picture: [B, 3, H, W] -> [B, 3, H, W].

    The mask in the Fourier domain is sharp and radial, as in Wang et al. (arXiv 1905.13545, section 3): a smooth one
    would leave some of what it is said to remove, which is just what a network may use, while this one parts a picture
    without rest or overlap, `low_pass + high_pass - mean = picture`. Its price is ringing at strong edges. The Fourier
    transform takes the picture for a tile that repeats, so where opposite borders differ there is an edge more.

    Values are not clipped to the range of colours, which would bring high frequencies back. Pictures may be normalised:
    filters keep the mean colour, so that to normalise and to filter is the same in either order.

    >>> picture = torch.tensor([2.0, 1, 0, 1, 2, 1, 0, 1]).expand(1, 3, 8, 8)  # two cycles
    >>> low_pass(picture, 1)[0, 0, 0].round(decimals=4), low_pass(picture, 2)[0, 0, 0].round(decimals=4).abs()
    (tensor([1., 1., 1., 1., 1., 1., 1., 1.]), tensor([2., 1., 0., 1., 2., 1., 0., 1.]))
    """
    size = Size(*images.shape[-2:])
    kept = radius(size, images.device) <= cycles
    # contiguous: the Fourier transform of torch 2.7 with MKL refuses a picture that was expanded
    spectrum = torch.fft.rfft2(images.float().contiguous())
    filtered: Float[Tensor, "b 3 y x"] = torch.fft.irfft2(spectrum * kept, s=size)
    return filtered.to(images.dtype)


def high_pass(images: Float[Tensor, "b 3 y x"], cycles: int | float) -> Float[Tensor, "b 3 y x"]:
    """What is left of pictures beyond a cut-off, in cycles per picture, on their mean colour: [B, 3, H, W].

    See `low_pass`. The mean colour stays: without it a picture would be the mean of the training data plus detail, or
    black where pixels are not normalised, and a model would fail for never having seen such pictures. Contrast is not
    restored: fine detail is faint in photographs, and accuracy says what a model makes of it at the strength it has.

    >>> picture = torch.tensor([2.0, 1, 0, 1, 2, 1, 0, 1]).expand(1, 3, 8, 8)  # two cycles
    >>> high_pass(picture, 2)[0, 0, 0].round(decimals=4), high_pass(picture, 1)[0, 0, 0].round(decimals=4).abs()
    (tensor([1., 1., 1., 1., 1., 1., 1., 1.]), tensor([2., 1., 0., 1., 2., 1., 0., 1.]))
    """
    return images - low_pass(images, cycles) + images.mean((-2, -1), keepdim=True)


_FILTERS: dict[str, Callable[[Tensor, int], Tensor]] = {"low_pass": low_pass, "high_pass": high_pass}


def share_of_variance(filtered: Float[Tensor, "b 3 y x"], images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, " b"]:
    """How much of pictures' variance over pixels a filter leaves, over all colours, in [0, 1]: [B]; 1 of plain ones."""
    left, whole = (part.float().var((-2, -1), correction=0).sum(1) for part in (filtered, images))
    return torch.where(whole > 0, left / whole, 1.0).clamp(0, 1)


class FrequencyBias(Analysis):
    """k-NN accuracy of filtered pictures among unfiltered ones.

    Neighbours are training pictures where there are any, else all other analysed pictures; a filtered picture's own
    unfiltered version is no neighbour. Features are those that `knn` takes, so the accuracy of unfiltered pictures is
    its number. A feature is kept of each picture and filter, in single precision: 13 of 768 channels are 40 kB a
    picture of 224 px, 2 GB for 50,000. Votes are counted in the end, since only then are all neighbours there.
    """

    FILE: ClassVar[str] = "frequency"
    WANTS_BANK: ClassVar[bool] = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.cut_offs = cut_offs(subject.anatomy.image_size)
        self.add_lists("features", "labels", "bank_features", "bank_labels", "left", "pixels", *self._filters())

    def _filters(self) -> list[str]:
        """Names of the filters and of their states: low-pass, then high-pass, by cut-off."""
        return [f"{kind}_{cycles}" for kind in _FILTERS for cycles in self.cut_offs]

    @classmethod
    def unavailable(cls, subject: Subject) -> str | None:
        """Needs two classes, pictures that a filter can part, and further passes."""
        if subject.classes == 1:
            return "the data have a single class"
        if not cut_offs(subject.anatomy.image_size):
            return "its pictures are too small to be filtered"
        return "there is no encoder to pass filtered pictures through" if subject.encoder is None else None

    def _filtered(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name of each filter, and what it leaves of pictures."""
        for kind, passed in _FILTERS.items():
            for cycles in self.cut_offs:
                yield f"{kind}_{cycles}", passed(images, cycles)

    def update(self, batch: Batch) -> None:
        """Filter, pass through the encoder, keep a feature of each filter."""
        self.append("features", batch.features.float())
        self.append("labels", batch.labels)
        for name, filtered in self._filtered(batch.images):
            tokens = self.subject.encoder.forward_features(filtered)
            self.append(name, pool(tokens, self.subject.anatomy, self.subject.pooling).float())
        low = (low_pass(batch.images, cycles) for cycles in self.cut_offs)
        self.append("left", torch.stack([share_of_variance(part, batch.images) for part in low], dim=1))
        if not self.count("pixels"):
            shown = [batch.images[:1], *(filtered for _, filtered in self._filtered(batch.images[:1]))]
            self.append("pixels", to_pixels(torch.cat(shown), self.subject)[None])

    def update_bank(self, features: Float[Tensor, "b d"], labels: Int64[Tensor, " b"]) -> None:
        """Keep one vector for each training image."""
        self.append("bank_features", features.float())
        self.append("bank_labels", labels)

    def compute(self) -> Findings:
        """Rows `top1_unfiltered`, `top1_low_pass_{cycles}` and `top1_high_pass_{cycles}`, accuracy in [0, 1].

        Arrays: `cycles` [cut-offs], in cycles per picture, and `nyquist` [cut-offs], the same as fractions of Nyquist's
        frequency; `low_pass_variance` [3, cut-offs], the share of the pictures' variance that the low-pass leaves (the
        high-pass leaves the rest), mean, low and high end of its interval; `k`, the number of neighbours, 20 or as
        `knn` takes where there are fewer; `majority`, the accuracy of always naming the neighbours' commonest class;
        `pixels` uint8 [1 + filters, H, W, 3], the first picture unfiltered, low-pass by cut-off, high-pass by cut-off,
        clipped to the range of colours.
        """
        findings = Findings("frequency_bias")
        labels, leave_one_out = self.collected("labels"), not self.count("bank_features")
        bank = self.collected("features" if leave_one_out else "bank_features")
        bank_labels = labels if leave_one_out else self.collected("bank_labels")
        k = max((k for k in KS if k <= min(_USUAL_K, len(bank) - leave_one_out)), default=0)
        if not k or len(bank_labels.unique()) < 2:
            findings.absent = "the pictures that can be neighbours are of one class" if k else "no neighbours"
            return findings
        findings.protocol = subject_protocol(self.subject, test=len(labels), train=None if leave_one_out else len(bank))
        for state in ("features", *self._filters()):
            predicted = knn_predicted(self.collected(state), bank, bank_labels, [k], leave_one_out=leave_one_out)[k]
            name = "unfiltered" if state == "features" else state
            findings.add(f"top1_{name}", (predicted == labels).numpy()[:, None], [self.subject.layers])
        findings.arrays.update(self._about_filters())
        commonest = int(bank_labels.bincount().argmax())
        findings.arrays.update(k=np.array(k), majority=as_array((labels == commonest).double().mean()))
        return findings

    def _about_filters(self) -> dict[str, NDArray[Any]]:
        """What the filters left of the pictures."""
        nyquist = min(self.subject.anatomy.image_size) / 2
        return {
            "cycles": np.array(self.cut_offs),
            "nyquist": np.array(self.cut_offs) / nyquist,
            "low_pass_variance": np.stack(mean_interval(as_array(self.collected("left")))),
            "pixels": self.collected("pixels")[0].numpy(),
        }
