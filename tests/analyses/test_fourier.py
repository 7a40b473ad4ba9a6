"""Relative log amplitude against numpy's FFT, centred, walked from DC along the diagonal."""

import math

import numpy as np
import pytest
import torch

from kamim_analysis.analyses.fourier import log_amplitude, relative_log_amplitude

GRIDS = [(12, 12), (14, 14), (7, 7), (6, 6), (4, 6), (9, 5), (3, 12), (2, 2), (1, 1)]


def half_diagonal(tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Each image's half diagonal from the centre (DC) towards the corner, mean over channels, in float64."""
    maps = tokens.astype(np.float64).transpose(0, 2, 1).reshape(len(tokens), -1, *grid)
    spectrum = np.fft.fftshift(np.log(np.abs(np.fft.fft2(maps)) + 1e-6), axes=(-2, -1))
    height, width = grid
    centred = spectrum[..., height // 2 :, width // 2 :]
    return np.diagonal(centred, axis1=-2, axis2=-1).mean(1)


@pytest.mark.parametrize("grid", GRIDS)
def test_log_amplitude_is_the_half_diagonal_of_numpy_s_spectrum(grid):
    tokens = torch.randn(3, grid[0] * grid[1], 5, generator=torch.Generator().manual_seed(0))
    expected = half_diagonal(tokens.numpy(), grid)
    np.testing.assert_allclose(log_amplitude(tokens, grid).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
def test_relative_log_amplitude_averages_images_and_channels_then_takes_dc_off(grid):
    tokens = torch.randn(4, grid[0] * grid[1], 3, generator=torch.Generator().manual_seed(1)) + 2
    diagonal = half_diagonal(tokens.numpy(), grid).mean(0)
    found = relative_log_amplitude(tokens, grid)
    np.testing.assert_allclose(found.numpy(), diagonal - diagonal[0], rtol=1e-4, atol=1e-4)
    assert float(found[0]) == 0


def test_square_grids_agree_with_the_cl_vs_mim_slice_of_the_whole_diagonal():
    for side in (12, 7):
        tokens = torch.randn(2, side * side, 4, generator=torch.Generator().manual_seed(2))
        maps = torch.fft.fftshift(torch.fft.fft2(tokens.double().mT.unflatten(2, (side, side))), (-2, -1))
        logs = (maps.abs() + 1e-6).log().mean((0, 1)).diagonal()[side // 2 :]
        found = relative_log_amplitude(tokens, (side, side)).double()
        torch.testing.assert_close(found, logs - logs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frequency", [1, 3, 5])
def test_a_single_diagonal_wave_shows_at_its_own_frequency(frequency):
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    wave = 1 + (2 * math.pi * frequency * (y + x) / 12).cos()
    found = relative_log_amplitude(wave.reshape(1, 144, 1), (12, 12))
    # |DC| = 144, and a cosine of amplitude 1 puts 144 / 2 on its frequency
    np.testing.assert_allclose(float(found[frequency]), math.log(0.5), atol=1e-5)
    assert all(float(found[i]) < -8 for i in range(1, 6) if i != frequency)


def test_scaling_tokens_changes_nothing():
    tokens = torch.randn(2, 36, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        relative_log_amplitude(1000 * tokens, (6, 6)), relative_log_amplitude(tokens, (6, 6)), rtol=1e-4, atol=1e-4
    )


def test_tokens_of_zeros_have_a_flat_spectrum():
    torch.testing.assert_close(relative_log_amplitude(torch.zeros(1, 36, 2), (6, 6)), torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_are_transformed_in_full_precision(dtype):
    tokens = (100 * torch.randn(2, 144, 3, generator=torch.Generator().manual_seed(4)) + 300).to(dtype)
    found = log_amplitude(tokens, (12, 12))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), half_diagonal(tokens.double().numpy(), (12, 12)), rtol=1e-4, atol=1e-4)


def test_the_tables_made_in_inference_mode_serve_training_too():
    with torch.inference_mode():
        log_amplitude(torch.ones(1, 15, 1), (3, 5))
    tokens = torch.rand(1, 15, 1, requires_grad=True)
    log_amplitude(tokens, (3, 5)).sum().backward()
    assert bool(tokens.grad.isfinite().all())
