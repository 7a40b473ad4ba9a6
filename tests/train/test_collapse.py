"""Collapse diagnostics, against loops over every pair and known spectra."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from kamim_analysis.train.collapse import (
    cosine_between,
    cosine_within,
    diagnosis,
    diagnostics,
    participation_ratio,
)


def cosine(left: Tensor, right: Tensor) -> float:
    return float(left @ right / (left.norm() * right.norm()))


def test_cosine_within_is_the_mean_over_all_pairs() -> None:
    latents = torch.randn(3, 5, 7, dtype=torch.float64) + 0.5
    expected = [sum(cosine(a, b) for a in image for b in image) / 25 for image in latents]
    torch.testing.assert_close(cosine_within(latents), torch.tensor(expected, dtype=torch.float64))


def test_cosine_between_is_the_mean_over_pairs_of_different_images() -> None:
    latents = torch.randn(4, 3, 6, dtype=torch.float64) + 0.3
    pairs = [cosine(a, b) for left, right in itertools.permutations(latents, 2) for a in left for b in right]
    assert float(cosine_between(latents)) == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)


def test_participation_ratio_counts_the_directions() -> None:
    axes = 5 * torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    assert float(participation_ratio(axes[None, :4])) == pytest.approx(4)
    assert float(participation_ratio(torch.randn(1, 1, 6).expand(3, 5, 6))) == pytest.approx(1)
    noisy = torch.randn(1, 1, 64, dtype=torch.float64) + 1e-3 * torch.randn(9, 20, 64, dtype=torch.float64)
    assert float(participation_ratio(noisy)) == pytest.approx(1, abs=1e-4)  # collapsed, whatever the noise


@pytest.mark.parametrize("channels", [8, 64])  # more and fewer than there are latents
def test_participation_ratio_is_that_of_the_eigenvalues_and_of_the_cosines(channels: int) -> None:
    latents = torch.randn(4, 5, channels, dtype=torch.float64) + 0.3
    units = [row / row.norm() for row in latents.flatten(0, 1)]
    eigenvalues = torch.linalg.eigvalsh(torch.stack([torch.outer(unit, unit) for unit in units]).sum(0))
    expected = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    squares = [cosine(a, b) ** 2 for a in units for b in units]
    assert float(participation_ratio(latents)) == pytest.approx(expected, rel=1e-10)
    assert expected == pytest.approx(len(squares) / sum(squares), rel=1e-10)


def test_participation_ratio_of_many_latents_looks_at_images_and_patches_evenly() -> None:
    latents = torch.randn(50, 64, 4, dtype=torch.float64)  # 3,200 latents, every fourth looked at
    seen = latents.flatten(0, 1)[::4]
    torch.testing.assert_close(participation_ratio(latents), participation_ratio(seen[None]))


def test_diagnosis_tells_collapse_from_trivial_solutions_and_health() -> None:
    one = torch.randn(1, 1, 8)
    per_image = torch.randn(6, 1, 8)
    noise = 0.01 * torch.randn(6, 9, 8)
    said = []
    for latents in (one + noise, per_image + noise, torch.randn(6, 9, 8)):
        numbers = diagnostics("target", latents)
        said.append(diagnosis(float(numbers["target_cosine_between"]), float(numbers["target_cosine_within"])))
    assert said[0].startswith("collapsed: the targets of all images are alike (mean cosine 1.00)")
    assert said[1].startswith("trivial: the targets of each image's patches are alike (mean cosine 1.00)")
    assert said[2] == ""


def test_a_single_image_has_no_pairs_of_images() -> None:
    latents = torch.randn(1, 5, 4)
    assert math.isnan(cosine_between(latents))
    assert sorted(diagnostics("visible", latents)) == ["visible_cosine_within", "visible_participation_ratio"]


def test_diagnostics_give_no_gradient() -> None:
    latents = torch.randn(2, 3, 4, requires_grad=True)
    assert not any(number.requires_grad for number in diagnostics("target", latents).values())
