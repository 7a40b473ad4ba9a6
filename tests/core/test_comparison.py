"""Paired comparison of models: scipy's paired t-test, Holm's correction by its definition, and no findings in noise."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from kamim_analysis.bootstrap import mean_interval
from kamim_analysis.comparison import COLUMNS, compare, compare_all, foremost, holm
from kamim_analysis.results import Results, Samples


def samples(seed: int, images: int = 40, layers: int = 3, shift: float = 0.0) -> Samples:
    """Numbers that share each image's own contribution between seeds."""
    image = np.random.default_rng(0).normal(size=images)
    draw = np.random.default_rng(seed)
    return {
        ("fourier", "delta", layer): (image + draw.normal(scale=0.3, size=images) + shift * layer).astype(np.float32)
        for layer in range(layers)
    }


def test_a_row_is_the_paired_difference_with_scipy_s_t_test():
    a, b = samples(1), samples(2, shift=0.1)
    table = compare(a, b).set_index("layer")
    for (_, _, layer), first in a.items():
        second = b["fourier", "delta", layer]
        row, difference = table.loc[layer], (second.astype(float) - first.astype(float))
        mean, low, high = mean_interval(difference[:, None])
        np.testing.assert_allclose([row.difference, row.ci_low, row.ci_high], [mean[0], low[0], high[0]], rtol=1e-5)
        assert row.p_value == pytest.approx(ttest_rel(second.astype(float), first.astype(float)).pvalue, rel=1e-6)
        assert row.effect_size == pytest.approx(difference.mean() / difference.std(ddof=1))
        assert (row.a, row.b) == (pytest.approx(first.mean(), abs=1e-6), pytest.approx(second.mean(), abs=1e-6))
        assert row.images == 40


def test_pairing_sees_what_the_images_spread_would_hide():
    table = compare(samples(1, images=200), samples(2, images=200, shift=0.1)).set_index("layer")
    assert table.loc[2].p_holm < 0.001
    assert table.loc[0].p_holm > 0.05


def test_holm_rejects_as_its_definition_says():
    draw = np.random.default_rng(3)
    for _ in range(50):
        p_values = draw.random(12) ** 3
        rejected = set()
        for rank, i in enumerate(np.argsort(p_values)):  # step down: stop at the first that is too large
            if p_values[i] * (12 - rank) >= 0.05:
                break
            rejected.add(int(i))
        assert set(np.flatnonzero(holm(p_values) < 0.05).tolist()) == rejected


def test_equal_models_do_not_differ_however_many_numbers_are_compared():
    false = 0
    for seed in range(100):
        table = compare(samples(2 * seed, layers=30), samples(2 * seed + 1, layers=30))
        false += bool((table.p_holm < 0.05).any())
    # at most 5 in 100 are expected; 12 would have a chance below one in a hundred
    assert false < 12


def test_a_model_against_itself_differs_in_nothing():
    table = compare(samples(1), samples(1))
    assert (table.difference == 0).all()
    assert (table.p_holm == 1).all()
    assert foremost(table.assign(model_a="a", model_b="b")).empty


def test_what_only_one_model_has_and_other_numbers_of_images_are_left_out():
    a, b = samples(1, layers=3), samples(2, layers=2)
    b["knn", "top1_k1", 2] = np.ones(40, np.float32)
    a["knn", "top1_k1", 2] = np.ones(39, np.float32)
    assert compare(a, b).layer.tolist() == [0, 1]
    assert compare(a, {}).empty
    assert list(compare_all({"a": a})) == COLUMNS


def test_every_pair_is_compared_and_a_statistic_is_listed_once_at_its_foremost_layer():
    table = compare_all({"a": samples(1), "b": samples(2, shift=0.5), "c": samples(3, shift=1.0)})
    assert list(dict.fromkeys(zip(table.model_a, table.model_b, strict=True))) == [("a", "b"), ("a", "c"), ("b", "c")]
    chosen = foremost(table)
    assert len(chosen) == 3
    assert chosen.layer.tolist() == [2, 2, 2]
    assert chosen.effect_size.abs().is_monotonic_decreasing


def test_an_analysis_has_three_places_and_equal_numbers_one():
    a, b = samples(1), samples(2, shift=1.0)
    (key,) = {(analysis, statistic) for analysis, statistic, _ in a}
    for name in ("second", "third", "fourth"):
        draw = np.random.default_rng(len(name))
        for some in (a, b):
            some[key[0], name, 1] = some[*key, 1] + draw.normal(0, 0.1, 40).astype(np.float32)
    for some in (a, b):  # the same number under two names
        some[key[0], "twin", 2] = some[*key, 2]
        some["other", "number", 0] = some[*key, 1]
    chosen = foremost(compare(a, b).assign(model_a="a", model_b="b"))
    assert chosen.analysis.value_counts().to_dict() == {key[0]: 3, "other": 1}
    assert len({key[1], "twin"} & set(chosen.statistic)) == 1


def test_the_table_is_read_as_it_was_written(tmp_path: Path):
    (tmp_path / "manifest.json").write_text('{"models": []}')
    assert Results(tmp_path).comparison.empty
    table = compare_all({"NA": samples(1), "007": {**samples(2), ("knn", "top1_k1", None): np.ones(40, np.float32)}})
    table.to_csv(tmp_path / "comparison.csv", index=False)
    pd.testing.assert_frame_equal(Results(tmp_path).comparison, table, check_dtype=False)
