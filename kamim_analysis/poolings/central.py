"""The mean of the patches in the middle of the picture (Beyond [cls], arXiv 2412.03215)."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from ..shapes import Grid
from ._pooling import LayerTokens, WeightedSum


@cache  # asked for with every batch and layer
def central_patches(grid: Grid) -> Float[Tensor, " n"]:
    """1 for each patch whose centre lies in the middle half of height and width, its edge included, else 0; row-major.

    About a quarter of all patches: 6 x 6 of 12 x 12, 8 x 8 of 16 x 16, and 8 x 8 of 14 x 14, where no half is whole.

    How far the middle reaches is our choice: half of each side is the same share of the picture on every grid. One
    central row and column at least are taken.

    >>> central_patches(Grid(4, 4)).view(4, 4)
    tensor([[0., 0., 0., 0.],
            [0., 1., 1., 0.],
            [0., 1., 1., 0.],
            [0., 0., 0., 0.]])
    """
    rows, columns = (((torch.arange(side) + 0.5) / side - 0.5).abs() <= 0.25 for side in (grid.height, grid.width))
    return (rows[:, None] & columns).flatten().float()


class Central(WeightedSum):
    """The patches in the middle have equal shares, the others none."""

    def weights(self, layer: LayerTokens) -> Float[Tensor, "b 1 n"]:
        """1 / number of central patches, or 0."""
        chosen = central_patches(layer.grid).to(layer.patches)
        return (chosen / chosen.sum()).expand(len(layer.patches), 1, -1)
