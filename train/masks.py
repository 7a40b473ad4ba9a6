"""Masks of a batch, from what each picture's worker drew and from scores."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from kamim_analysis.masking._masking import Masking
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
        self.strategy.draw(grid, patch_size, self.amount)  # what cannot be is refused before any worker starts

    def __call__(self, image: UInt8[Tensor, "3 y x"]) -> dict[str, Tensor]:
        """Draws from torch's global random state."""
        drawn = self.strategy.draw(self.grid, self.patch_size, self.amount)
        if self.strategy.scores == "keypoints":
            detector, style = self.settings.detector, self.settings.map_style
            drawn[SCORES] = keypoint_density(image, detector, style, self.patch_size).flatten()
        return drawn


def masks_of(
    strategy: Masking, batch: Mapping[str, Tensor], attention: Float[Tensor, "b n"] | None = None
) -> Bool[Tensor, "b gy gx"]:
    """The masks of a batch of samples that `MaskDraws` added to; `attention` where the strategy ranks by it."""
    return strategy.mask(batch, batch.get(SCORES) if strategy.scores == "keypoints" else attention)
