"""How often intervals hold what they should, by simulation: populations are known, data sets are drawn from them.

Every interval of the project is one of three: `mean_interval` of a number of each picture (rows, differences between
models, jackknife's parts of CKA, RankMe and spectra), of accuracies Wilson's; `crossed_interval` of accuracies over
seeds and pictures (few-shot, fast_probe, aggregate); and that of a pooled error, which maps the first kind's ends. The
share of 95% intervals that hold the truth, of 4,000 data sets each (binomial error 0.004 where it is 0.95), of
accuracies by summing over the binomial distribution:

                                  24    100    512 pictures
    normal                      0.93   0.94   0.95
    Student's t, 3 degrees      0.92   0.93   0.94
    log-normal (skewness 6)     0.88   0.91   0.94
    accuracy of 0.5             0.94   0.94   0.95
    accuracy of 0.9             0.97   0.94   0.95
    accuracy of 0.99            0.98   0.92   0.96
    accuracy of 0.999           0.98   0.90   0.91

The bootstrap, which knows only what it has seen, would hold an accuracy of 0.99 in 0.22, 0.62 and 0.88. Over seeds it
is what there is, and too narrow where draws differ more than pictures: 0.83 with three draws, 0.86 with five, 0.91 with
twelve.
"""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from kamim_analysis.bootstrap import crossed_interval, mean_interval
from kamim_analysis.comparison import LEVEL, compare, holm

Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Values]

POPULATIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda draw, shape: draw.normal(size=shape), 0.0),
    "t3": (lambda draw, shape: draw.standard_t(3, size=shape), 0.0),
    "log-normal": (lambda draw, shape: draw.lognormal(size=shape), np.exp(0.5)),
}
PICTURES = (24, 100, 512)
#: the shares in the docstring
COVERAGE = {"normal": (0.93, 0.943, 0.947), "t3": (0.924, 0.935, 0.94), "log-normal": (0.876, 0.914, 0.945)}
OF_ACCURACIES = {
    0.5: (0.936, 0.943, 0.953),
    0.9: (0.972, 0.936, 0.954),
    0.99: (0.976, 0.921, 0.959),
    0.999: (0.976, 0.905, 0.906),
}
_DATA_SETS, _AT_ONCE = 800, 100


def holding(low: Values, high: Values, truth: float) -> Values:
    """Whether each interval holds the truth; ends that are the truth but for float32 do."""
    return (low <= truth + 1e-6) & (truth - 1e-6 <= high)


