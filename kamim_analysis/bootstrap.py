"""Confidence intervals: percentile bootstrap over images, and over images and seeds together; Wilson's of shares."""

from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES_AT_ONCE = 50


@lru_cache(maxsize=2)
def _draws(images: int, resamples: int, seed: int) -> NDArray[np.float32]:
    """How often each resample draws each image, [resamples, images]: its means are then one matrix product."""
    draw, counts = np.random.default_rng(seed), np.empty((resamples, images), np.float32)
    for part in np.array_split(counts, max(resamples // _RESAMPLES_AT_ONCE, 1)):  # NumPy counts in eight bytes
        part[:] = draw.multinomial(images, np.full(images, 1 / images), size=len(part))
    return counts


def mean_interval(
    values: NDArray[np.floating] | NDArray[np.bool_], *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the first axis (images) with its percentile bootstrap interval: (mean, low, high), each [...].

    Images are drawn with replacement; all columns share the draws, so their intervals are comparable. One image
    gives no interval: low and high are then NaN.

    Of booleans, right or wrong, the mean is a share, and its interval Wilson's score interval: where all images are
    right the bootstrap would give [1, 1], which claims too much, and of an accuracy of 0.99 it would hold the truth in
    22% of data sets of 24 images. By simulation 95% intervals hold the mean in 93% of data sets of 24 images, 94 of 100
    and 95 of 512 (normal; of long tails to one side 88, 91 and 94; shares of 0.5, 0.9 and 0.99: 92 to 98).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; Wilson, Journal of the American
    Statistical Association 22 (1927).

    >>> mean, low, high = mean_interval(np.arange(100.0)[:, None])
    >>> float(mean[0]), bool(low[0] < 49.5 < high[0])
    (49.5, True)
    >>> [round(float(end[0]), 3) for end in mean_interval(np.full((24, 1), True))]
    [1.0, 0.862, 1.0]
    """
    shares = np.asarray(values).dtype == np.bool_
    values = np.asarray(values, np.float64)
    images = len(values)
    flat = values.reshape(images, -1)
    mean = flat.mean(0)
    if images < 2:
        low = high = np.full_like(mean, np.nan)
    elif shares:
        low, high = _wilson(mean, images, confidence)
    else:
        tail = (1 - confidence) / 2
        # float32 suffices for the deviations, which are of one size, not for values that hardly differ
        deviations = _draws(images, resamples, seed) @ (flat - mean).astype(np.float32)
        low, high = mean + np.quantile(deviations.astype(np.float64) / images, [tail, 1 - tail], axis=0)
    shape = values.shape[1:]
    return mean.reshape(shape), low.reshape(shape), high.reshape(shape)


def _wilson(
    share: NDArray[np.float64], images: int, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The shares that a test of size 1 - confidence, by the normal approximation, does not refuse."""
    squared = NormalDist().inv_cdf((1 + confidence) / 2) ** 2 / images
    middle = (share + squared / 2) / (1 + squared)
    half = np.sqrt(squared * share * (1 - share) + squared**2 / 4) / (1 + squared)
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)  # beyond these by rounding alone


def crossed_interval(
    values: NDArray[np.floating] | NDArray[np.bool_], *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the first two axes (seeds, images) with an interval over both: (mean, low, high), each [...].

    For numbers that were measured with several seeds (draws of few training pictures, initialisations) on the same
    images: seeds and images are drawn with replacement, each on its own, and a cell counts as often as its seed was
    drawn times its image (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007), so that the interval
    is of another set of pictures and another draw together. Percentiles as in `mean_interval`, of whose draws of images
    these are. NaN: the image was not judged with that seed; such cells have no weight, nor have images without any.

    A single seed leaves an interval over images alone, of booleans Wilson's, a single image one over seeds, a single
    cell none (NaN). Of few seeds the bootstrap knows little: with S of them it sees (S - 1) / S of the variance between
    seeds. Where seeds differ more than images do, 95% intervals of 3, 5 and 12 seeds hold the mean in 83, 86 and 91% of
    simulations.

    >>> right = np.array([[1.0, 0.0, 1.0, np.nan], [1.0, 1.0, np.nan, 0.0]])
    >>> mean, low, high = crossed_interval(right)
    >>> round(float(mean), 3), bool(low <= mean <= high)
    (0.667, True)
    """
    if len(values) == 1 and np.asarray(values).dtype == np.bool_:
        return mean_interval(values[0], confidence=confidence)
    values = np.asarray(values, np.float64)
    values = values[:, ~np.isnan(values).all(axis=(0, *range(2, values.ndim)))]
    seeds, images = values.shape[:2]
    flat = values.reshape(seeds, images, -1)
    known = ~np.isnan(flat)
    mean = np.nanmean(flat, axis=(0, 1))
    if seeds * images < 2:
        low = high = np.full_like(mean, np.nan)
    else:
        tail = (1 - confidence) / 2
        total = _crossed_sums(np.where(known, flat - mean, 0), resamples, seed)
        count = _crossed_sums(known, resamples, seed)
        # a resample of cells that are all unknown says nothing
        deviations = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        low, high = mean + np.nanquantile(deviations, [tail, 1 - tail], axis=0)
    shape = values.shape[2:]
    return mean.reshape(shape), low.reshape(shape), high.reshape(shape)


def _crossed_sums(values: NDArray[Any], resamples: int, seed: int) -> NDArray[np.float64]:
    """Sums of values [seeds, images, columns] over cells, each as often as it is drawn: [resamples, columns]."""
    seeds, images, columns = values.shape
    of_images = _draws(images, resamples, seed) @ values.transpose(1, 0, 2).reshape(images, -1).astype(np.float32)
    drawn = np.random.default_rng([seed, 1]).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    by_seed = of_images.reshape(resamples, seeds, columns)
    sums: NDArray[np.float64] = np.einsum("rs,rsc->rc", drawn, by_seed, dtype=np.float64)
    return sums
