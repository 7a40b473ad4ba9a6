"""Unbiased linear CKA against sums over quadruples of images, closed forms, and the scatter of repeated draws."""

from itertools import permutations

import numpy as np
import pytest

from kamim_analysis.bootstrap import mean_interval
from kamim_analysis.cka import (
    cka_by_image,
    cka_of_grams,
    grams_of,
    group_sizes,
    linear_cka,
    u_centred,
    unbiased_hsic,
)


def features(images: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(images, channels))


def hsic_of_quadruples(k: np.ndarray, m: np.ndarray) -> float:
    """The U-statistic itself: K_ij (L_ij + L_qr - 2 L_iq) averaged over all ordered quadruples of different images."""
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(len(k)), 4)]
    return float(np.mean(terms))


def hsic_of_formula(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al., equation 5, as it is printed."""
    n, k, m = len(k), k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    both = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ m) + both - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3)))


def without(matrix: np.ndarray, image: int) -> np.ndarray:
    return np.delete(np.delete(matrix, image, 0), image, 1)


@pytest.mark.parametrize("images", [4, 5, 8])
def test_hsic_is_the_mean_over_all_quadruples(images):
    x, y = features(images, 3) + 2, features(images, 5, seed=1)
    k, m = x @ x.T, y @ y.T
    expected = hsic_of_quadruples(k, m)
    np.testing.assert_allclose(unbiased_hsic(k, m), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(hsic_of_formula(k, m), expected, rtol=1e-9, atol=1e-12)


def test_hsic_of_a_stack_is_that_of_each_matrix():
    x = np.random.default_rng(0).normal(size=(3, 9, 4))
    grams = x @ x.swapaxes(1, 2)
    expected = [hsic_of_formula(gram, grams[0]) for gram in grams]
    np.testing.assert_allclose(unbiased_hsic(grams, np.broadcast_to(grams[0], grams.shape)), expected)


def test_hsic_has_no_bias_where_features_are_independent():
    found = [
        unbiased_hsic(x @ x.T, y @ y.T) for i in range(400) for x, y in [(features(8, 6, i), features(8, 6, 10**6 + i))]
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))


def test_u_centring_does_not_see_shifts_and_is_done_once():
    x = features(12, 4)
    once = u_centred(x @ x.T)
    np.testing.assert_allclose(once.sum(1), 0, atol=1e-12)
    np.testing.assert_array_equal(np.diag(once), 0)
    np.testing.assert_allclose(u_centred(once), once, atol=1e-12)
    np.testing.assert_allclose(u_centred((x + 7) @ (x + 7).T), once, atol=1e-11)


def test_a_feature_set_is_itself_up_to_rotation_scale_and_shift():
    x = features(100, 12)
    rotation, _ = np.linalg.qr(features(12, 12, seed=1))
    for same in (x, x @ rotation, -3 * x, x + 100, x[:, ::-1], np.hstack([x, np.zeros((100, 5))])):
        assert linear_cka(x, same) == pytest.approx(1, abs=1e-6)
    stretched = x * np.r_[10.0, np.ones(11)]
    assert linear_cka(x, stretched) < 0.9
    assert linear_cka(x, stretched) == pytest.approx(linear_cka(stretched, x), abs=1e-7)


def test_random_wide_features_have_no_similarity_where_the_biased_estimate_finds_it():
    x, y = features(60, 768), features(60, 768, seed=1)
    centred = [z - z.mean(0) for z in (x, y)]
    k, m = (z @ z.T for z in centred)
    assert (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()) > 0.9
    assert abs(linear_cka(x, y)) < 0.02


def test_two_channels_of_which_one_is_shared_have_the_cka_of_the_population():
    # independent unit variances: HSIC is the squared covariance, so CKA = 1 / sqrt(2 x 1) for one of two shared
    x = features(20000, 2)
    assert linear_cka(x, x[:, :1]) == pytest.approx(1 / np.sqrt(2), abs=0.02)


@pytest.mark.parametrize("images", [4, 20, 64, 65, 150, 200])
def test_groups_hold_every_image_once_and_differ_by_one(images):
    sizes = group_sizes(images)
    assert sum(sizes) == images
    assert max(sizes) <= 64
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-images // 64)


def test_cka_of_grams_is_the_ratio_of_hsics_averaged_over_groups():
    layers = [features(150, channels, seed=channels) for channels in (3, 5, 8)]
    layers[1] = layers[1] + np.tanh(layers[0] @ features(3, 5))
    grams = np.stack([grams_of(layer) for layer in layers])
    assert grams.dtype == np.float32
    assert grams.shape == (3, 3, 50, 50)
    parts = [[layer[group::3] for group in range(3)] for layer in layers]

    def hsic(a: int, b: int) -> float:
        return float(np.mean([hsic_of_formula(x @ x.T, y @ y.T) for x, y in zip(parts[a], parts[b], strict=True)]))

    expected = [[hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)) for b in range(3)] for a in range(3)]
    np.testing.assert_allclose(cka_of_grams(grams, grams, 150), expected, atol=1e-6)
    np.testing.assert_allclose(cka_of_grams(grams[:1], grams, 150), expected[:1], atol=1e-6)


def test_groups_of_two_sizes_count_by_their_images():
    x, y = features(65, 4), features(65, 4, seed=1)
    y[:, :2] += x[:, :2]
    parts = [(z[0::2], z[1::2]) for z in (x, y)]

    def hsic(a: int, b: int) -> float:
        both = [hsic_of_formula(p @ p.T, q @ q.T) for p, q in zip(parts[a], parts[b], strict=True)]
        return (33 * both[0] + 32 * both[1]) / 65

    expected = hsic(0, 1) / np.sqrt(hsic(0, 0) * hsic(1, 1))
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-6)
    parts_of_images = cka_by_image(grams_of(x)[None], grams_of(y)[None], 65)
    assert parts_of_images.mean() == pytest.approx(expected, abs=1e-6)


def test_parts_of_hsic_are_the_pseudo_values_of_leaving_each_image_out():
    x = features(12, 3)
    k = x @ x.T
    y = x[:, :1] + features(12, 2, seed=1)
    m = y @ y.T
    whole = [hsic_of_formula(a, b) for a, b in ((k, m), (k, k), (m, m))]
    left = np.array([[hsic_of_formula(without(a, i), without(b, i)) for a, b in ((k, m), (k, k), (m, m))]
                     for i in range(12)])  # fmt: skip
    crossed, one, other = (12 * np.array(whole) - 11 * left).T
    scale = np.sqrt(whole[1] * whole[2])
    cka = whole[0] / scale
    expected = crossed / scale + cka * (1 - one / (2 * whole[1]) - other / (2 * whole[2]))
    found = cka_by_image(grams_of(x)[None], grams_of(y)[None], 12)[:, 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.mean(), cka, atol=1e-6)


@pytest.mark.parametrize("images", [40, 100])
def test_intervals_are_as_wide_as_repeated_draws_scatter_and_hold_the_truth(images):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(8, 8))

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(count, 8)) / np.arange(1, 9)
        return x, np.tanh(x @ mix) + 0.2 * rng.normal(size=(count, 8))

    truth = np.mean([linear_cka(*draw(6400)) for _ in range(3)])
    found, held, errors = [], [], []
    for _ in range(200):
        x, y = draw(images)
        parts = cka_by_image(grams_of(x)[None], grams_of(y)[None], images)[:, :, 0]
        mean, low, high = mean_interval(parts, resamples=200)
        found.append(mean[0])
        held.append(low[0] <= truth <= high[0])
        errors.append(parts.std() / np.sqrt(images))
    assert np.mean(found) == pytest.approx(truth, abs=0.02)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.2)
    assert 0.87 < np.mean(held) < 0.99


def test_features_that_are_the_same_for_all_images_have_no_cka():
    constant = np.full((20, 5), 0.1, np.float32)
    grams = np.stack([grams_of(constant), grams_of(features(20, 5))])
    for found in (cka_of_grams(grams, grams, 20), cka_by_image(grams, grams, 20).mean(0)):
        assert np.isnan(found[0]).all()
        assert np.isnan(found[:, 0]).all()
        assert found[1, 1] == pytest.approx(1)
    # and rounding is not taken for a difference
    assert np.isnan(linear_cka(constant * (1 + 1e-8 * features(20, 5)), features(20, 5)))


def test_size_of_features_does_not_matter():
    x, y = features(30, 4), features(30, 4) + features(30, 4, seed=1)
    expected = linear_cka(x, y)
    for scale in (1e-15, 1e15):
        assert linear_cka(scale * x, y) == pytest.approx(expected, abs=1e-6)
    assert linear_cka(x.astype(np.float16), y) == pytest.approx(expected, abs=1e-2)


def test_four_images_have_a_number_without_parts_and_three_are_refused():
    x, y = features(4, 2), features(4, 2, seed=1)
    assert np.isfinite(linear_cka(x, y))
    assert np.isnan(cka_by_image(grams_of(x)[None], grams_of(y)[None], 4)).all()
    for refused in (lambda: grams_of(x[:3]), lambda: unbiased_hsic(np.eye(3), np.eye(3))):
        with pytest.raises(ValueError, match="needs 4 images; there are 3"):
            refused()
