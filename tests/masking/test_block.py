"""BEiT's block-wise masks: never too much, rectangles of the right shapes and places, against a slow loop."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from kamim_analysis.masking._masking import Amount
from kamim_analysis.masking.block import _rectangle, block_wise
from kamim_analysis.shapes import Grid

GRID = Grid(14, 14)


def generated(pictures: int, count: int) -> Tensor:
    torch.manual_seed(6)
    return torch.stack([block_wise(GRID, count) for _ in range(pictures)])


@pytest.mark.parametrize("count", [0, 1, 15, 58, 98, 196])
def test_never_more_than_asked_for_and_seldom_much_less(count: int) -> None:
    hidden = generated(200, count).flatten(1).sum(1)
    assert int(hidden.max()) <= count
    if 15 < count < 196:
        assert float(hidden.float().mean()) > 0.9 * count
        assert bool((hidden == count).any())


def blocks_by_loop(height: int, width: int, count: int) -> list[list[bool]]:
    """The algorithm as its authors' code goes about it, cell by cell, on the same four numbers for each attempt."""
    mask = [[False] * width for _ in range(height)]
    hidden = 0
    while hidden < count:
        added = 0
        for _attempt in range(10):
            size, shape, down, across = torch.rand(4, dtype=torch.float64).tolist()
            low, high = (min(height, width) // 3) ** 2, count - hidden
            area = low + size * (high - low)
            aspect = math.exp(math.log(1 / 0.3) - 2 * (1 - shape) * math.log(1 / 0.3))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w >= width or h >= height:
                continue
            top, left = math.floor(down * (height - h + 1)), math.floor(across * (width - w + 1))
            cells = [(y, x) for y in range(top, top + h) for x in range(left, left + w) if not mask[y][x]]
            if 0 < len(cells) <= high:
                for y, x in cells:
                    mask[y][x] = True
                added = len(cells)
                break
        if added == 0:
            break
        hidden += added
    return mask


@pytest.mark.parametrize("grid", [GRID, Grid(12, 8)])
def test_blocks_by_loop(grid: Grid) -> None:
    for seed in range(60):
        torch.manual_seed(seed)
        mask = block_wise(grid, 10 + seed)
        torch.manual_seed(seed)
        assert mask.tolist() == blocks_by_loop(*grid, 10 + seed)


def test_area_and_aspect_of_a_block_are_those_of_the_paper() -> None:
    torch.manual_seed(3)
    sides = []
    for _ in range(4000):
        rows, columns = _rectangle(Grid(100, 100), 1500)
        if rows.start is not None:
            sides.append((rows.stop - rows.start, columns.stop - columns.start))
            assert max(rows.stop, columns.stop) <= 100
    assert len(sides) == 4000  # none of the sides can reach 100: sqrt(1500 / 0.3) = 71
    height, width = torch.tensor(sides, dtype=torch.float64).T
    draw = torch.Generator().manual_seed(8)
    area = 33**2 + (1500 - 33**2) * torch.rand(4000, generator=draw, dtype=torch.float64)
    aspect = torch.empty(4000, dtype=torch.float64).uniform_(-1, 1, generator=draw).mul(-torch.tensor(0.3).log()).exp()
    assert ks_2samp((height * width).numpy(), area.round().numpy()).pvalue > 1e-3
    assert ks_2samp(height.numpy(), (area * aspect).sqrt().round().numpy()).pvalue > 1e-3
    assert ks_2samp(width.numpy(), (area / aspect).sqrt().round().numpy()).pvalue > 1e-3


def test_a_block_lies_anywhere_with_equal_chance() -> None:
    torch.manual_seed(5)
    tops = {height: [] for height in range(1, 14)}  # type: dict[int, list[int]]
    for _ in range(6000):
        rows, columns = _rectangle(GRID, 40)
        if rows.start is not None and columns.stop > columns.start:
            tops[rows.stop - rows.start].append(rows.start)
    height, found = max(tops.items(), key=lambda item: len(item[1]))
    counted = torch.bincount(torch.tensor(found), minlength=15 - height).double()
    assert len(counted) == 15 - height
    expected = len(found) / len(counted)
    statistic = float(((counted - expected) ** 2 / expected).sum())
    assert statistic < 3 * len(counted)  # mean is its degrees of freedom, less than 0.1% beyond three times these


def test_hidden_patches_hang_together_more_than_at_random(draws: Callable[..., dict[str, Tensor]]) -> None:
    def neighbours(mask: Tensor) -> float:
        return float((mask[:, 1:] & mask[:, :-1]).sum() / mask.sum())

    amount = Amount(ratio=0.3)
    block, rand = (draws(name, amount, pictures=300)["mask"] for name in ("block", "random"))
    assert neighbours(rand) == pytest.approx(57 / 195 * 13 / 14, abs=0.01)  # the last column has no right neighbour
    assert neighbours(block) > 0.7


@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(2, 2), Grid(1, 9), Grid(3, 20)])
def test_small_grids_end(grid: Grid) -> None:
    torch.manual_seed(0)
    for count in range(grid.area + 1):
        assert int(block_wise(grid, count).sum()) <= count
