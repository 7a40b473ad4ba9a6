"""Latent MIM's non-contiguous grid: patches that lie apart from each other, put together as an ordinary picture."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from kamim_analysis.keypoints._detector import MapDetector
from kamim_analysis.patches import block_mean
from kamim_analysis.shapes import Grid

from .masks import SCORES
from .views import Augmentation, CropView, keypoint_density

if TYPE_CHECKING:
    from .objectives.latent_mim import LatentMIM


def draw_offsets(grid: Grid, gap: int) -> Int[Tensor, "2 gy gx"]:
    """Where in its cell of patch + gap pixels each patch begins, row and column: whole numbers from 0 to gap - 1, each
    as likely, from torch's global random state.

    The paper (arXiv 2407.15837, section 3) says only that the gap is random; the public code draws from this range, so
    that neighbouring patches are never closer than one pixel. Zeros where there is no gap.
    """
    return torch.randint(0, max(gap, 1), (2, *grid))


def patch_pixels(offsets: Int[Tensor, "*b 2 gy gx"], patch_size: int, gap: int) -> Int[Tensor, "*b pixels"]:
    """Of each pixel of the assembled picture, in row-major order, its place in the flattened spaced crop."""
    rows, columns = offsets.shape[-2:]
    cell, within = patch_size + gap, torch.arange(patch_size, device=offsets.device)
    down, across = offsets.unbind(-3)
    y = down + cell * torch.arange(rows, device=offsets.device)[:, None]
    x = across + cell * torch.arange(columns, device=offsets.device)
    # rows of patches, rows within, columns of patches, columns within
    y, x = y[..., :, None, :, None] + within[:, None, None], x[..., :, None, :, None] + within
    return (y * (cell * columns) + x).flatten(-4)


def assemble(
    crop: Shaped[Tensor, "*c y x"], pixels: Int[Tensor, "*p pixels"], grid: Grid, patch_size: int
) -> Shaped[Tensor, "*c s t"]:
    """The patches of a spaced crop side by side: grid x patch size pixels; of a batch, each by pixels of its own."""
    shared = [1] * (crop.ndim - 1 - pixels.ndim)  # axes over which an image's pixels are the same, such as colours
    picked = crop.flatten(-2).take_along_dim(pixels.view(*pixels.shape[:-1], *shared, -1), -1)
    picture: Tensor = picked.unflatten(-1, (grid.height * patch_size, grid.width * patch_size))
    return picture


class SpacedView(CropView):
    """An augmented crop's patches as an ordinary uint8 `image` [3, S, S], and what hides some of them.

    The crop has gap more pixels for each patch in both directions, so that the encoder and the time of a step are those
    without gap; where its patches lie are the `offsets` [2, h, w]. Keypoints are detected on the crop, before it is
    cut: the cuts would be corners. Where they weight the loss, `density` is theirs in each weight patch.
    """

    def __init__(self, settings: "LatentMIM", augmentation: Augmentation, grid: Grid, patch_size: int) -> None:
        super().__init__(augmentation.crop(grid.height * (patch_size + settings.gap)))
        self.settings, self.grid, self.patch_size = settings, grid, patch_size
        self.strategy, self.amount = settings.strategy(), settings.amount_of(grid)

    def draw(self) -> dict[str, Tensor]:
        """Where the patches lie, and which are hidden."""
        offsets = draw_offsets(self.grid, self.settings.gap)
        return {"offsets": offsets} | self.strategy.draw(self.grid, self.patch_size, self.amount)

    def measure(self, cropped: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The crop cut into patches, and the densities that are asked for."""
        crop, pixels = cropped["image"], patch_pixels(cropped["offsets"], self.patch_size, self.settings.gap)
        image = assemble(crop, pixels, self.grid, self.patch_size)
        return {"image": image} | self._densities(crop, pixels, image)

    def _densities(
        self, crop: UInt8[Tensor, "*b 3 y x"], pixels: Int[Tensor, "*b pixels"], image: UInt8[Tensor, "*b 3 s t"]
    ) -> dict[str, Float[Tensor, "..."]]:
        settings, ranks = self.settings, self.strategy.scores == "keypoints"
        if not (ranks or settings.keypoint_weights):
            return {}
        density = self._density_of(crop, pixels, image)
        scores = {SCORES: density(self.patch_size).flatten(-2)} if ranks else {}
        return scores | ({"density": density(settings.weight_patch)} if settings.keypoint_weights else {})

    def _density_of(
        self, crop: UInt8[Tensor, "*b 3 y x"], pixels: Int[Tensor, "*b pixels"], image: UInt8[Tensor, "*b 3 s t"]
    ) -> Callable[[int], Float[Tensor, "*b gy gx"]]:
        """By a cell's side, the density in each cell of the picture."""
        detector, style = self.settings.detector, self.settings.map_style
        if not isinstance(detector, MapDetector):  # of each cell's own pixels alone
            return lambda cell: keypoint_density(image, detector, style, cell)
        found = keypoint_density(crop, detector, style, 1)  # of single pixels: the map itself
        cut = assemble(found, pixels, self.grid, self.patch_size)

        def density(cell: int) -> Float[Tensor, "*b gy gx"]:
            means = block_mean(cut.reshape(-1, *cut.shape[-2:]), cell)
            return means.reshape(*cut.shape[:-2], *means.shape[1:])

        return density
