"""Do features stay when a picture is cropped and mirrored? (Wang and Isola, arXiv 2005.10242)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kamim_analysis.encoders import pool

from ._analysis import Analysis, Batch, Findings, Subject, as_array
from ._directions import direction
from .geometry import LEAST, cosine_to_others, of_pairs, ratio_parts

QUESTION = "Do features stay when a picture is cropped and mirrored?"
HOW_TO_READ = "0: they stay; 1, relative to other pictures: a crop is as far from its picture as other pictures are."
SOURCE = "Wang and Isola, arXiv 2005.10242; Chen et al., arXiv 2002.05709"
COST = "one further forward pass a picture"
BY_DEFAULT = False
# SimCLR's random resized crop: share of the area, and ratio of width to height
_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_ATTEMPTS = 10


def squared_distance(one: Float[Tensor, "b d"], other: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    """Squared distance of unit features, 2 - 2 cosine, in [0, 4]: [B, C] and [B, C] -> [B].

    Its mean over pictures and their augmentations is Wang and Isola's alignment (section 4.1.1, exponent 2). It is 0
    for features that have collapsed to a point too, so it says nothing without the distance between pictures. NaN for
    features of zeros, which have no direction.

    >>> squared_distance(torch.eye(2), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    tensor([0., 2.])
    """
    return (direction(one) - direction(other)).square().sum(-1)


def crop_box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop, in pixels, of 8% to 100% of the area and of ratio 3/4 to 4/3.

    Area uniform, ratio uniform in its logarithm, as torchvision's RandomResizedCrop, but of a generator of one's own;
    the whole picture where ten attempts do not fit.
    """
    for _ in range(_ATTEMPTS):
        scale, ratio, down, right = torch.rand(4, generator=generator).tolist()
        area = height * width * (_SCALE[0] + scale * (_SCALE[1] - _SCALE[0]))
        aspect = math.exp(math.log(_RATIO[0]) + ratio * math.log(_RATIO[1] / _RATIO[0]))
        tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < tall <= height and 0 < wide <= width:
            return int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide
    return 0, 0, height, width


def augmented(image: Float[Tensor, "3 y x"], generator: torch.Generator) -> Float[Tensor, "3 y x"]:
    """A picture cropped at random, mirrored in half of the cases, and brought back to its size.

    Colours are left alone: the picture is normalised already, and SimCLR's jitter is defined on pixels in [0, 1].
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    height, width = image.shape[-2:]
    top, left, tall, wide = crop_box(height, width, generator)
    mirrored = bool(torch.rand(1, generator=generator) < 0.5)
    crop: Float[Tensor, "3 y x"] = resized_crop(
        image, top, left, tall, wide, size=[height, width], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return crop.flip(-1) if mirrored else crop


class Alignment(Analysis):
    """Squared distance between the features of a picture and of one crop of it, drawn by (seed, image).

    Features are those that k-NN takes: pooled tokens of the last layer after the final norm.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.add_lists("distance", "features")

    @classmethod
    def unavailable(cls, subject: Subject) -> str | None:
        """Needs a further pass."""
        return "there is no encoder to pass the crops through" if subject.encoder is None else None

    def update(self, batch: Batch) -> None:
        """Crop, pass through the encoder, compare."""
        tokens = self.subject.encoder.forward_features(self._crops(batch))
        features = pool(tokens, self.subject.anatomy, self.subject.pooling)
        self.append("distance", squared_distance(batch.features, features))
        self.append("features", batch.features.float())

    def _crops(self, batch: Batch) -> Tensor:
        crops = []
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            generator = self.subject.generator(index)
            crops.append(augmented(image, generator))
        return torch.stack(crops)

    def compute(self) -> Findings:
        """Rows `alignment`, `distance_to_others` (the same between pictures), and `relative_alignment`, their ratio."""
        findings = Findings("alignment")
        layers = [self.subject.layers]
        distance, features = self.collected("distance").double(), self.collected("features")
        findings.add("alignment", as_array(distance)[:, None], layers)
        if len(features) >= LEAST:
            others = 2 - 2 * of_pairs(cosine_to_others(features))
            findings.add("distance_to_others", as_array(others)[:, None], layers)
            findings.add("relative_alignment", as_array(ratio_parts(distance, others))[:, None], layers)
        return findings
