"""The percentile bootstrap against scipy's and slow loops, and how often its interval holds the true mean."""

import numpy as np
import pytest
import scipy.stats

from kamim_analysis.bootstrap import crossed_interval, mean_interval


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_scipy_s_percentile_interval(confidence):
    values = np.random.default_rng(0).exponential(size=60)
    mean, low, high = mean_interval(values[:, None], confidence=confidence, resamples=20000)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=20000, method="percentile", random_state=1
    ).confidence_interval
    width = expected.high - expected.low
    np.testing.assert_allclose(mean[0], values.mean())
    np.testing.assert_allclose([low[0], high[0]], [expected.low, expected.high], atol=0.03 * width)


def test_scipy_s_percentile_interval_of_two_images():
    _, low, high = mean_interval(np.array([[0.0], [1.0]]), resamples=4000)
    assert (low[0], high[0]) == (0, 1)  # both images the same in half of the draws


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_about_95_percent_of_intervals_hold_the_true_mean(draw):
    samples = getattr(np.random.default_rng(0), draw)(size=(80, 600))
    true = {"normal": 0.0, "exponential": 1.0}[draw]
    # every column is an experiment; each gets resamples of its own seed
    held = [
        low[0] <= true <= high[0]
        for i in range(600)
        for _, low, high in [mean_interval(samples[:, i : i + 1], resamples=300, seed=i)]
    ]
    assert 0.91 < np.mean(held) < 0.975


def test_one_image_has_no_interval():
    mean, low, high = mean_interval(np.array([[1.0, 2.0]]))
    np.testing.assert_array_equal(mean, [1, 2])
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_shape_beyond_images_is_kept_and_columns_do_not_mix():
    values = np.random.default_rng(0).normal(size=(30, 2, 3))
    whole = mean_interval(values)
    assert [part.shape for part in whole] == [(2, 3)] * 3
    for i, j in np.ndindex(2, 3):
        for part, alone in zip(whole, mean_interval(values[:, i, j]), strict=True):
            np.testing.assert_allclose(part[i, j], alone, atol=1e-6)  # float32 sums in another order


def test_intervals_repeat_and_follow_the_seed():
    values = np.random.default_rng(0).normal(size=(30, 1))
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1)[1] != mean_interval(values)[1]


def test_equal_values_have_an_interval_of_no_width():
    mean, low, high = mean_interval(np.full((10, 1), 0.3))
    np.testing.assert_allclose([mean[0], low[0], high[0]], 0.3)


def test_half_precision_values_are_averaged_in_double():
    values = np.full((5000, 1), 0.1, np.float16)
    np.testing.assert_allclose(mean_interval(values, resamples=10)[0], np.float64(np.float16(0.1)), rtol=1e-12)


def test_an_interval_narrows_with_the_square_root_of_images():
    draw = np.random.default_rng(0)
    widths = [np.ptp(mean_interval(draw.normal(size=(n, 1)))[1:]) for n in (100, 10000)]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.25)


def crossed_by_loop(values, draw, resamples):
    """Cells counted one by one, as often as their seed and their image are drawn."""
    means = []
    for _ in range(resamples):
        seeds, images = (draw.integers(0, n, n) for n in values.shape)
        cells = [values[s, i] for s in seeds for i in images if not np.isnan(values[s, i])]
        means.append(np.mean(cells))
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("unknown", [0, 0.3])
def test_crossed_interval_by_loop(unknown):
    draw = np.random.default_rng(0)
    values = draw.random((4, 12)) + draw.normal(0, 0.3, (4, 1))
    values[draw.random(values.shape) < unknown] = np.nan
    mean, low, high = crossed_interval(values, resamples=20000)
    assert mean == pytest.approx(np.nanmean(values))
    expected = crossed_by_loop(values, np.random.default_rng(1), 4000)
    np.testing.assert_allclose([low, high], expected, atol=0.04 * np.ptp(expected))


def test_about_95_percent_of_crossed_intervals_hold_the_true_mean():
    draw = np.random.default_rng(0)
    held, over_images_alone = [], []
    for i in range(300):
        values = draw.normal(size=(12, 1)) + draw.normal(size=(1, 40)) + draw.normal(size=(12, 40))
        _, low, high = crossed_interval(values, resamples=300, seed=i)
        held.append(low <= 0 <= high)
        _, low, high = mean_interval(values.mean(0), resamples=300, seed=i)
        over_images_alone.append(low <= 0 <= high)
    assert 0.90 < np.mean(held) < 0.985
    assert np.mean(over_images_alone) < 0.8, "what it is for: the seeds' share of the variance"


def test_seeds_that_agree_leave_the_interval_over_images():
    values = np.random.default_rng(0).normal(size=40)
    crossed = crossed_interval(np.tile(values, (5, 1)))
    np.testing.assert_allclose(crossed, mean_interval(values), atol=1e-6)
    np.testing.assert_allclose(crossed_interval(values[None]), mean_interval(values), atol=1e-6)


def test_columns_of_crossed_values_do_not_mix_and_images_never_judged_do_not_count():
    values = np.random.default_rng(0).normal(size=(3, 20, 2))
    values[0, :5] = np.nan
    whole = crossed_interval(values)
    for j in range(2):
        np.testing.assert_allclose([part[j] for part in whole], crossed_interval(values[..., j]), atol=1e-6)
    more = np.concatenate([values, np.full((3, 4, 2), np.nan)], axis=1)
    np.testing.assert_allclose(crossed_interval(more), whole)


def test_a_single_cell_has_no_interval():
    mean, low, high = crossed_interval(np.array([[0.5]]))
    assert mean == 0.5
    assert np.isnan(low)
    assert np.isnan(high)
