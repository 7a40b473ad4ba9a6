"""BEiT's block-wise mask (arXiv 2106.08254, algorithm 1), as iBOT draws it."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..shapes import Grid
from ._masking import Amount, Masking
from ._share import draw_share, whole

# width over height lies between 0.3 and 1 / 0.3, and a block is tried ten times: both from BEiT's code
_LARGEST_ASPECT = 1 / 0.3
_ATTEMPTS = 10


def block_wise(grid: Grid, count: int) -> Bool[Tensor, "gy gx"]:
    """A mask (True = hidden) of rectangles that may overlap, drawn from torch's global random state.

    A block that would hide more than is left to hide is not taken, so never more than `count` are hidden; fewer where
    none of ten blocks in a row is taken (58 of 14 x 14: a third of the masks, 0.6 patches in the mean over all).

    Algorithm 1 of the paper, with what its code and iBOT's add to it: the attempts, and blocks smaller than the whole
    grid on both sides.
    """
    mask = torch.zeros(grid, dtype=torch.bool)
    left = count
    while left > 0:
        for _attempt in range(_ATTEMPTS):
            block = mask[_rectangle(grid, left)]
            fresh = block.numel() - int(block.sum())
            if 0 < fresh <= left:
                block[...] = True
                left -= fresh
                break
        else:
            break
    return mask


def _rectangle(grid: Grid, left: int) -> tuple[slice, slice]:
    """A block at random: area even between a ninth of the (square) grid and `left`, whichever is more, aspect
    log-uniform; empty where its side reaches the grid's."""
    size, shape, down, across = torch.rand(4, dtype=torch.float64).tolist()
    least = (min(grid) // 3) ** 2
    area = least + size * (left - least)
    aspect = _LARGEST_ASPECT ** (2 * shape - 1)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if height >= grid.height or width >= grid.width:
        return slice(0), slice(0)
    top, start = int(down * (grid.height - height + 1)), int(across * (grid.width - width + 1))
    return slice(top, top + height), slice(start, start + width)


class Block(Masking):
    """Share x patches at most, in blocks."""

    def draw(self, grid: Grid, patch_size: int, amount: Amount) -> dict[str, Tensor]:
        """`mask` itself."""
        return {"mask": block_wise(grid, whole(draw_share(amount, grid.area), grid.area))}

    def mask(self, drawn: Mapping[str, Tensor], scores: Float[Tensor, "b n"] | None = None) -> Bool[Tensor, "b gy gx"]:
        """As drawn."""
        return drawn["mask"]


MASKING = Block()
