"""Pictures of one colour, pictures that are all keypoints, and temperatures from 1e-6 to 1e6: KAMIM's weights and loss.

Compared with equations 1 to 3 of the paper in float64.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch

from kamim_analysis import plugins
from kamim_analysis.density import density_weights, patch_weights, temperature_for
from kamim_analysis.errors import UserError
from kamim_analysis.keypoints.random import Random
from kamim_analysis.patches import enlarge
from kamim_analysis.reconstruction import masked_l1, pixel_mask
from kamim_analysis.shapes import Grid
from kamim_analysis.train.ibot_loss import patch_loss
from kamim_analysis.train.mae_objective import hidden_mean
from kamim_analysis.train.objectives.latent_mim import LatentMIM

TEMPERATURES = [1e-45, 1e-6, 1e-3, 0.0289, 0.25, 1.0, 1e3, 1e6]
CEILING = 2.0**50
PACKAGE = "kamim_analysis.keypoints"


def detector(name: str) -> Any:
    (cls,) = (
        value
        for value in vars(plugins.load(PACKAGE, name, "detector")).values()
        if isinstance(value, type) and value.__module__ == f"{PACKAGE}.{name}" and hasattr(value, "density")
    )
    return cls()


def weights_in_float64(density: np.ndarray, temperature: float) -> np.ndarray:
    """exp((D - min D) / T), 2^50 at most, in logarithms: nothing overflows."""
    excess = density.astype(np.float64) - density.min((1, 2), keepdims=True)
    return np.exp(np.minimum(excess / temperature, math.log(CEILING)))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_at_any_temperature_and_precision(dtype, temperature):
    density = torch.tensor([[[0.0, 1 / 64], [0.5, 1.0]], [[0.75, 0.75], [0.75, 0.75]]]).to(dtype)
    weights = density_weights(density, temperature)
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = weights_in_float64(density.double().numpy(), temperature)
    np.testing.assert_allclose(np.log(weights.double().numpy()), np.log(expected), rtol=1e-6, atol=1e-7)
    assert bool((weights[1] == 1).all())
    # a temperature without effect at one end, without proportion at the other
    assert bool((weights[0] == torch.tensor([[1, CEILING], [CEILING, CEILING]])).all()) == (temperature <= 1e-6)


@pytest.mark.parametrize("fill", [0, 1], ids=["no keypoint", "all keypoints"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_pictures_without_contrast_in_density_weigh_one_and_cost_simmim_s_loss(temperature, fill):
    weight = enlarge(patch_weights(torch.full((2, 16, 24), fill, dtype=torch.uint8), 8, temperature), 8)
    prediction, target = torch.randn(2, 3, 16, 24, requires_grad=True), torch.randn(2, 3, 16, 24)
    hidden = torch.rand(2, 16, 24) < 0.6
    losses = [masked_l1(prediction, target, hidden, some) for some in (weight, None)]
    gradients = [torch.autograd.grad(loss, prediction)[0] for loss in losses]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("hidden_patches", [1, 6], ids=["one patch hidden", "all hidden"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_loss_and_gradients_of_kamim_are_finite_and_those_of_float64(temperature, dtype, hidden_patches):
    density = torch.rand(2, 2, 3)
    density[:, 0, 0] = 0
    weight = enlarge(density_weights(density, temperature), 8)
    mask = (torch.arange(6) >= 6 - hidden_patches).view(1, 2, 3).expand(2, 2, 3)
    hidden, target = pixel_mask(mask, 8), torch.randn(2, 3, 16, 24)
    prediction = torch.randn(2, 3, 16, 24).to(dtype).requires_grad_()
    loss = masked_l1(prediction, target, hidden, weight)
    (gradient,) = torch.autograd.grad(loss, prediction)

    exact = np.kron(weights_in_float64(density.numpy(), temperature), np.ones((8, 8)))
    difference = prediction.detach().double().numpy() - target.double().numpy()
    share = (exact * hidden.numpy())[:, None] / (3 * hidden.sum().item())
    expected = (np.abs(difference) * share).sum()
    # exp of a large exponent multiplies the rounding of its argument
    tolerance = 1e-5 + 1e-7 * min(1 / temperature, 35)
    assert bool(torch.linalg.vector_norm(gradient.float()).isfinite())
    np.testing.assert_allclose(float(loss.detach()), expected, rtol=tolerance)
    of_half = 2**-8 if dtype == torch.bfloat16 else 0
    np.testing.assert_allclose(gradient.double().numpy(), np.sign(difference) * share, rtol=tolerance + of_half)


@pytest.mark.parametrize("temperature", [1e-6, 0.25, 1e6])
def test_the_other_losses_that_weigh_patches_are_finite_and_those_of_float64(temperature):
    density = torch.rand(2, 2, 3)
    weight, exact = density_weights(density, temperature).flatten(1), weights_in_float64(density.numpy(), temperature)
    error, hidden = torch.rand(2, 6, requires_grad=True), torch.rand(2, 6) < 0.7
    loss = hidden_mean(error, hidden, weight)
    expected = (error.detach().double().numpy() * exact.reshape(2, 6))[hidden.numpy()].mean()
    np.testing.assert_allclose(float(loss.detach()), expected, rtol=1e-5)
    student, teacher = (
        torch.randn(int(hidden.sum()), 5, requires_grad=True),
        torch.randn(int(hidden.sum()), 5).softmax(-1),
    )
    places = hidden.flatten().nonzero()[:, 0]
    ibot = patch_loss(student, teacher, hidden, places, 0.1, weight)
    logits = student.detach().double().numpy() / 0.1
    logarithms = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropies = -(teacher.double().numpy() * logarithms).sum(-1) * exact.reshape(-1)[places.numpy()]
    images = places.numpy() // 6
    means = [entropies[images == i].mean() if (images == i).any() else 0 for i in range(2)]
    np.testing.assert_allclose(float(ibot.detach()), np.mean(means), rtol=1e-5)
    (loss + ibot).backward()
    assert bool(torch.linalg.vector_norm(error.grad).isfinite())
    assert bool(torch.linalg.vector_norm(student.grad).isfinite())


@pytest.mark.parametrize("name", plugins.names(PACKAGE))
@pytest.mark.parametrize("gray", [0, 128, 255])
def test_every_detector_and_control_takes_a_picture_of_one_colour(name, gray):
    image = np.full((64, 96, 3), gray, np.uint8)
    for style in ("drawn", "points"):
        density = detector(name).density(image, style, 8)
        assert density.shape == (8, 12)
        if name == "random":  # which does not look at the picture
            assert 0 < density.mean() < 1
        else:
            assert (density == density[0, 0]).all()
            assert bool((density_weights(torch.from_numpy(density)[None], 1e-6) == 1).all())


@pytest.mark.parametrize("name", plugins.names(PACKAGE))
def test_every_detector_and_control_takes_a_picture_full_of_corners(name):
    image = np.random.default_rng(0).choice([0, 255], (64, 96, 1)).repeat(3, axis=2).astype(np.uint8)
    found = {style: detector(name).density(image, style, 8) for style in ("drawn", "points")}
    for density in found.values():
        assert np.isfinite(density).all()
        assert 0 <= density.min() <= density.max() <= 1
        weights = density_weights(torch.from_numpy(density)[None], 1e-6)
        assert bool(weights.isfinite().all())
        assert float(weights.min()) == 1
    if name in ("fast", "agast", "entropy", "variance", "edges"):
        assert found["drawn"].mean() > 0.1  # full of them


def test_a_picture_whose_every_pixel_is_a_keypoint():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    density = Random(share=1.0).density(image, "points", 8)
    np.testing.assert_array_equal(density, 1)
    with pytest.raises(UserError, match="the density of 95% of the patches is the least of their picture"):
        temperature_for(torch.from_numpy(density)[None], quantile=0.95, target=10.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_auto_temperature_of_half_precision_densities(dtype):
    density = (torch.arange(100) / 128).view(1, 10, 10).to(dtype)
    temperature = temperature_for(density, quantile=0.95, target=10.0)
    assert temperature == pytest.approx(94 / 128 / math.log(10))
    assert float(density_weights(density, temperature).flatten()[94]) == pytest.approx(10, rel=1e-5)


def test_a_single_hidden_patch_cannot_be_told_from_others():
    grid = Grid(3, 3)
    with pytest.raises(UserError, match=r"objective\.visible 8 hides one of 3 x 3 patches"):
        LatentMIM(visible=8).amount_of(grid)
    assert LatentMIM(visible=7).amount_of(grid).ratio == pytest.approx(2 / 9)
    assert LatentMIM(visible=8, loss="l2").amount_of(grid).ratio == pytest.approx(1 / 9)
