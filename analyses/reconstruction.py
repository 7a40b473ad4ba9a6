"""Reconstruction of masked pictures: PSNR and SSIM, in a sound protocol and in KAMIM's (its figure 2)."""

from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from kamim_analysis.bootstrap import mean_interval
from kamim_analysis.masking.random_blocks import random_blocks
from kamim_analysis.patches import block_mean
from kamim_analysis.protocol import protocol
from kamim_analysis.reconstruction import masked_l1, mean_colour_l1, pixel_mask
from kamim_analysis.results import Row, rows_of

from ._analysis import Analysis, Batch, Findings, Subject, as_array
from ._keypoint_density import cell_density, has_keypoints, keypoint_maps
from .attention_keypoints import spearman
from .attention_maps import to_pixels

QUESTION = "How well are hidden pixels predicted?"
HOW_TO_READ = "Masked L1 below that of the mean colour: hidden pixels are predicted. PSNR and SSIM: higher is better."
SOURCE = "KAMIM, figure 2 and section 5.1"
COST = "two further forward passes a picture"
BY_DEFAULT = True
_IMAGES = 4
#: side in pixels of the Gaussian window of SSIM, cut off at 3.5 sigma
SSIM_WINDOW = 11
# KAMIM's notebook masks 0.4 of the units, although the models were trained with 0.6
_REFERENCE_RATIO = 0.4


class Quality(NamedTuple):
    """Quality of each image's reconstruction, [B]."""

    psnr_masked: NDArray[np.float64]
    """dB over hidden pixels only, 100 at most, which is that of a perfect prediction; NaN where none is hidden."""
    psnr_pasted: NDArray[np.float64]
    """dB over the whole image with its visible pixels pasted back, 100 at most."""
    ssim_gaussian_masked: NDArray[np.float64]
    """Mean of the SSIM map over hidden pixels, of the pasted image."""
    ssim_gaussian_pasted: NDArray[np.float64]
    """Mean of the SSIM map over the whole pasted image."""


def reconstruction_quality(
    original: Float[np.ndarray, "b y x 3"], prediction: Float[np.ndarray, "b y x 3"], mask: Bool[np.ndarray, "b y x"]
) -> Quality:
    """PSNR and SSIM of predictions [B, H, W, 3], pixels in [0, 1] (predictions are clipped): four numbers, each [B].

    `mask` [B, H, W] is True where hidden. PSNR = -10 log10(mean squared error). SSIM with Gaussian windows (sigma 1.5)
    and population covariance, as in Wang et al. (2004), by scikit-image; NaN for images smaller than its window of 11
    pixels. Per image, so that means and intervals are over images.

    Source: Wang et al., IEEE Transactions on Image Processing 13 (2004); KAMIM, arXiv 2407.13873, section 5.1.

    >>> original = np.full((1, 16, 16, 3), 0.5)
    >>> reconstruction_quality(original, original + 0.1, np.ones((1, 16, 16), bool)).psnr_masked.round(2)
    array([20.])
    """
    from skimage.metrics import structural_similarity

    prediction = prediction.clip(0, 1)
    squared = np.square(original - prediction).mean(-1)
    pasted = np.where(mask[..., None], prediction, original)
    hidden = np.where(mask.any((1, 2)), mask.sum((1, 2)), np.nan)
    maps = np.full(mask.shape, np.nan)
    for i, (a, b) in enumerate(zip(original, pasted, strict=True)):
        if min(mask.shape[1:]) >= SSIM_WINDOW:
            maps[i] = structural_similarity(
                a, b, data_range=1.0, channel_axis=-1, full=True, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False,
            )[1].mean(-1)  # fmt: skip
    total_squared = (squared * mask).sum((1, 2))
    return Quality(
        psnr_masked=_psnr(total_squared / hidden),
        psnr_pasted=_psnr(total_squared / mask[0].size),
        ssim_gaussian_masked=(maps * mask).sum((1, 2)) / hidden,
        ssim_gaussian_pasted=maps.mean((1, 2)),
    )


def _psnr(mean_squared: NDArray[np.floating], peak: float = 1.0) -> NDArray[np.float64]:
    # a perfect prediction would have infinite PSNR and spoil every mean: 100 dB is far beyond 8-bit precision
    return np.asarray(10 * np.log10(peak**2 / np.maximum(mean_squared, peak**2 * 1e-10)), np.float64)


