"""KAMIM's weights (equations 1 and 2) and the loss they weigh, against float64 loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kamim_analysis.density import density_weights, patch_weights
from kamim_analysis.errors import UserError
from kamim_analysis.keypoint_maps import keypoint_map
from kamim_analysis.patches import enlarge
from kamim_analysis.reconstruction import masked_l1, mean_colour_l1, pixel_mask


def weights_by_loop(maps: np.ndarray, patch: int, temperature: float) -> np.ndarray:
    """W = exp(D / T) / min exp(D / T), D the share of set pixels of each weight patch; one image at a time."""
    batch, height, width = maps.shape
    result = np.zeros((batch, height // patch, width // patch))
    for b in range(batch):
        for y in range(height // patch):
            for x in range(width // patch):
                cell = maps[b, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
                result[b, y, x] = math.exp(sum(map(int, cell.flat)) / patch**2 / temperature)
        result[b] /= result[b].min()
    return result


@pytest.mark.parametrize("temperature", [0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("patch", [8, 16, 32])
def test_weights_of_photographs(pictures, patch, temperature):
    maps = np.stack([keypoint_map(np.ascontiguousarray(picture[:192, :192])) for picture in pictures])
    weights = patch_weights(torch.from_numpy(maps), patch, temperature)
    np.testing.assert_allclose(weights.numpy(), weights_by_loop(maps, patch, temperature), rtol=2e-6)
    assert bool((weights.amin((1, 2)) == 1).all())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    patch=st.sampled_from([1, 2, 3, 8]),
    temperature=st.floats(0.05, 10),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_weights_of_random_maps(rows, columns, patch, temperature, share, seed):
    maps = (np.random.default_rng(seed).random((2, rows * patch, columns * patch)) < share).astype(np.uint8)
    weights = patch_weights(torch.from_numpy(maps), patch, temperature)
    np.testing.assert_allclose(weights.numpy(), weights_by_loop(maps, patch, temperature), rtol=1e-5)


def test_defaults_are_the_papers():
    maps = torch.rand(1, 32, 32).round().to(torch.uint8)
    torch.testing.assert_close(patch_weights(maps), patch_weights(maps, patch_size=8, temperature=0.25))


@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("temperature", [1e-3, 0.25, 100.0])
def test_equal_density_everywhere_weighs_exactly_one(fill, temperature):
    maps = torch.full((2, 64, 48), fill, dtype=torch.uint8)
    assert bool((patch_weights(maps, 8, temperature) == 1).all())


def test_each_image_has_its_own_minimum():
    density = torch.tensor([[[0.5, 0.75]], [[0.0, 0.25]]])
    torch.testing.assert_close(density_weights(density, 0.25), torch.tensor([[[1.0, math.e]], [[1.0, math.e]]]))


@pytest.mark.parametrize("temperature", [1e-3, 5e-3, 0.0288, 0.0289])
def test_low_temperatures_stay_finite(temperature):
    maps = torch.zeros(1, 16, 16, dtype=torch.uint8)
    maps[:, :8, :8] = 1
    maps[:, 8:, 8:12] = 1
    weights = patch_weights(maps, 8, temperature)
    assert bool(weights.isfinite().all())
    # exp(1 / T) and exp(0.5 / T), or 2^50 where they exceed it
    largest = 2.0**50
    for found, density in ((weights[0, 0, 0], 1.0), (weights[0, 1, 1], 0.5), (weights[0, 0, 1], 0.0)):
        logarithm = min(density / temperature, math.log(largest))
        np.testing.assert_allclose(math.log(float(found)), logarithm, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -0.25, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(UserError, match=r"temperature .* is not positive; KAMIM's default is 0\.25"):
        patch_weights(torch.zeros(1, 8, 8, dtype=torch.uint8), 8, temperature)


def test_a_weight_patch_that_does_not_divide_the_map_is_refused():
    with pytest.raises(UserError, match="weight patch size 7 does not divide 16x16"):
        patch_weights(torch.zeros(1, 16, 16, dtype=torch.uint8), 7)


def example(weighted: bool) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(2, 3, 16, 24, generator=draw) for _ in range(2))
    mask = pixel_mask(torch.rand(2, 4, 6, generator=draw) < 0.6, 4)
    weight = (
        enlarge(density_weights(torch.rand(2, 2, 3, generator=draw), 0.25), 8) if weighted else torch.ones(2, 16, 24)
    )
    return prediction, target, mask, weight


def loss_by_loop(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor) -> float:
    """Equation 3 pixel by pixel: hidden pixels of all images together, three colours each."""
    total, hidden = 0.0, 0
    for b, y, x in np.ndindex(*mask.shape):
        if mask[b, y, x]:
            hidden += 1
            for c in range(3):
                total += abs(float(prediction[b, c, y, x]) - float(target[b, c, y, x])) * float(weight[b, y, x])
    return total / (hidden * 3)


@pytest.mark.parametrize("weighted", [True, False])
def test_masked_l1_by_loop(weighted):
    prediction, target, mask, weight = example(weighted)
    loss = masked_l1(prediction, target, mask, weight if weighted else None)
    np.testing.assert_allclose(float(loss), loss_by_loop(prediction, target, mask, weight), rtol=1e-5)


def test_weights_of_one_give_simmim_s_loss_and_gradient_bit_for_bit():
    prediction, target, mask, _ = example(False)
    weight = enlarge(patch_weights(torch.zeros(2, 16, 24, dtype=torch.uint8), 8, 0.25), 8)
    losses, gradients = [], []
    for weighting in (None, weight):
        leaf = prediction.clone().requires_grad_()
        loss = masked_l1(leaf, target, mask, weighting)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(leaf.grad)
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(gradients[0], gradients[1])


def test_gradient_is_the_sign_times_the_weight_over_hidden_values():
    prediction, target, mask, weight = example(True)
    prediction.requires_grad_()
    masked_l1(prediction, target, mask, weight).backward()
    scale = (weight * mask)[:, None] / (3 * int(mask.sum()))
    torch.testing.assert_close(prediction.grad, torch.sign(prediction.detach() - target) * scale, rtol=1e-6, atol=0)


def test_visible_pixels_do_not_matter():
    prediction, target, mask, weight = example(True)
    changed = torch.where(mask[:, None], prediction, 1e3)
    assert torch.equal(masked_l1(changed, target, mask, weight), masked_l1(prediction, target, mask, weight))


def test_mean_colour_l1_by_loop():
    _, target, mask, _ = example(False)
    constant = target.double().mean((2, 3), keepdim=True).expand_as(target)
    expected = loss_by_loop(constant, target, mask, torch.ones(2, 16, 24))
    np.testing.assert_allclose(float(mean_colour_l1(target, mask)), expected, rtol=1e-5)


def test_pixel_mask_covers_whole_patches():
    mask = torch.tensor([[[True, False], [False, True]]])
    expected = np.kron(mask[0].numpy(), np.ones((3, 3), bool))
    np.testing.assert_array_equal(pixel_mask(mask, 3)[0].numpy(), expected)


def test_loss_and_gradient_norm_stay_finite_at_the_lowest_temperature():
    maps = torch.ones(2, 32, 32, dtype=torch.uint8)
    maps[:, :8, :8] = 0  # all weight patches but one at the largest weight
    weight = enlarge(patch_weights(maps, 8, 1e-3), 8)
    prediction = torch.full((2, 3, 32, 32), 4.0, requires_grad=True)
    loss = masked_l1(prediction, torch.zeros(2, 3, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool), weight)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(torch.linalg.vector_norm(prediction.grad).isfinite())