@pytest.mark.parametrize("images", PICTURES)
@pytest.mark.parametrize("population", POPULATIONS)
def test_intervals_over_pictures_hold_the_mean_as_often_as_is_told(population: str, images: int) -> None:
    draw_from, truth = POPULATIONS[population]
    draw = np.random.default_rng(images)
    held = []
    for seed in range(_DATA_SETS // _AT_ONCE):  # a column is a data set; those of one call share resamples
        values = draw_from(draw, (images, _AT_ONCE))
        _, low, high = mean_interval(values, seed=seed)
        held.append(holding(low, high, truth))
    share, expected = np.mean(held), COVERAGE[population][PICTURES.index(images)]
    # three binomial deviations, and what the resamples that a call shares add
    assert share == pytest.approx(expected, abs=3.3 * np.sqrt(expected * (1 - expected) / _DATA_SETS) + 0.01)


def test_populations_whose_intervals_users_rely_on_are_near_95_percent() -> None:
    """From a hundred pictures up, all but long tails to one side."""
    assert min(min(COVERAGE[name][1:]) for name in ("normal", "t3")) >= 0.93
    assert COVERAGE["log-normal"][2] >= 0.94
    assert min(min(shares) for shares in OF_ACCURACIES.values()) >= 0.90


def of_every_count(images: int) -> NDArray[np.bool_]:
    """[images, images + 1]: column k has k images right."""
    return np.arange(images)[:, None] < np.arange(images + 1)


@pytest.mark.parametrize("images", PICTURES)
@pytest.mark.parametrize("accuracy", OF_ACCURACIES)
def test_intervals_of_accuracies_hold_them_as_often_as_is_told(accuracy: float, images: int) -> None:
    mean, low, high = mean_interval(of_every_count(images))
    chance = binom.pmf(np.arange(images + 1), images, accuracy)
    share = chance[(low <= accuracy) & (accuracy <= high)].sum()
    assert share == pytest.approx(OF_ACCURACIES[accuracy][PICTURES.index(images)], abs=1e-3)
    bootstrapped = mean_interval(of_every_count(images).astype(np.float64))
    assert np.array_equal(bootstrapped[0], mean)
    if accuracy == 0.99:
        share = chance[holding(*bootstrapped[1:], accuracy) > 0].sum()
        assert share == pytest.approx({24: 0.22, 100: 0.62, 512: 0.88}[images], abs=0.02)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("images", [2, 7, 100])
def test_intervals_of_accuracies_are_wilsons(images: int, confidence: float) -> None:
    mean, low, high = mean_interval(of_every_count(images), confidence=confidence)
    for count in range(images + 1):
        expected = binomtest(count, images).proportion_ci(confidence, method="wilson")
        assert (low[count], high[count]) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert low[count] <= mean[count] == count / images <= high[count]
    assert (high[-1], low[0]) == (1, 0)
    assert low[-1] < 1


def test_booleans_of_one_image_have_no_interval_and_of_one_seed_wilsons() -> None:
    assert np.isnan(mean_interval(np.array([[True]]))[1:]).all()
    right = np.arange(30) % 7 > 0
    assert crossed_interval(right[None]) == mean_interval(right)
    assert crossed_interval(np.stack([right, right]))[1] == crossed_interval(np.stack([right, right]) * 1.0)[1]


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_intervals_of_paired_differences_hold_the_difference(shift: float) -> None:
    """Each layer is a data set of its own: two models on the same hundred pictures, as skewed as the pictures are."""
    draw = np.random.default_rng(1)
    picture = draw.lognormal(size=(600, 100))
    first, second = ((picture + draw.normal(size=picture.shape)).astype(np.float32) for _ in range(2))
    a, b = (
        {("an", "s", layer): values[layer] for layer in range(600)} for values in (first, second + np.float32(shift))
    )
    table = compare(a, b)
    assert np.mean(holding(table.ci_low.to_numpy(), table.ci_high.to_numpy(), shift)) == pytest.approx(0.943, abs=0.035)


def families(kind: str, count: int, statistics: int, images: int) -> Values:
    """p-values [families, statistics] of two models that do not differ, as `compare` gives them."""
    draw = np.random.default_rng(2)
    shape = (count, statistics, images)
    if kind == "right or wrong":
        first, second = ((draw.random(shape) < 0.9).astype(np.float32) for _ in range(2))
    else:
        # layers of a model go together, and a picture's number is skewed
        shared = draw.normal(size=(2, count, 1, images)) if kind == "alike" else np.zeros((2, 1, 1, 1))
        first, second = ((draw.normal(size=shape) * 0.5 + shared[i]).astype(np.float32) for i in range(2))
        first, second = np.exp(first), np.exp(second)
    keys = [("an", str(family), layer) for family in range(count) for layer in range(statistics)]
    a, b = (dict(zip(keys, values.reshape(-1, images), strict=True)) for values in (first, second))
    return compare(a, b).p_value.to_numpy().reshape(count, statistics)


@pytest.mark.parametrize("images", [24, 100])
@pytest.mark.parametrize("kind", ["independent", "alike", "right or wrong"])
def test_one_false_finding_among_many_numbers_is_as_rare_as_promised(kind: str, images: int) -> None:
    """Under the null, at most 5% of comparisons may find anything; without the correction most of them would."""
    p_values = families(kind, 300, 20, images)
    found = np.mean([(holm(family) < LEVEL).any() for family in p_values])
    assert found <= LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / 300)
    uncorrected = (p_values < LEVEL).any(1).mean()
    assert uncorrected > (0.05 if kind == "alike" else 0.5)


def test_what_differs_is_found() -> None:
    """So that finding nothing is no way to pass: half a deviation, on a hundred pictures, among twenty numbers."""
    draw = np.random.default_rng(3)
    a, b = ({("an", "s", i): draw.normal(size=100).astype(np.float32) for i in range(20)} for _ in range(2))
    b = {key: values + np.float32(1.0) for key, values in b.items()}
    assert (compare(a, b).p_holm < LEVEL).mean() > 0.9


@pytest.mark.parametrize(
    ("seeds", "images", "spread", "expected"),
    [
        (5, 100, 0.1, 0.97), (5, 512, 0.3, 0.92), (12, 100, 0.3, 0.955),  # pictures decide
        (3, 100, 1.0, 0.83), (5, 512, 1.0, 0.86), (12, 100, 1.0, 0.915),  # draws decide
    ],
)  # fmt: skip
def test_intervals_over_draws_and_pictures(seeds: int, images: int, spread: float, expected: float) -> None:
    """Right or wrong by a logit of the picture (deviation 1.5) and of the draw of training pictures (`spread`)."""
    draw = np.random.default_rng(4)
    everything = 1 + np.hypot(spread, 1.5) * draw.normal(size=400_000)
    truth = float(np.mean(1 / (1 + np.exp(-everything))))
    held = []
    for seed in range(3):
        logit = 1 + spread * draw.normal(size=(seeds, 1, _AT_ONCE)) + 1.5 * draw.normal(size=(1, images, _AT_ONCE))
        right = (draw.random((seeds, images, _AT_ONCE)) < 1 / (1 + np.exp(-logit))).astype(np.float64)
        _, low, high = crossed_interval(right, resamples=500, seed=seed)
        held.append(holding(low, high, truth))
    assert np.mean(held) == pytest.approx(expected, abs=3.3 * np.sqrt(expected * (1 - expected) / 300))
