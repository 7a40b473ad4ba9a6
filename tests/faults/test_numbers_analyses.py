"""One picture, one patch, odd grids, features of zeros and of 1e30: every analysis tells a right number or why not."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from kamim_analysis import plugins
from kamim_analysis.analyses._analysis import Subject
from kamim_analysis.analyses._suite import PACKAGE, Outcome, Suite
from kamim_analysis.analyses.geometry import closeness_to_others, cosine_to_others
from kamim_analysis.analyses.knn import knn_correct
from kamim_analysis.analyses.reconstruction import reconstruction_quality
from kamim_analysis.analyses.self_attention_tokens import principal_plane
from kamim_analysis.analyses.similarity import nearest
from kamim_analysis.bootstrap import crossed_interval, mean_interval
from kamim_analysis.comparison import write_and_compare
from kamim_analysis.encoders import anatomy, build
from kamim_analysis.errors import UserError
from kamim_analysis.evaluation_set import ImageBatch
from kamim_analysis.figures._explorer import as_json
from kamim_analysis.figures._explorer_table import table_data
from kamim_analysis.figures._figure import figure_modules
from kamim_analysis.figures._headline import headline_table
from kamim_analysis.reconstruction import MEAN, STD, MaskedImageModel, MaskSettings
from kamim_analysis.results import Results
from kamim_analysis.shared_neighbours import shared_neighbours, shared_neighbours_map

NAMES = plugins.names(PACKAGE)
PREFIX: dict[int, dict[str, Any]] = {0: {"class_token": False, "global_pool": "avg"}, 1: {}, 5: {"reg_tokens": 4}}
ONE_PATCH = {"attention_keypoints", "attention_nmi", "dense", "fourier", "self_attention_tokens"}


class Case(NamedTuple):
    """What is analysed: pictures of patches of 8 px, and what is odd about them or about the model."""

    grid: tuple[int, int] = (3, 3)
    prefix: int = 1
    images: int = 6
    pictures: Callable[[torch.Tensor], torch.Tensor] = lambda images: images
    tamper: Callable[[Any], None] = lambda encoder: None
    labels: Callable[[torch.Tensor], torch.Tensor] = lambda indices: indices % 3
    dtype: torch.dtype = torch.float32


def suite_of(case: Case, names: list[str] = NAMES) -> Suite:
    """An encoder of two blocks that was shown the pictures four at a time, so that the last batch may be of one."""
    size = (8 * case.grid[0], 8 * case.grid[1])
    sizes = {"img_size": size, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    encoder = build("vit_tiny_patch16_224", sizes | PREFIX[case.prefix]).eval()
    with torch.no_grad():
        case.tamper(encoder)
    model = MaskedImageModel(encoder.to(case.dtype)).eval().to(case.dtype)
    subject = Subject(
        label="odd", anatomy=anatomy(encoder), mean=MEAN, std=STD, encoder=encoder, masked_model=model,
        masking=MaskSettings(unit=8, ratio=0.6), classes=3,
    )  # fmt: skip
    suite = Suite(encoder, subject, names)
    images = case.pictures(torch.randn(case.images, 3, *size)).to(case.dtype)
    numbers = torch.arange(case.images)
    for part in numbers.split(4):
        suite.update(ImageBatch(images[part], case.labels(part), part))
    return suite


def told(outcome: Outcome) -> dict[tuple[str, str, int | None], tuple[float, float, float]]:
    """Value and interval of each row that is not of a single head."""
    return {(r.analysis, r.statistic, r.layer): r[4:7] for r in outcome.rows if r.head is None}


def undefined(outcome: Outcome) -> set[tuple[str, str]]:
    return {
        (analysis, statistic) for (analysis, statistic, _), numbers in told(outcome).items() if np.isnan(numbers[0])
    }


@pytest.mark.parametrize(
    ("grid", "prefix"), [((1, 1), 0), ((1, 1), 5), ((1, 3), 1), ((3, 5), 0), ((3, 5), 1), ((3, 5), 5)]
)
def test_every_analysis_of_any_grid_and_prefix(grid, prefix):
    outcome = suite_of(Case(grid, prefix, images=5)).outcome()
    skipped = {(1, 1): ONE_PATCH, (1, 3): {"fourier"}, (3, 5): set()}[grid]
    assert set(outcome.skipped) == skipped
    assert all(outcome.skipped.values())
    small = {("reconstruction", f"ssim_{name}") for name in ("gaussian_masked", "gaussian_pasted", "reference")}
    alone = {("geometry", "token_cosine")}
    assert undefined(outcome) == {(1, 1): small | alone, (1, 3): small, (3, 5): set()}[grid]
    rows = told(outcome)
    for (_, statistic, _), (value, low, high) in rows.items():
        if not np.isnan(value):
            assert low <= value <= high, statistic
    if grid == (1, 1):
        assert rows["attention_distance", "mean", 2][0] == 0
        assert rows["geometry", "token_rankme", 2][0] == pytest.approx(1)
    silent = set(NAMES) - set(outcome.skipped) - {analysis for analysis, _, _ in rows}
    assert silent <= {"attention_maps", "explorer", "token_tsne"}  # these leave arrays alone
    assert "tsne" in outcome.arrays["tokens"]


@pytest.mark.parametrize(("grid", "images"), [((1, 1), 1), ((3, 3), 1), ((3, 3), 4)])
def test_an_interval_of_one_picture_does_not_look_certain_and_of_few_nothing_is_made_up(grid, images):
    outcome = suite_of(Case(grid, images=images)).outcome()
    few = {"similarity": "needs 5 pictures"}
    one = {"knn": "there is no other picture to be a neighbour", "frequency_bias": "no neighbours"}
    assert outcome.skipped.items() >= (few | (one if images == 1 else {})).items()
    assert ("token_tsne" in outcome.skipped) == (grid == (1, 1))
    rows = told(outcome)
    assert len(rows) > 20
    for key, (_, low, high) in rows.items():
        assert (np.isnan(low) and np.isnan(high)) == (images == 1 or np.isnan(rows[key][0])), key
    assert ("geometry", "image_cosine", 1) in rows or images < 3


def test_pictures_of_one_class_among_data_of_three_are_no_accuracy_of_100_percent():
    outcome = suite_of(Case(labels=lambda indices: 0 * indices + 2), ["knn", "frequency_bias", "attribution"]).outcome()
    assert outcome.skipped["knn"] == "all pictures that can be neighbours are of one class"
    assert "of one class" in outcome.skipped["frequency_bias"]
    assert not outcome.rows


def zeros(encoder: Any) -> None:
    for parameter in encoder.parameters():
        parameter.zero_()


def scaled_norm(factor: float) -> Callable[[Any], None]:
    return lambda encoder: encoder.norm.weight.fill_(factor)


CONSTANT = Case(images=13, pictures=torch.zeros_like)
IDENTICAL = Case(images=13, pictures=lambda images: images[:1].expand_as(images).clone())


def test_features_of_zeros_are_undefined_and_not_spread_over_a_sphere():
    names = ["geometry", "alignment", "similarity", "token_norms", "cls_attention"]
    outcome = suite_of(Case(images=13, tamper=zeros), names).outcome()
    rows = told(outcome)
    cosines = ["token_cosine", "token_rankme", "image_cosine", "image_rankme", "uniformity"]
    assert {("geometry", name) for name in cosines} <= undefined(outcome)
    assert ("alignment", "distance_to_others") in undefined(outcome)
    assert ("similarity", "cka_with_last") in undefined(outcome)
    assert ("similarity", "mutual_knn_with_last") in undefined(outcome)
    assert rows["token_norms", "norm_mean", 2][0] == 0
    for layer in (1, 2):
        assert rows["cls_attention", "patch_entropy", layer][0] == pytest.approx(1)  # attention is uniform


@pytest.mark.parametrize("case", [CONSTANT, IDENTICAL], ids=["constant", "identical"])
def test_pictures_that_are_all_alike_have_collapsed_and_are_nobody_s_neighbours(case):
    outcome = suite_of(case, ["geometry", "similarity", "attention_keypoints"]).outcome()
    rows = told(outcome)
    for layer in range(3):
        assert rows["geometry", "image_cosine", layer][0] == pytest.approx(1)
        assert rows["geometry", "image_rankme", layer][0] == pytest.approx(1, abs=1e-3)
        assert rows["geometry", "uniformity", layer][0] == pytest.approx(0, abs=1e-5)
    assert {("similarity", "cka_with_last"), ("similarity", "mutual_knn_with_last")} <= undefined(outcome)
    assert ("attention_keypoints" in outcome.skipped) == (case is CONSTANT)


@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_features_of_any_size_have_the_neighbours_and_cosines_of_features_of_one(factor):
    names = ["knn", "geometry", "alignment"]
    found, expected = (
        told((torch.manual_seed(0), suite_of(Case(images=13, tamper=scaled_norm(f)), names))[1].outcome())
        for f in (factor, 1.0)
    )
    assert found.keys() == expected.keys()
    for key, numbers in expected.items():
        np.testing.assert_allclose(found[key], numbers, rtol=1e-4, atol=1e-6, err_msg=str(key))


def test_measures_of_features_by_hand():
    features = torch.tensor([[3e30, 0.0], [0.0, 1e-30], [4.0, 0.0], [5e30, 5e30]])
    unit = np.array([[1, 0], [0, 1], [1, 0], [0.5**0.5, 0.5**0.5]])
    others = (unit @ unit.T - np.eye(4)).sum(1) / 3
    np.testing.assert_allclose(cosine_to_others(features).numpy(), others, rtol=1e-6)
    squared = np.square(unit[:, None] - unit).sum(-1)
    near = (np.exp(-2 * squared) - np.eye(4)).sum(1) / 3
    np.testing.assert_allclose(closeness_to_others(features).numpy(), near, rtol=1e-6)
    assert nearest(features, 1)[:3].flatten().tolist() == [2, 3, 0]
    right = knn_correct(features, torch.tensor([0, 1, 0, 1]), None, None, [1])[1]
    assert right.tolist()[:3] == [True, True, True]
    assert (nearest(torch.zeros(4, 2), 2) == -1).all()
    alike, told_apart = nearest(torch.ones(4, 2), 2).numpy(), nearest(features, 2).numpy()
    assert np.isnan(shared_neighbours(alike, told_apart)).all()
    between = shared_neighbours_map(np.stack([alike, told_apart]), np.stack([told_apart, alike]))
    np.testing.assert_array_equal(between, [[np.nan, np.nan], [1, np.nan]])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_leaves_numbers_that_are_none_is_refused_by_every_analysis(name, value):
    def tamper(encoder: Any) -> None:
        encoder.blocks[1].mlp.fc2.bias[3] = value  # behind all attention

    with pytest.raises(UserError, match=r"odd: .* hold NaN or infinity in 4 of 4 pictures, so the model cannot be an"):
        suite_of(Case(tamper=tamper), [name])


@pytest.mark.parametrize("place", ["bank", "queries"])
def test_features_that_are_none_have_no_neighbours(place):
    features, labels = {"bank": torch.randn(5, 3), "queries": torch.randn(4, 3)}, torch.arange(5) % 2
    features[place][2, 1] = torch.nan
    with pytest.raises(UserError, match=r"features of 1 of [45] (neighbours|pictures) hold NaN or infinity; no k-NN"):
        knn_correct(features["queries"], labels[:4], features["bank"], labels, [1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_precisions_go_through_every_analysis_and_tell_what_float32_tells(dtype):
    rows = {}
    for kind in (torch.float32, dtype):
        torch.manual_seed(0)
        outcome = suite_of(Case(images=6, dtype=kind)).outcome()
        assert not outcome.skipped
        rows[kind] = told(outcome)
    assert rows[dtype].keys() == rows[torch.float32].keys()
    tolerance = {torch.bfloat16: 4e-2, torch.float64: 1e-4}[dtype]
    of_attention = ("attention_distance", "attention_nmi", "cls_attention", "token_norms", "alignment")
    for key, (value, _, _) in rows[torch.float32].items():
        if key[0] in of_attention and "outlier" not in key[1]:
            assert rows[dtype][key][0] == pytest.approx(value, rel=tolerance, abs=tolerance / 10), key


def test_a_perfect_reconstruction_has_100_db_and_one_too_small_for_ssim_none():
    original = np.random.default_rng(0).random((2, 16, 16, 3))
    mask = np.zeros((2, 16, 16), bool)
    mask[:, :8] = True
    quality = reconstruction_quality(original, original, mask)
    for name, perfect in (("psnr_masked", 100), ("psnr_pasted", 100), ("ssim_gaussian_masked", 1)):
        np.testing.assert_allclose(getattr(quality, name), perfect)
    mean, low, high = mean_interval(quality.psnr_masked[:, None])
    assert (float(mean[0]), float(low[0]), float(high[0])) == (100, 100, 100)
    changed = original.copy()
    changed[0, 0, 0] += 0.1
    squared = np.square(changed.clip(0, 1) - original)[0].sum() / (8 * 16 * 3)
    found = reconstruction_quality(original, changed, mask).psnr_masked
    np.testing.assert_allclose(found, [-10 * np.log10(squared), 100])
    for side, known in ((10, False), (11, True)):
        small = reconstruction_quality(original[:, :side], changed[:, :side], mask[:, :side])
        assert np.isfinite(small.ssim_gaussian_pasted).all() == known
        assert np.isfinite(small.psnr_pasted).all()
    mask[1] = False
    nothing = reconstruction_quality(original, changed, mask)
    assert np.isnan(nothing.psnr_masked).tolist() == [False, True]
    assert np.isnan(nothing.ssim_gaussian_masked).tolist() == [False, True]


def test_planes_of_vectors_that_are_all_alike():
    for groups in ([np.ones((1, 1, 4))], [np.zeros((2, 3, 4)), np.zeros((2, 3, 4))]):
        for plane, group in zip(principal_plane(*groups), groups, strict=True):
            np.testing.assert_array_equal(plane, np.zeros((*group.shape[:-1], 2)))


def test_intervals_of_one_picture():
    assert np.isnan(mean_interval(np.array([[3.0]]))[1:]).all()
    assert np.isnan(crossed_interval(np.array([[3.0, np.nan]]))[1:]).all()


def written(outcomes: dict[str, tuple[Case, Outcome]], directory: Path) -> Results:
    """A directory of results, as `kamim analyze` leaves it."""
    models = [
        {"label": label, "spec": "random:vit_tiny", "architecture": "vit_tiny", "grid": list(case.grid), "layers": 2,
         "image_size": [8 * case.grid[0], 8 * case.grid[1]], "skipped": outcome.skipped}
        for label, (case, outcome) in outcomes.items()
    ]  # fmt: skip
    manifest = {
        "kamim_analysis": "0", "created": "2026-01-02T03:04:05+00:00", "command": ["kamim"], "versions": {}, "seed": 0,
        "data": {"source": "odd", "classes": ["a", "b", "c"], "images": 13, "neighbours": "leave one out"},
        "models": models,
    }  # fmt: skip
    arrays: dict[str, dict[str, Any]] = {}
    for label, (_, outcome) in outcomes.items():
        for file, named in outcome.arrays.items():
            arrays.setdefault(file, {})[label] = named
    rows, samples = ({label: getattr(o, what) for label, (_, o) in outcomes.items()} for what in ("rows", "samples"))
    write_and_compare(directory, manifest, rows, arrays, samples)
    return Results.open(directory)


@pytest.mark.parametrize("labels", [("one",), ("zeros", "alike", "one")], ids=" and ".join)
def test_figures_and_report_go_on_where_numbers_are_undefined(labels, tmp_path):
    cases = {"one": Case((1, 1), images=1), "zeros": Case((3, 5), 0, 13, tamper=zeros), "alike": CONSTANT}
    results = written({label: (cases[label], suite_of(cases[label]).outcome()) for label in labels}, tmp_path)
    assert results.metrics.ci_low.isna().any()
    drawn = [name for name, module in figure_modules().items() if module.draw(results) is not None]
    assert "attention_distance" in drawn
    assert "token_norms" in drawn
    assert ("attention_nmi" in drawn) == (labels != ("one",))
    table = headline_table(results)
    assert not re.search(r"\b(nan|inf)\b", table)
    text = as_json(table_data(results))
    assert None in json.loads(text, parse_constant=pytest.fail)["columns"]["value" if "one" not in labels else "ci_low"]
