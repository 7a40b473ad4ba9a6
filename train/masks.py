"""Masks of a batch, from what each picture's worker drew and from scores."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from kamim_analysis.masking._masking import Masking
from kamim_analysis.models._anatomy import Anatomy
from kamim_analysis.patches import divide
from kamim_analysis.shapes import Grid

from .views import keypoint_density

if TYPE_CHECKING:
    from .objectives._masked import Masked

SCORES = "mask_scores"


class MaskDraws:
    """In a data worker: what the mask of a crop needs, as further entries of its sample.

    The strategy's own draws, and where it ranks by keypoints their density in each patch, `mask_scores` [N].
    """

    def __init__(self, settings: "Masked", grid: Grid, patch_size: int) -> None:
        self.settings, self.grid, self.patch_size = settings, grid, patch_size
        self.strategy, self.amount = settings.strategy(), settings.amount()
        with torch.random.fork_rng(devices=[]):  # what cannot be is refused before any worker starts
            self.strategy.draw(grid, patch_size, self.amount)

    def __call__(self, image: UInt8[Tensor, "3 y x"]) -> dict[str, Tensor]:
        """Draws from torch's global random state."""
        drawn = self.strategy.draw(self.grid, self.patch_size, self.amount)
        if self.strategy.scores == "keypoints":
            detector, style = self.settings.detector, self.settings.map_style
            drawn[SCORES] = keypoint_density(image, detector, style, self.patch_size).flatten()
        return drawn


def draws_for(settings: "Masked", body: Anatomy) -> MaskDraws:
    """The draws for an encoder. SimMIM's units are made of the patches that the mask token replaces; all else chooses
    among those of the last layer, which are scored and predicted (Swin's are eight of the former wide)."""
    if settings.masking == "random_blocks":
        return MaskDraws(settings, divide(body.image_size, body.mask_patch, what="patch size"), body.mask_patch)
    return MaskDraws(settings, body.blocks[-1].grid, body.stride)


def masks_of(
    strategy: Masking, batch: Mapping[str, Tensor], attention: Float[Tensor, "b n"] | None = None
) -> Bool[Tensor, "b gy gx"]:
    """The masks of a batch of samples that `MaskDraws` added to; `attention` where the strategy ranks by it."""
    return strategy.mask(batch, batch.get(SCORES) if strategy.scores == "keypoints" else attention)
