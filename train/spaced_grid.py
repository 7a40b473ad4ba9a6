"""Latent MIM's non-contiguous grid: patches that lie apart from each other, put together as an ordinary picture."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from kamim_analysis.keypoints._detector import MapDetector
from kamim_analysis.patches import block_mean
from kamim_analysis.shapes import Grid

from .masks import SCORES
from .views import Augmentation

if TYPE_CHECKING:
    from .objectives.latent_mim import LatentMIM


def draw_offsets(grid: Grid, gap: int) -> Int[Tensor, "2 gy gx"]:
    """Where in its cell of patch + gap pixels each patch begins, row and column: whole numbers from 0 to gap - 1, each
    as likely, from torch's global random state.

    The paper (arXiv 2407.15837, section 3) says only that the gap is random; the public code draws from this range, so
    that neighbouring patches are never closer than one pixel. Zeros where there is no gap.
    """
    return torch.randint(0, max(gap, 1), (2, *grid))


def patch_pixels(offsets: Int[Tensor, "2 gy gx"], patch_size: int, gap: int) -> Int[Tensor, " pixels"]:
    """Of each pixel of the assembled picture, in row-major order, its place in the flattened spaced crop."""
    _, rows, columns = offsets.shape
    cell, within = patch_size + gap, torch.arange(patch_size)
    y = (offsets[0] + cell * torch.arange(rows)[:, None])[:, None, :, None] + within[:, None, None]
    x = (offsets[1] + cell * torch.arange(columns))[:, None, :, None] + within
    return (y * (cell * columns) + x).flatten()


def assemble(
    crop: Shaped[Tensor, "*c y x"], pixels: Int[Tensor, " pixels"], grid: Grid, patch_size: int
) -> Shaped[Tensor, "*c s t"]:
    """The patches of a spaced crop side by side: grid x patch size pixels."""
    picked: Tensor = crop.flatten(-2).index_select(-1, pixels)
    picture: Tensor = picked.unflatten(-1, (grid.height * patch_size, grid.width * patch_size))
    return picture


class SpacedView:
    """An augmented crop's patches as an ordinary uint8 `image` [3, S, S], and what hides some of them.

    The crop has gap more pixels for each patch in both directions, so that the encoder and the time of a step are those
    without gap. Keypoints are detected on the crop, before it is cut: the cuts would be corners. Where they weight the
    loss, `density` is theirs in each weight patch.
    """

    def __init__(self, settings: "LatentMIM", augmentation: Augmentation, grid: Grid, patch_size: int) -> None:
        self.settings, self.grid, self.patch_size = settings, grid, patch_size
        self.augment = augmentation.build(grid.height * (patch_size + settings.gap))
        self.strategy, self.amount = settings.strategy(), settings.amount_of(grid)

    def __call__(self, picture: UInt8[ndarray, "y x 3"]) -> dict[str, Tensor]:
        """Crop, flip, cut, mask."""
        crop = self.augment(torch.from_numpy(picture).permute(2, 0, 1))
        pixels = patch_pixels(draw_offsets(self.grid, self.settings.gap), self.patch_size, self.settings.gap)
        image = assemble(crop, pixels, self.grid, self.patch_size)
        drawn = self.strategy.draw(self.grid, self.patch_size, self.amount)
        return {"image": image} | drawn | self._densities(crop, pixels, image)

    def _densities(
        self, crop: UInt8[Tensor, "3 y x"], pixels: Int[Tensor, " pixels"], image: UInt8[Tensor, "3 s t"]
    ) -> dict[str, Float[Tensor, "..."]]:
        settings, ranks = self.settings, self.strategy.scores == "keypoints"
        if not (ranks or settings.keypoint_weights):
            return {}
        density = self._density_of(crop, pixels, image)
        scores = {SCORES: density(self.patch_size).flatten()} if ranks else {}
        return scores | ({"density": density(settings.weight_patch)} if settings.keypoint_weights else {})

    def _density_of(
        self, crop: UInt8[Tensor, "3 y x"], pixels: Int[Tensor, " pixels"], image: UInt8[Tensor, "3 s t"]
    ) -> Callable[[int], Float[Tensor, "gy gx"]]:
        """By a cell's side, the density in each cell of the picture."""
        detector, style = self.settings.detector, self.settings.map_style
        if not isinstance(detector, MapDetector):  # of each cell's own pixels alone
            return lambda cell: torch.from_numpy(detector.density(_channels_last(image), style, cell))
        found = torch.from_numpy(detector.map(_channels_last(crop), style))
        cut = assemble(found, pixels, self.grid, self.patch_size)[None]
        return lambda cell: block_mean(cut, cell)[0]


def _channels_last(picture: UInt8[Tensor, "3 y x"]) -> UInt8[ndarray, "y x 3"]:
    """OpenCV's order; its merge is several times as fast as torch's copy."""
    merged: ndarray = cv2.merge([*picture.numpy()])
    return merged