def error_against_density(
    error: Float[Tensor, "b gy gx"], density: Float[Tensor, "b gy gx"], mask: Bool[Tensor, "b gy gx"]
) -> Float[Tensor, "b 2"]:
    """Rank correlation of hidden patches' error with their keypoint density, and with the mirrored one's: [B, 2].

    `spearman` over each image's hidden patches, as many in each image, in [-1, 1]. Above 0: what has keypoints is
    predicted worse than the rest, as fine texture is by any model; KAMIM, whose loss weighs these patches, should come
    out lower than SimMIM on the same pictures and masks. That can also be because the rest is predicted worse: read it
    beside the masked L1. The control, the density mirrored left to right, is `attention_keypoints.against_density`'s.

    >>> error = torch.tensor([[[0.1, 0.3], [0.2, 0.9]]])
    >>> density = torch.tensor([[[0.0, 0.2], [0.1, 0.0]]])
    >>> error_against_density(error, density, torch.tensor([[[True, True], [True, False]]]))
    tensor([[ 1.0000, -0.8660]])
    """

    def hidden(values: Tensor) -> Tensor:
        return values[mask].view(len(mask), -1)

    follows = [spearman(hidden(error), hidden(one)) for one in (density, density.flip(-1))]
    return torch.stack(follows, dim=1)


