"""Attention distance and the attention over patches that it is taken of, against float64 loops and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

import kamim_analysis as ka
from kamim_analysis.analyses.attention_distance import attention_distance
from kamim_analysis.attention import patch_attention


def random_attention(batch: int, heads: int, tokens: int, *, sharpness: float = 3.0, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(batch, heads, tokens, tokens, generator=draw)).softmax(-1)


def distance_by_loop(attention: np.ndarray, grid: tuple[int, int], patch: tuple[int, int]) -> np.ndarray:
    """Mean over queries of the sum over keys of A times the distance between centres."""
    batch, heads, tokens, _ = attention.shape
    result = np.zeros((batch, heads))
    for b, h, q, k in np.ndindex(batch, heads, tokens, tokens):
        (qy, qx), (ky, kx) = divmod(q, grid[1]), divmod(k, grid[1])
        result[b, h] += attention[b, h, q, k] * math.hypot((qy - ky) * patch[0], (qx - kx) * patch[1]) / tokens
    return result


@pytest.mark.parametrize(
    ("grid", "patch"), [((4, 4), (16, 16)), ((3, 5), (16, 16)), ((5, 2), (8, 14)), ((1, 6), (4, 4)), ((1, 1), (16, 16))]
)
def test_distance_by_loop(grid, patch):
    attention = random_attention(2, 3, grid[0] * grid[1])
    expected = distance_by_loop(attention.double().numpy(), grid, patch)
    np.testing.assert_allclose(attention_distance(attention, grid, patch).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_one_side_stands_for_square_patches():
    attention = random_attention(1, 2, 6)
    torch.testing.assert_close(attention_distance(attention, (2, 3), 8), attention_distance(attention, (2, 3), (8, 8)))


def test_attention_to_oneself_has_no_distance():
    assert float(attention_distance(torch.eye(12)[None, None], (3, 4), 16)) == 0


@pytest.mark.parametrize(("grid", "patch"), [((12, 12), 16), ((14, 14), 16), ((56, 56), 4), ((3, 9), 7)])
def test_uniform_attention_has_the_mean_distance_of_all_pairs(grid, patch):
    count = grid[0] * grid[1]
    centres = np.stack(np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij"), -1).reshape(-1, 2) * patch
    uniform = torch.full((1, 1, count, count), 1 / count)
    expected = squareform(pdist(centres)).mean()
    np.testing.assert_allclose(float(attention_distance(uniform, grid, patch)), expected, rtol=1e-5)


def test_attention_to_the_right_hand_neighbour_is_one_patch_away():
    attention = torch.eye(12)[[1, 2, 3, 2, 5, 6, 7, 6, 9, 10, 11, 10]][None, None]
    torch.testing.assert_close(attention_distance(attention, (3, 4), 16), torch.tensor([[16.0]]))


def test_images_and_heads_do_not_mix():
    attention = random_attention(3, 2, 9)
    each = [
        [float(attention_distance(attention[b : b + 1, h : h + 1], (3, 3), 16)) for h in range(2)] for b in range(3)
    ]
    torch.testing.assert_close(attention_distance(attention, (3, 3), 16), torch.tensor(each))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_attention_is_reduced_in_full_precision(dtype):
    attention = random_attention(2, 2, 36).to(dtype)
    expected = distance_by_loop(attention.double().numpy(), (6, 6), (16, 16))
    distance = attention_distance(attention, (6, 6), 16)
    assert distance.dtype == torch.float32
    np.testing.assert_allclose(distance.numpy(), expected, rtol=1e-5)


def test_missing_numbers_stay_missing():
    attention = random_attention(1, 1, 4)
    attention[0, 0, 1, 2] = torch.nan
    assert bool(attention_distance(attention, (2, 2), 16).isnan().all())


def test_patch_attention_drops_the_prefix_and_renormalises():
    attention = random_attention(2, 3, 9)
    found = patch_attention(attention, 5).numpy()
    for b, h, q, k in np.ndindex(2, 3, 4, 4):
        row = attention[b, h, 5 + q, 5:].double().numpy()
        np.testing.assert_allclose(found[b, h, q, k], row[k] / row.sum(), rtol=1e-5)


def test_patch_attention_without_prefix_keeps_rows():
    attention = random_attention(1, 2, 6)
    torch.testing.assert_close(patch_attention(attention, 0), attention)


def test_a_row_that_gives_patches_nothing_becomes_uniform_and_others_stay():
    attention = torch.zeros(1, 1, 5, 5)
    attention[..., 0] = 1
    attention[0, 0, 2] = torch.tensor([0.5, 0.0, 0.5, 0.0, 0.0])
    expected = torch.full((4, 4), 0.25)
    expected[1] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(patch_attention(attention, 1)[0, 0], expected)


def test_patch_attention_keeps_missing_numbers_missing():
    attention = torch.zeros(1, 2, 5, 5)
    attention[..., 0] = 1
    attention[0, 1] = torch.nan
    assert bool(patch_attention(attention, 1)[0, 1].isnan().all())


def test_patch_attention_of_half_precision_sums_to_one_in_full():
    rows = patch_attention(random_attention(1, 2, 40).bfloat16(), 1).sum(-1)
    torch.testing.assert_close(rows, torch.ones(1, 2, 39))


def test_the_public_names_are_these_functions():
    assert ka.attention_distance is attention_distance
    assert ka.patch_attention is patch_attention
