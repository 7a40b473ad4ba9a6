"""Shares of common neighbours against a loop over sets."""

import numpy as np
import pytest

from kamim_analysis.shared_neighbours import shared_neighbours, shared_neighbours_map


def random_neighbours(layers: int, images: int, k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([[np.sort(rng.permutation(images)[:k]) for _ in range(images)] for _ in range(layers)], np.int32)


def test_share_is_the_intersection_of_sets():
    one, other = random_neighbours(2, 40, 7)
    expected = [len({*a} & {*b}) / 7 for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    np.testing.assert_allclose(shared_neighbours(one, other), expected)
    np.testing.assert_array_equal(shared_neighbours(one, one), 1)


def test_order_of_neighbours_does_not_matter():
    one, other = random_neighbours(2, 40, 7)
    np.testing.assert_array_equal(shared_neighbours(one[:, ::-1], other), shared_neighbours(one, other))


def test_map_is_the_mean_share_of_every_two_layers():
    one, other = random_neighbours(3, 30, 5), random_neighbours(2, 30, 5, seed=1)
    expected = [[shared_neighbours(a, b).mean() for b in other] for a in one]
    np.testing.assert_allclose(shared_neighbours_map(one, other), expected)


def test_unrelated_neighbours_share_what_chance_gives():
    one, other = random_neighbours(1, 300, 10), random_neighbours(1, 300, 10, seed=1)
    assert shared_neighbours_map(one, other)[0, 0] == pytest.approx(10 / 300, abs=0.01)