class Reconstruction(Analysis):
    """Masked L1, PSNR and SSIM of each image under one random mask, drawn by (seed, image).

    And the rank correlation of its patches' errors with their keypoint densities; pictures without a keypoint in the
    hidden part have none and are left out there, the same ones for every model that sees the same pixels and masks.
    """

    FILE: ClassVar[str] = "reconstructions"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.add_lists("l1", "quality", "by_density", "reference_error", "reference_range", "reference_ssim", "shown")

    @classmethod
    def unavailable(cls, subject: Subject) -> str | None:
        """Needs the head of pretraining."""
        return "its weights hold no mask token and head" if subject.masked_model is None else None

    def update(self, batch: Batch) -> None:
        """Mask, predict, compare."""
        original, (mask, hidden) = batch.images, self._masks(batch, self.subject.masking.ratio)
        prediction = self._predict(original, mask)
        pairs = zip(prediction.split(1), original.split(1), hidden.split(1), strict=True)
        l1 = [(masked_l1(p, o, h), mean_colour_l1(o, h)) for p, o, h in pairs]
        self.append("l1", torch.tensor(l1))
        quality = reconstruction_quality(self._unit(original), self._unit(prediction), hidden.cpu().numpy())
        self.append("quality", torch.from_numpy(np.stack(quality, axis=1)))
        self.append("by_density", self._by_density(original, prediction, mask, hidden))
        room = _IMAGES - self.count("shown")
        if room > 0:
            gray = torch.zeros_like(original)
            masked = torch.where(hidden[:, None], gray, original)
            pasted = torch.where(hidden[:, None], prediction, original)
            rows = [to_pixels(images[:room], self.subject) for images in (original, masked, prediction, pasted)]
            self.append("shown", torch.stack(rows, dim=1))
        self._update_reference(batch)

    def _by_density(self, original: Tensor, prediction: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """`error_against_density` of the images that have keypoints where they are hidden, [images, 2]."""
        maps = keypoint_maps(original, self.subject)
        rows, columns = mask.shape[1:]
        density = cell_density(maps, (rows, columns)).view(-1, rows, columns).to(mask.device)
        error = block_mean((prediction - original).abs().mean(1), self.subject.anatomy.mask_patch)
        # one patch follows nothing
        usable = has_keypoints(maps, hidden.cpu()) & (mask.sum((1, 2)) > 1).cpu()
        return error_against_density(error, density, mask)[usable.to(mask.device)]

    def _update_reference(self, batch: Batch) -> None:
        """KAMIM's notebook: normalised pixels, unclipped, the whole prediction, the data range of each batch."""
        from torchmetrics.functional.image import structural_similarity_index_measure

        original = batch.images
        prediction = self._predict(original, self._masks(batch, _REFERENCE_RATIO)[0])
        self.append("reference_error", (prediction - original).double().square().mean((1, 2, 3)))
        self.append("reference_range", (original.amax() - original.amin()).expand(len(original)))
        # torchmetrics' own choice where none is given: the greater range of the two
        span = max(float(prediction.amax() - prediction.amin()), float(original.amax() - original.amin()))
        span = span or 1.0  # without any range torchmetrics would divide by zero
        ssim = original.new_full((len(original),), torch.nan)
        if min(original.shape[-2:]) >= SSIM_WINDOW:
            found = structural_similarity_index_measure(prediction, original, data_range=span, reduction="none")
            ssim = cast(Tensor, found).reshape(-1)
        self.append("reference_ssim", ssim)

    def _masks(self, batch: Batch, ratio: float) -> tuple[Tensor, Tensor]:
        """Each image's mask over patches and over pixels."""
        body, unit = self.subject.anatomy, self.subject.masking.unit
        masks = []
        for index in batch.indices.tolist():
            generator = self.subject.generator(index)
            masks.append(
                random_blocks(body.image_size, unit=unit, ratio=ratio, patch_size=body.mask_patch, generator=generator)
            )
        mask = torch.stack(masks).to(batch.images.device)
        return mask, pixel_mask(mask, body.mask_patch)

    def _predict(self, images: Tensor, mask: Tensor) -> Tensor:
        assert self.subject.masked_model is not None
        prediction: Tensor = self.subject.masked_model(images, mask)
        return prediction.float()

    def _unit(self, images: Tensor) -> NDArray[np.float64]:
        """Normalised images as pixels in [0, 1], [B, H, W, 3]."""
        mean, std = np.array(self.subject.mean), np.array(self.subject.std)
        return np.asarray(images.permute(0, 2, 3, 1).double().cpu().numpy() * std + mean)

    def compute(self) -> Findings:
        """Rows for both protocols; array `pixels` [images, 4, H, W, 3]: original, masked, predicted, pasted."""
        findings = Findings("reconstruction", {"pixels": self.collected("shown")[:_IMAGES].numpy()})
        l1, quality = as_array(self.collected("l1")), as_array(self.collected("quality"))
        ratio = self.subject.masking.ratio
        findings.protocol = self._protocol(ratio, "normalised")
        for i, name in enumerate(("masked_l1", "mean_colour_l1")):
            findings.add(name, l1[:, i : i + 1], [None])
        self._add_by_density(findings)
        findings.protocol = self._protocol(ratio, "in [0, 1]")
        for i, name in enumerate(Quality._fields):
            findings.add(name, quality[:, i : i + 1], [None])
        findings.protocol = self._protocol(_REFERENCE_RATIO, "normalised, visible ones predicted too, range by batch")
        self._add_reference(findings)
        return findings

    def _protocol(self, ratio: float, pixels: str) -> str:
        """What the numbers depend on besides the model."""
        height, width = self.subject.anatomy.image_size
        return protocol(
            evaluation="reconstruction",
            resolution=height if height == width else f"{height} x {width}",
            test=self.count("l1"),
            seeds=1,
            mask_ratio=ratio,
            mask_unit=self.subject.masking.unit,
            pixels=pixels,
        )

    def _add_by_density(self, findings: Findings) -> None:
        """Rows `error_keypoint_spearman`, its `_control`, and `_excess`, the difference; none without a keypoint."""
        follows, control = as_array(self.collected("by_density")).T
        name = "error_keypoint_spearman"
        if len(follows):
            findings.add(name, follows[:, None], [None])
            findings.rows += rows_of(
                findings.analysis, f"{name}_control", control[:, None], layers=[None], protocol=findings.protocol
            )
            findings.add(f"{name}_excess", (follows - control)[:, None], [None])

    def _add_reference(self, findings: Findings) -> None:
        """PSNR pooled as torchmetrics does: of the mean squared error over all images, so the interval is of that.

        No row of it where all pictures are of one colour: there is no range then to measure the error by.
        """
        error = as_array(self.collected("reference_error"))
        peak = float(as_array(self.collected("reference_range")).mean())
        if peak > 0:
            mean, low, high = mean_interval(error[:, None])
            value, best, worst = (float(_psnr(number, peak)[0]) for number in (mean, low, high))
            row = Row("reconstruction", None, None, "psnr_reference", value, worst, best, len(error), findings.protocol)
            findings.rows.append(row)
        findings.add("ssim_reference", as_array(self.collected("reference_ssim"))[:, None], [None])
