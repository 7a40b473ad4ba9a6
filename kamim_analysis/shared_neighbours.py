"""Nearest neighbours that two sets of features share (Huh et al., arXiv 2405.07987); numpy only, for figures too."""

import numpy as np
from jaxtyping import Float, Int


def shared_neighbours(one: Int[np.ndarray, "i k"], other: Int[np.ndarray, "i k"]) -> Float[np.ndarray, " i"]:
    """Share of each image's k neighbours by one set of features that are its neighbours by another too, in [0, 1].

    |N(i) and M(i)| / k for numbers of neighbours [images, k], each once a row. Two unrelated sets of features share
    k / (images - 1) by chance. Unlike CKA it looks at what is near and forgets how near. Numbers below 0 say that an
    image has no neighbours (all features are alike), and its share is then NaN.

    >>> shared_neighbours(np.array([[1, 2], [0, 2], [0, 1]]), np.array([[1, 3], [3, 4], [1, 0]]))
    array([0.5, 0. , 1. ])
    """
    shared = [len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(one, other, strict=True)]
    unknown = np.any((one < 0) | (other < 0), axis=1)
    shares: Float[np.ndarray, " i"] = np.where(unknown, np.nan, np.array(shared) / one.shape[1])
    return shares


def shared_neighbours_map(one: Int[np.ndarray, "a i k"], other: Int[np.ndarray, "b i k"]) -> Float[np.ndarray, "a b"]:
    """Mean share over images for every layer of one model with every layer of another: [layers, layers].

    NaN for layers with an image that has no neighbours (numbers below 0).
    """
    images, k = one.shape[1:]
    # every image's neighbours get numbers of their own, so that one search finds what all images share
    own = np.arange(images)[:, None] * images
    sets_one, sets_other = ([(layer + own).ravel() for layer in some] for some in (one, other))
    counts = [[len(np.intersect1d(a, b, assume_unique=True)) for b in sets_other] for a in sets_one]
    unknown = np.logical_or.outer(*((layers < 0).any((1, 2)) for layers in (one, other)))
    shares: Float[np.ndarray, "a b"] = np.where(unknown, np.nan, np.array(counts) / (images * k))
    return shares
