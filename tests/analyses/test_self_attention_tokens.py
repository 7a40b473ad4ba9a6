"""Mean pairwise cosine against a loop over pairs, the joint principal plane against a singular value decomposition."""

import itertools
import math

import numpy as np
import pytest
import torch

from kamim_analysis.analyses.self_attention_tokens import mean_pairwise_cosine, principal_plane


def cosine_by_loop(tokens: np.ndarray) -> list[float]:
    means = []
    for image in tokens.astype(np.float64):
        cosines = [sum(a * b) / math.sqrt(sum(a * a) * sum(b * b)) for a, b in itertools.combinations(image, 2)]
        means.append(sum(cosines) / len(cosines))
    return means


@pytest.mark.parametrize("offset", [0.0, 1.0, 50.0])
def test_mean_over_pairs(offset):
    tokens = torch.randn(3, 17, 8, generator=torch.Generator().manual_seed(0)) + offset
    np.testing.assert_allclose(mean_pairwise_cosine(tokens).numpy(), cosine_by_loop(tokens.numpy()), atol=1e-6)


def test_closed_forms():
    opposite = torch.tensor([[[1.0, 0.0], [-3.0, 0.0]]])
    torch.testing.assert_close(mean_pairwise_cosine(opposite), torch.tensor([-1.0]))
    simplex = torch.eye(5) - 0.2  # five vectors with equal angles: cosine -1 / 4
    torch.testing.assert_close(mean_pairwise_cosine(simplex[None]), torch.tensor([-0.25]))


def test_length_of_tokens_does_not_matter():
    tokens = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    longer = tokens * torch.rand(2, 9, 1, generator=torch.Generator().manual_seed(1)).add(0.1)
    torch.testing.assert_close(mean_pairwise_cosine(longer), mean_pairwise_cosine(tokens))


def test_many_nearly_equal_tokens_stay_below_one():
    tokens = torch.ones(1, 3136, 96) + 1e-3 * torch.randn(1, 3136, 96, generator=torch.Generator().manual_seed(0))
    unit = tokens.double() / tokens.double().norm(dim=-1, keepdim=True)
    gram = (unit @ unit.mT)[0]
    expected = (gram.sum() - gram.diagonal().sum()) / (3136 * 3135)
    np.testing.assert_allclose(float(mean_pairwise_cosine(tokens)), float(expected), atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_are_reduced_in_full_precision(dtype):
    tokens = (30 * torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0)) + 20).to(dtype)
    found = mean_pairwise_cosine(tokens)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), cosine_by_loop(tokens.double().numpy()), atol=1e-5)


def test_principal_plane_is_fitted_on_all_groups_together():
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(2, 10, 6)), draw.normal(size=(1, 10, 6)) + 4
    together = np.concatenate([first.reshape(-1, 6), second.reshape(-1, 6)])
    centred = together - together.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    expected = centred @ axes.T
    planes = principal_plane(first, second)
    assert [plane.shape for plane in planes] == [(2, 10, 2), (1, 10, 2)]
    found = np.concatenate([plane.reshape(-1, 2) for plane in planes])
    sign = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * sign, expected, rtol=1e-4, atol=1e-5)


def test_distances_within_two_dimensions_survive_the_projection():
    flat = np.random.default_rng(1).normal(size=(1, 12, 2)) @ np.random.default_rng(2).normal(size=(2, 7))
    (plane,) = principal_plane(flat)
    for a, b in itertools.combinations(range(12), 2):
        np.testing.assert_allclose(math.dist(plane[0, a], plane[0, b]), math.dist(flat[0, a], flat[0, b]), rtol=1e-4)
