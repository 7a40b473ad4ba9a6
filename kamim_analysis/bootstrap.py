"""Confidence intervals: the percentile bootstrap over images."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=2)
def _draws(images: int, resamples: int, seed: int) -> NDArray[np.float32]:
    """How often each resample draws each image, [resamples, images]: its means are then one matrix product."""
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    return counts.astype(np.float32)


def mean_interval(
    values: NDArray[np.floating], *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the first axis (images) with its percentile bootstrap interval: (mean, low, high), each [...].

    Images are drawn with replacement; all columns share the draws, so their intervals are comparable. One image
    gives no interval: low and high are then NaN.

    >>> mean, low, high = mean_interval(np.arange(100.0)[:, None])
    >>> float(mean[0]), bool(low[0] < 49.5 < high[0])
    (49.5, True)
    """
    values = np.asarray(values, np.float64)
    images = len(values)
    flat = values.reshape(images, -1)
    mean = flat.mean(0)
    if images < 2:
        low = high = np.full_like(mean, np.nan)
    else:
        tail = (1 - confidence) / 2
        # float32 suffices for the deviations, which are of one size, not for values that hardly differ
        deviations = _draws(images, resamples, seed) @ (flat - mean).astype(np.float32)
        low, high = mean + np.quantile(deviations.astype(np.float64) / images, [tail, 1 - tail], axis=0)
    shape = values.shape[1:]
    return mean.reshape(shape), low.reshape(shape), high.reshape(shape)
