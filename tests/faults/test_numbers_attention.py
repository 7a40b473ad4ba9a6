"""Attention that is half-precision, long, empty, one-hot, denormal or not a number: what its measures make of it.

Each number is compared with a formula in float64 on the very input, numpy alone.
"""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kamim_analysis.analyses._directions import direction, unit
from kamim_analysis.analyses.attention_distance import attention_distance
from kamim_analysis.analyses.attention_nmi import attention_nmi
from kamim_analysis.analyses.cls_attention import attention_entropy, attention_statistics, norm_ratio
from kamim_analysis.analyses.explorer import dequantise, quantise
from kamim_analysis.analyses.fourier import log_amplitude
from kamim_analysis.analyses.self_attention_tokens import mean_pairwise_cosine
from kamim_analysis.analyses.token_norms import token_norms
from kamim_analysis.attention import patch_attention
from kamim_analysis.errors import UserError
from kamim_analysis.recorder import record

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def xlogx(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * np.log(np.where(values > 0, values, 1))


def over_patches(attention: torch.Tensor, prefix: int) -> NDArray[np.float64]:
    patches = attention.double().numpy()[..., prefix:, prefix:]
    return patches / patches.sum(-1, keepdims=True)


def nmi_of(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    keys = -xlogx(rows.mean(-2)).sum(-1)
    return (keys + xlogx(rows).sum(-1).mean(-1)) / np.sqrt(math.log(rows.shape[-2]) * keys)


def entropy_of(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return -xlogx(rows).sum(-1) / math.log(rows.shape[-1])


def distance_of(rows: NDArray[np.float64], grid: tuple[int, int], patch: int) -> NDArray[np.float64]:
    """A query at a time: all distances of a long row at once would take a quarter of a gigabyte."""
    places = patch * np.indices(grid).reshape(2, -1).T.astype(np.float64)
    by_query = [rows[..., q, :] @ np.linalg.norm(places - place, axis=1) for q, place in enumerate(places)]
    return np.mean(by_query, axis=0)


def random_attention(tokens: int, heads: int, sharpness: float) -> torch.Tensor:
    return (sharpness * torch.randn(1, heads, tokens, tokens)).softmax(-1)


@pytest.mark.parametrize("grid", [(7, 11), (5, 1)], ids=["odd", "a column"])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_precision_any_prefix_and_any_grid(dtype, prefix, grid):
    attention = random_attention(prefix + math.prod(grid), 2, 1.0).to(dtype)
    rows, patches = over_patches(attention, prefix), patch_attention(attention, prefix)
    for found, expected in (
        (attention_distance(patches, grid, 16), distance_of(rows, grid, 16)),
        (attention_nmi(patches), nmi_of(rows)),
        (attention_entropy(attention[..., prefix:, prefix:]), entropy_of(rows)),
    ):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    whole = attention.double().numpy()
    expected = {"patch_to_itself": np.diagonal(whole[..., prefix:, prefix:], axis1=-2, axis2=-1).mean(-1)}
    if prefix:
        expected["cls_to_cls"] = whole[..., 0, 0]
        expected["cls_to_patches"] = whole[..., 0, prefix:].sum(-1)
        expected["patch_to_cls"] = whole[..., prefix:, 0].mean(-1)
    statistics = attention_statistics(attention, prefix)
    for name, values in expected.items():
        np.testing.assert_allclose(statistics[name].numpy(), values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_4097_tokens_are_not_summed_in_half_precision(dtype):
    attention = random_attention(4097, 1, 1.0).to(dtype)
    rows = over_patches(attention, 1)
    patches = patch_attention(attention, 1)
    np.testing.assert_allclose(attention_nmi(patches).numpy(), nmi_of(rows), rtol=1e-5)
    np.testing.assert_allclose(attention_distance(patches, (64, 64), 14).numpy(), distance_of(rows, (64, 64), 14), 1e-5)
    statistics = attention_statistics(attention, 1)
    np.testing.assert_allclose(statistics["patch_entropy"].numpy(), entropy_of(rows).mean(-1), rtol=1e-5)
    # that half precision would miss it, so that the comparison can fail
    some = attention[0, 0, :64, 1:]
    halved, whole = some.cumsum(-1)[:, -1].double(), some.double().sum(-1)
    assert float((halved / whole - 1).abs().max()) > 1e-4
    torch.testing.assert_close(statistics["cls_to_patches"].double(), whole[:1, None], rtol=1e-5, atol=0)


@pytest.mark.parametrize("sharpness", [0.1, 0.3])
def test_nmi_of_nearly_uniform_attention_is_no_rounding(sharpness):
    attention = patch_attention(random_attention(197, 4, sharpness), 1)  # NMI from 0.001, as in KAMIM's figure 7
    rows = attention.double().numpy()
    np.testing.assert_allclose(attention_nmi(attention).numpy(), nmi_of(rows), rtol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_no_number(dtype):
    attention, tokens = random_attention(36, 2, 1.0).to(dtype), torch.randn(2, 36, 8).to(dtype)
    measures = [
        lambda: attention_distance(attention, (6, 6), 16),
        lambda: attention_nmi(attention),
        lambda: attention_entropy(attention),
        lambda: log_amplitude(tokens, (6, 6)),
        lambda: mean_pairwise_cosine(tokens),
        lambda: token_norms(tokens),
    ]
    expected = [measure() for measure in measures]
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # it is on
        found = [measure() for measure in measures]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_zeros_one_hot_rows_and_a_key_that_nobody_attends_to(dtype):
    spread = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.75, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    own, one_key = torch.eye(4), torch.eye(4)[[2, 2, 2, 2]]
    attention = torch.stack([spread, own, one_key])[None].to(dtype)
    rows = attention.double().numpy()
    expected = nmi_of(rows[:, :2])
    found = attention_nmi(attention)
    np.testing.assert_allclose(found[:, :2].numpy(), expected, rtol=1e-6)
    assert float(found[0, 1]) == pytest.approx(1)
    assert float(found[0, 2]) == 0  # all patches attend alike
    np.testing.assert_allclose(attention_entropy(attention).numpy(), entropy_of(rows), rtol=1e-6)
    np.testing.assert_allclose(attention_distance(attention, (2, 2), 8).numpy(), distance_of(rows, (2, 2), 8), 1e-6)
    codes, largest = quantise(attention)
    np.testing.assert_allclose(dequantise(codes, largest).numpy(), rows, atol=1 / 255)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prefix_that_takes_everything_leaves_uniform_rows_and_no_division_by_zero(dtype):
    attention = torch.zeros(1, 1, 9, 9)
    attention[..., 3] = 1  # a register
    attention = attention.to(dtype)
    rows = patch_attention(attention, 5)
    torch.testing.assert_close(rows, torch.full((1, 1, 4, 4), 0.25))
    assert float(attention_nmi(rows)) == 0
    statistics = attention_statistics(attention, 5)
    assert all(bool(values.isfinite().all()) for values in statistics.values())
    assert (float(statistics["cls_to_patches"]), float(statistics["cls_entropy"])) == (0, 1)


@pytest.mark.parametrize("scale", [1e-30, 1e-38, 1e-40])
def test_patches_that_share_next_to_nothing_still_share_it_somehow(scale):
    attention = scale * torch.tensor([[[[0.5, 0.25, 0.125, 0.125], [1.0, 1.0, 1.0, 1.0]]]])
    assert (float(attention.max()) < torch.finfo(torch.float32).tiny) == (scale < 1e-37)
    # 1.75 bits of 2
    np.testing.assert_allclose(attention_entropy(attention)[0, 0].numpy(), [0.875, 1], rtol=1e-4)


def test_nan_in_one_head_stays_in_that_head():
    clean = random_attention(17, 3, 1.0)
    attention = clean.clone()
    attention[0, 1, 4, 6] = torch.nan
    measures = {
        "distance": lambda a: attention_distance(patch_attention(a, 1), (4, 4), 8),
        "nmi": lambda a: attention_nmi(patch_attention(a, 1)),
        "entropy": lambda a: attention_entropy(a[..., 1:, 1:]).mean(-1),
        "statistics": lambda a: attention_statistics(a, 1)["patch_to_itself_among_patches"],
    }
    for name, measure in measures.items():
        found, expected = measure(attention), measure(clean)
        assert found.isnan().tolist() == [[False, True, False]], name
        torch.testing.assert_close(found[:, [0, 2]], expected[:, [0, 2]], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_head_that_is_not_finite_is_refused_by_name(value, tiny_vit):
    encoder = tiny_vit()
    with torch.no_grad():
        encoder.blocks[1].attn.qkv.bias[16 + 3] = value  # a query of the second of two heads
    message = r"blocks\.1\.attn: attention holds NaN or infinity in head 1 of 2 \(counted from 0\)"
    with torch.no_grad(), pytest.raises(UserError, match=message), record(encoder):
        encoder(torch.zeros(1, 3, 32, 32))


@torch.no_grad()
@pytest.mark.parametrize(
    ("how", "dtype"),
    [("model", torch.float16), ("model", torch.bfloat16), ("model", torch.float64), ("autocast", torch.bfloat16)],
)
def test_a_recording_in_another_precision_has_the_numbers_of_float32(how, dtype, tiny_vit):
    encoder, images = tiny_vit(), torch.randn(2, 3, 32, 32)
    with record(encoder) as expected:
        encoder(images)
    if how == "model":
        encoder, images = encoder.to(dtype), images.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"), record(encoder) as found:
        encoder(images)
    if how == "model":
        assert found.attention[3].dtype == dtype
    grid = (4, 4)
    for layer, attention in found.attention.items():
        rows = over_patches(attention, 1)
        patches = patch_attention(attention, 1)
        np.testing.assert_allclose(attention_distance(patches, grid, 8).numpy(), distance_of(rows, grid, 8), rtol=1e-5)
        np.testing.assert_allclose(attention_nmi(patches).numpy(), nmi_of(rows), rtol=1e-3, atol=1e-7)
        of_float32 = attention_distance(patch_attention(expected.attention[layer], 1), grid, 8)
        torch.testing.assert_close(attention_distance(patches, grid, 8), of_float32, rtol=1e-2, atol=0)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1.0, 1e30])
def test_vectors_of_any_size_have_a_direction_and_zeros_none(size):
    vectors = torch.randn(2, 5, 6)
    expected = vectors.double() / vectors.double().norm(dim=-1, keepdim=True)
    tolerance = 1e-3 if size == 1e-40 else 1e-6  # of denormals half of the digits are left
    for dtype in (torch.float32, torch.float64):
        scaled = vectors.to(dtype) * size
        torch.testing.assert_close(unit(scaled).double(), expected, rtol=tolerance, atol=tolerance)
        cosines = mean_pairwise_cosine(scaled)
        pairs = (expected @ expected.mT).sum((1, 2)) - 5
        torch.testing.assert_close(cosines.double(), pairs / 20, rtol=tolerance, atol=tolerance)
    scaled = vectors * size
    if size >= 1e-30:  # below, float32 itself has no more digits
        torch.testing.assert_close(token_norms(scaled), (scaled.double().norm(dim=-1)).float())
    assert bool(direction(torch.zeros(3)).isnan().all())
    assert bool((unit(torch.zeros(3)) == 0).all())
    scaled[0, 2] = 0
    assert mean_pairwise_cosine(scaled).isnan().tolist() == [True, False]


def test_norm_ratios_of_tokens_whose_squares_overflow():
    added, stream = torch.full((1, 1, 4), 1e30), torch.full((1, 1, 4), 2e30)
    assert float(norm_ratio(added, stream)) == pytest.approx(0.5)
    assert float(norm_ratio(added.double(), stream.double())) == pytest.approx(0.5)
