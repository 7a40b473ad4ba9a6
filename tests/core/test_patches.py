"""Geometry of patches against loops."""

import math

import numpy as np
import pytest
import torch

from kamim_analysis.errors import UserError
from kamim_analysis.patches import block_mean, divide, enlarge, pairwise_distance
from kamim_analysis.shapes import Grid, Size


@pytest.mark.parametrize(
    ("grid", "patch"), [((3, 3), (16, 16)), ((2, 5), (8, 4)), ((1, 1), (4, 4)), ((7, 3), (14, 14))]
)
def test_pairwise_distance_between_centres(grid, patch):
    centres = [
        ((row + 0.5) * patch[0], (column + 0.5) * patch[1]) for row in range(grid[0]) for column in range(grid[1])
    ]
    expected = torch.tensor([[math.dist(a, b) for b in centres] for a in centres])
    torch.testing.assert_close(pairwise_distance(Grid(*grid), Size(*patch)), expected, rtol=1e-7, atol=0)


def test_pairwise_distance_made_in_inference_mode_serves_training_too():
    with torch.inference_mode():
        pairwise_distance(Grid(3, 2), Size(5, 7))
    attention = torch.rand(6, 6, requires_grad=True)
    (attention * pairwise_distance(Grid(3, 2), Size(5, 7))).sum().backward()
    torch.testing.assert_close(attention.grad, pairwise_distance(Grid(3, 2), Size(5, 7)))


@pytest.mark.parametrize("factor", [1, 3, Size(2, 5)])
def test_enlarge_repeats_cells(factor):
    cells = torch.arange(24.0).reshape(2, 3, 4)
    rows, columns = (factor, factor) if isinstance(factor, int) else factor
    large = enlarge(cells, factor)
    assert large.shape == (2, 3 * rows, 4 * columns)
    for b, y, x in np.ndindex(2, 3 * rows, 4 * columns):
        assert large[b, y, x] == cells[b, y // rows, x // columns]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32, torch.float64])
def test_block_mean_of_cells(dtype):
    maps = (torch.rand(3, 12, 20, generator=torch.Generator().manual_seed(0)) * 255).to(dtype)
    mean = block_mean(maps, 4)
    assert mean.dtype == torch.float32
    for b, y, x in np.ndindex(3, 3, 5):
        cell = maps[b, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].double().numpy()
        np.testing.assert_allclose(float(mean[b, y, x]), cell.sum() / 16, rtol=1e-6)


def test_block_mean_of_bytes_does_not_overflow():
    assert float(block_mean(torch.full((1, 64, 64), 255, dtype=torch.uint8), 64)) == 255


def test_block_mean_then_enlarge_keeps_the_mean():
    maps = torch.rand(2, 24, 16)
    torch.testing.assert_close(enlarge(block_mean(maps, 8), 8).mean((1, 2)), maps.mean((1, 2)))


def test_divide_counts_cells():
    assert divide(Size(192, 96), 16, what="patch size") == Grid(12, 6)
    assert divide(Size(192, 96), Size(64, 32), what="patch size") == Grid(3, 3)
    assert Grid(12, 6).area == 72


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (7, "patch size 7 does not divide 192x96; choose sizes of which one divides the other"),
        (Size(64, 5), "patch size 64x5 does not divide 192x96"),
        (0, "patch size 0 does not divide"),
        (-16, "patch size -16 does not divide"),
    ],
)
def test_divide_refuses_cells_that_do_not_tile(cell, message):
    with pytest.raises(UserError, match=message):
        divide(Size(192, 96), cell, what="patch size")
