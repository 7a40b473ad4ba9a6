"""The geometry of patches: centres, distances, and the step between a grid and its pixels."""

from functools import lru_cache

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .errors import UserError
from .shapes import Grid, Size


def divide(size: Size, cell: int | Size, *, what: str) -> Grid:
    """The grid of `cell`-sized cells that tiles `size`.

    Raises UserError when the cells do not tile it.

    >>> divide(Size(192, 192), 16, what="patch size")
    Grid(height=12, width=12)
    """
    cell = Size(cell, cell) if isinstance(cell, int) else cell
    if min(cell) < 1 or size.height % cell.height or size.width % cell.width:
        cell_text = f"{cell.height}" if cell.height == cell.width else f"{cell.height}x{cell.width}"
        raise UserError(
            f"{what} {cell_text} does not divide {size.height}x{size.width}; "
            "choose sizes of which one divides the other"
        )
    return Grid(size.height // cell.height, size.width // cell.width)


@lru_cache(maxsize=64)
def pairwise_distance(grid: Grid, patch_size: Size, device: torch.device | None = None) -> Float[Tensor, "n n"]:
    """Euclidean distance in pixels between the centres of every two patches, in row-major order."""
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        y = torch.arange(grid.height, device=device) * patch_size.height
        x = torch.arange(grid.width, device=device) * patch_size.width
        centres = torch.cartesian_prod(y, x).reshape(-1, 2).double()
        return torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist").float()


def enlarge(cells: Shaped[Tensor, "*b gy gx"], factor: int | Size) -> Shaped[Tensor, "*b y x"]:
    """Repeat each cell `factor` times along both image axes (nearest-neighbour enlargement)."""
    factor = Size(factor, factor) if isinstance(factor, int) else factor
    return cells.repeat_interleave(factor.height, -2).repeat_interleave(factor.width, -1)


def block_mean(maps: Shaped[Tensor, "b y x"], cell: int) -> Float[Tensor, "b gy gx"]:
    """Mean over cells of `cell` x `cell` pixels, without overlap."""
    batch, height, width = maps.shape
    grid = divide(Size(height, width), cell, what="weight patch size")
    # whole numbers sum exactly, so the mean is the correctly rounded quotient; rows first, which lie side by side
    exact = torch.float32 if maps.is_floating_point() else torch.int32
    rows = maps.reshape(batch, grid.height, cell, width).sum(2, dtype=exact)
    total = rows.view(batch, grid.height, grid.width, cell).sum(3, dtype=exact)
    # by a tensor: a plain number's reciprocal is what CUDA multiplies by, which may miss the last bit
    return total / torch.full((), cell**2, dtype=exact, device=maps.device)
