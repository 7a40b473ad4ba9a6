"""Two models on the same images, paired image by image: which numbers differ by more than noise."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import results
from .bootstrap import mean_interval
from .results import Row, Samples

COLUMNS = ["model_a", "model_b", "analysis", "statistic", "layer", "a", "b", "difference", "ci_low", "ci_high",
           "effect_size", "p_value", "p_holm", "images"]  # fmt: skip
#: what differs beyond noise has a p below this after Holm's correction
LEVEL = 0.05
_OF_ANALYSIS = 3


def write_and_compare(
    directory: Path,
    manifest: dict[str, Any],
    rows: Mapping[str, Sequence[Row]],
    arrays: Mapping[str, Mapping[str, Mapping[str, NDArray[Any]]]],
    samples: Mapping[str, Samples],
) -> None:
    """`results.write`, and comparison.csv where there are several models."""
    if len(samples) > 1:
        compare_all(samples).to_csv(directory / results.COMPARISON, index=False)
    # last, since the manifest tells the check sums of all files
    results.write(directory, manifest, rows, arrays, samples)


def compare_all(samples: Mapping[str, Samples]) -> pd.DataFrame:
    """Every pair of models, by label: the rows of `compare` with the two labels before them."""
    tables = [compare(samples[a], samples[b]).assign(model_a=a, model_b=b) for a, b in combinations(samples, 2)]
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True)[COLUMNS] if tables else pd.DataFrame(columns=COLUMNS)


def compare(a: Samples, b: Samples) -> pd.DataFrame:
    """Model b less model a, for every number of both: one row for each analysis, statistic and layer.

    `difference` is the mean over images of each image's difference, with its percentile bootstrap interval over
    images; pairing removes what the images themselves contribute. `effect_size` is that mean in standard deviations of
    the differences (Cohen's d of paired samples). `p_value` is Student's paired t-test, and `p_holm` the same after
    Holm's correction for the number of rows, which bounds the chance of even one false finding among them.

    Numbers whose images differ in number between the models are left out, as are layers that one of them lacks.
    """
    shared = [key for key in a if key in b and len(a[key]) == len(b[key]) > 1]
    rows = []
    for images in sorted({len(a[key]) for key in shared}):
        keys = [key for key in shared if len(a[key]) == images]
        first, second = (np.stack([one[key] for key in keys], axis=1).astype(np.float64) for one in (a, b))
        rows.append(_differences(keys, first, second))
    if not rows:
        return pd.DataFrame(columns=COLUMNS[2:])
    table = pd.concat(rows, ignore_index=True)
    table["p_holm"] = holm(table["p_value"].to_numpy())
    return table[COLUMNS[2:]]


def _differences(
    keys: list[tuple[str, str, int | None]], first: NDArray[np.float64], second: NDArray[np.float64]
) -> pd.DataFrame:
    """Rows for values [images, keys] of the two models, without the correction."""
    differences = second - first
    mean, low, high = mean_interval(differences)
    deviation = differences.std(0, ddof=1)
    # no spread at all: either nothing differs, or all images by the same amount
    effect = np.divide(mean, deviation, out=np.where(mean == 0, 0.0, np.copysign(np.inf, mean)), where=deviation > 0)
    table = pd.DataFrame(keys, columns=["analysis", "statistic", "layer"]).astype({"layer": "Int64"})
    return table.assign(
        a=first.mean(0), b=second.mean(0), difference=mean, ci_low=low, ci_high=high, effect_size=effect,
        p_value=_paired_t(effect, len(differences)), images=len(differences),
    )  # fmt: skip


def _paired_t(effect: NDArray[np.float64], images: int) -> NDArray[np.float64]:
    """Two-sided p of the paired t-test, whose statistic is the effect size times the root of the number of images."""
    from scipy.stats import t

    p: NDArray[np.float64] = 2 * t.sf(np.abs(effect) * np.sqrt(images), images - 1)
    return p


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values after Holm's step-down correction (1979), in the order given.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    count = len(p_values)
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate((count - np.arange(count)) * p_values[order])
    result = np.empty(count)
    result[order] = np.minimum(corrected, 1)
    return result


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """Each statistic at the layer where its effect is largest, the largest first, of an analysis at most three.

    The layers of a statistic and the statistics of an analysis differ together: they would fill a list. Of numbers that
    are the same, such as attention with and without a cls token that neither model has, the first stands for all.
    """
    pair = ["model_a", "model_b"]
    order = table.effect_size.abs().round(4).sort_values(ascending=False, kind="stable").index
    chosen = table.loc[order].drop_duplicates([*pair, "analysis", "statistic"])
    same = chosen[[*pair, "analysis", "layer"]].assign(a=chosen.a.map("{:.4g}".format), b=chosen.b.map("{:.4g}".format))
    return chosen[~same.duplicated()].groupby([*pair, "analysis"], sort=False).head(_OF_ANALYSIS)


def foremost(table: pd.DataFrame, count: int = 10) -> pd.DataFrame:
    """Of the differences beyond noise, the first of each pair of models as they are `ranked`."""
    return ranked(table[table.p_holm < LEVEL]).groupby(["model_a", "model_b"], sort=False).head(count)
