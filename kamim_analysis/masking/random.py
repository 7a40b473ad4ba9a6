"""Patches hidden at random, each for itself (iBOT's `rand`, Latent MIM's and MAE's mask)."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..shapes import Grid
from ._masking import Amount, Masking
from ._share import draw_share, whole


class Random(Masking):
    """The floor of share x patches, every choice of so many equally likely."""

    def draw(self, grid: Grid, patch_size: int, amount: Amount) -> dict[str, Tensor]:
        """`mask` itself."""
        count = whole(draw_share(amount, grid.area), grid.area)
        return {"mask": (torch.randperm(grid.area) < count).reshape(grid)}

    def mask(self, drawn: Mapping[str, Tensor], scores: Float[Tensor, "b n"] | None = None) -> Bool[Tensor, "b gy gx"]:
        """As drawn."""
        return drawn["mask"]


MASKING = Random()
