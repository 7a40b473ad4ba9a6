"""Norms, percentiles and histograms against numpy; outliers against planted ones."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from kamim_analysis.analyses._analysis import Batch, Findings, Subject
from kamim_analysis.analyses._suite import Outcome, Suite
from kamim_analysis.analyses.token_norms import (
    EDGES,
    TokenNorms,
    border,
    norm_histogram,
    norm_statistics,
    outliers,
    token_norms,
)
from kamim_analysis.encoders import anatomy
from kamim_analysis.evaluation_set import ImageBatch
from kamim_analysis.reconstruction import MEAN, STD
from kamim_analysis.recorder import record

OF_PATCHES = {"norm_mean", "norm_median", "norm_p5", "norm_p75", "norm_p95", "norm_p99", "outlier_share",
              "outlier_share_border"}  # fmt: skip


def subject_of(encoder: Any) -> Subject:
    return Subject(label="tiny", anatomy=anatomy(encoder), mean=MEAN, std=STD, encoder=encoder)


def analysed(encoder: Any, images: torch.Tensor) -> Outcome:
    suite = Suite(encoder, subject_of(encoder), ["token_norms"])
    for part in torch.arange(len(images)).split(2):
        suite.update(ImageBatch(images[part], torch.zeros_like(part), part))
    return suite.outcome()


def shown(encoder: Any, *batches: torch.Tensor) -> Findings:
    """What the analysis finds when every layer has these tokens."""
    analysis = TokenNorms(subject_of(encoder))
    for tokens in batches:
        for layer in range(4):
            analysis.observe("tokens", layer, tokens)
        numbers = torch.arange(len(tokens))
        images, features = torch.zeros(len(tokens), 3, 32, 32), torch.zeros(len(tokens), 4)
        analysis.update(Batch(images=images, labels=numbers, indices=numbers, features=features))
    return analysis.compute()


def values_of(rows: Any) -> dict[tuple[str, int], float]:
    return {(row.statistic, row.layer): row.value for row in rows}


def in_border(y: int, x: int, grid: tuple[int, int]) -> bool:
    return y in (0, grid[0] - 1) or x in (0, grid[1] - 1)


def test_norms_by_numpy():
    tokens = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(token_norms(tokens).numpy(), np.linalg.norm(tokens.numpy(), axis=-1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_norms_are_summed_in_full_precision(dtype):
    tokens = torch.full((1, 2, 400), 3e4, dtype=dtype)  # the sum of squares is beyond half precision
    norms = token_norms(tokens)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, torch.full((1, 2), 20 * float(tokens[0, 0, 0])))


@pytest.mark.parametrize("grid", [(5, 7), (4, 4), (2, 3), (1, 1)])
def test_statistics_by_numpy(grid):
    norms = torch.rand(6, grid[0] * grid[1], generator=torch.Generator().manual_seed(1)) ** 4
    found = {name: values.numpy() for name, values in norm_statistics(norms, grid).items()}
    assert found.keys() == OF_PATCHES
    array = norms.double().numpy()
    np.testing.assert_allclose(found["norm_mean"], array.mean(1), rtol=1e-5)
    for name, percent in (("median", 50), ("p5", 5), ("p75", 75), ("p95", 95), ("p99", 99)):
        np.testing.assert_allclose(found[f"norm_{name}"], np.percentile(array, percent, axis=1), rtol=1e-5)
    high = array > 3 * np.percentile(array, 75, axis=1, keepdims=True)
    ring = np.array([in_border(y, x, grid) for y in range(grid[0]) for x in range(grid[1])])
    np.testing.assert_allclose(found["outlier_share"], high.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found["outlier_share_border"], high[:, ring].mean(1), rtol=1e-6)


@pytest.mark.parametrize("grid", [(5, 7), (4, 4), (3, 3), (2, 3), (1, 4), (1, 1)])
def test_the_border_is_the_outermost_ring(grid):
    expected = [in_border(y, x, grid) for y in range(grid[0]) for x in range(grid[1])]
    assert border(grid).tolist() == expected


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1, 0.24])
def test_planted_outliers_are_found_and_nothing_else(share):
    draw = torch.Generator().manual_seed(2)
    norms = 40 + 5 * torch.randn(8, 400, generator=draw)
    planted = torch.zeros(8, 400, dtype=torch.bool)
    for row in planted:
        row[torch.randperm(400, generator=draw)[: int(400 * share)]] = True
    norms[planted] *= 10  # as in the paper: about ten times as long
    assert torch.equal(outliers(norms), planted)


def test_a_second_hump_half_as_long_is_none():
    norms = torch.cat([torch.full((1, 90), 40.0), torch.full((1, 10), 80.0)], dim=1)
    assert not bool(outliers(norms).any())
    assert int(outliers(norms, ratio=1.5).sum()) == 10


def test_a_picture_mostly_of_one_colour_has_no_outliers():
    norms = torch.cat([torch.full((1, 60), 4.0), torch.full((1, 40), 13.0)], dim=1)
    assert bool((norms > 3 * norms.median()).any()), "they are beyond three times the median"
    assert not bool(outliers(norms).any())


def test_scale_and_order_of_tokens_do_not_matter():
    norms = torch.rand(4, 50) ** 6
    order = torch.randperm(50)
    assert bool(outliers(norms).any())
    assert torch.equal(outliers(1000 * norms), outliers(norms))
    assert torch.equal(outliers(norms[:, order]), outliers(norms)[:, order])
    other = torch.cat([norms, 100 * norms])
    assert torch.equal(outliers(other)[:4], outliers(norms)), "other images do not matter"


@pytest.mark.parametrize("length", [0.0, 1.0])
def test_tokens_of_one_length_have_no_outliers(length):
    assert not bool(outliers(torch.full((2, 16), length)).any())


def test_the_histogram_is_numpy_s():
    norms = 10 ** (6 * torch.rand(20, 300, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 2)
    expected, _ = np.histogram(norms.numpy(), bins=np.array(EDGES))
    found = norm_histogram(norms.float())
    assert found.dtype == torch.int64
    assert int(found.sum()) == 6000
    # rounding to float32 may carry a norm over an edge
    assert np.abs(found.numpy() - expected).max() <= 1


def test_what_lies_beyond_the_histogram_is_in_its_outermost_bins():
    counts = norm_histogram(torch.tensor([[0.0, 1e-9, 1e-3, 1e6, 1e30, torch.inf]]))
    assert (int(counts[0]), int(counts[-1]), int(counts.sum())) == (3, 3, 6)


@pytest.mark.parametrize(
    ("options", "more"),
    [({}, {"cls_norm"}), ({"reg_tokens": 4}, {"cls_norm", "register_norm"}),
     ({"class_token": False, "reg_tokens": 2, "global_pool": "avg"}, {"register_norm"}),
     ({"class_token": False, "global_pool": "avg"}, set())],
)  # fmt: skip
def test_tokens_before_the_patches_have_numbers_of_their_own(options, more, tiny_vit):
    encoder, images = tiny_vit(**options), torch.randn(4, 3, 32, 32)
    found = values_of(analysed(encoder, images).rows)
    assert {name for name, _ in found} == OF_PATCHES | more
    with torch.no_grad(), record(encoder, attention=()) as recording:
        encoder.forward_features(images)
    prefix, cls = encoder.num_prefix_tokens, "cls_norm" in more
    for layer, tokens in recording.tokens.items():
        norms = np.linalg.norm(tokens.double().numpy(), axis=-1)
        expected = {"norm_mean": norms[:, prefix:].mean()}
        expected |= {"cls_norm": norms[:, 0].mean()} if cls else {}
        expected |= {"register_norm": norms[:, cls:prefix].mean()} if prefix > cls else {}
        for name, value in expected.items():
            assert found[name, layer] == pytest.approx(value, rel=1e-5), (name, layer)


def test_a_swin_s_maps_lie_on_the_grid_of_their_stage(tiny_swin):
    outcome = analysed(tiny_swin(), torch.randn(4, 3, 32, 32))
    arrays = outcome.arrays["tokens"]
    shapes = [arrays[f"norm_outliers{layer}"].shape for layer in range(5)]
    assert shapes == [(8, 8)] * 3 + [(4, 4)] * 2
    assert arrays["norm_histogram"].sum(1).tolist() == [4 * 64] * 3 + [4 * 16] * 2
    assert {row.statistic for row in outcome.rows} == OF_PATCHES


def test_planted_outliers_show_in_shares_map_and_histogram(tiny_vit):
    tokens = torch.ones(4, 17, 32) / math.sqrt(32)
    tokens[:, 0] *= 5  # cls is no patch: long or not, it is no outlier
    tokens[:3, 1] *= 10  # the corner of three images
    tokens[0, 1 + 5] *= 20  # and one inside
    findings = shown(tiny_vit(), tokens[:1], tokens[1:])
    values = values_of(findings.rows)
    for layer in range(4):
        assert values["outlier_share", layer] == pytest.approx(4 / 64)
        assert values["outlier_share_border", layer] == pytest.approx(3 / 48)
        assert values["cls_norm", layer] == pytest.approx(5)
        expected = np.zeros((4, 4))
        expected[0, 0], expected[1, 1] = 0.75, 0.25
        np.testing.assert_allclose(findings.arrays[f"norm_outliers{layer}"], expected)
    counts, _ = np.histogram([1.001] * 60 + [10.001] * 3 + [20.001], bins=findings.arrays["norm_edges"])
    # the lengths 1 and 10 lie on edges, so neighbouring bins are taken together
    np.testing.assert_array_equal(
        np.add.reduceat(findings.arrays["norm_histogram"][2], range(1, 319, 2))[:-1],
        np.add.reduceat(counts, range(1, 319, 2))[:-1],
    )


def test_outliers_gathered_in_the_border_show(tiny_vit):
    tokens = torch.ones(2, 17, 32)
    tokens[:, 1] *= 10
    tokens[:, 4] *= 10
    values = values_of(shown(tiny_vit(), tokens).rows)
    assert values["outlier_share", 1] == pytest.approx(2 / 16)
    assert values["outlier_share_border", 1] == pytest.approx(2 / 12)


def test_one_image_has_numbers_and_no_intervals(tiny_vit):
    rows = analysed(tiny_vit(), torch.randn(1, 3, 32, 32)).rows
    assert all(math.isfinite(row.value) and math.isnan(row.ci_low) for row in rows)


def test_photographs_of_a_random_encoder_have_no_outliers_behind_the_embedding(tiny_vit, pictures):
    images = torch.stack([torch.from_numpy(p[:256:8, :256:8].copy()).permute(2, 0, 1) / 127.5 - 1 for p in pictures])
    values = values_of(analysed(tiny_vit(), images).rows)
    for layer in range(1, 4):
        assert values["outlier_share", layer] == 0
        order = [values[f"norm_{name}", layer] for name in ("p5", "median", "p75", "p95", "p99")]
        assert order == sorted(order)
