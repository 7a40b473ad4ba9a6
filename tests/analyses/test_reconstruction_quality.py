"""PSNR and SSIM of reconstructions against scikit-image, direct formulas, and torchmetrics (reference protocol)."""

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as pooled_psnr
from torchmetrics.functional.image import structural_similarity_index_measure as torch_ssim

from kamim_analysis.analyses._analysis import Batch, Subject
from kamim_analysis.analyses.reconstruction import (
    Quality,
    Reconstruction,
    error_against_density,
    reconstruction_quality,
)
from kamim_analysis.encoders import anatomy
from kamim_analysis.keypoint_maps import keypoint_map
from kamim_analysis.protocol import items
from kamim_analysis.reconstruction import MEAN, STD, MaskedImageModel, MaskSettings, masked_l1, mean_colour_l1


@pytest.fixture
def trio(pictures) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Originals, noisy predictions (some out of range) and masks."""
    original = np.stack([picture[:48, :64] for picture in pictures]) / 255
    draw = np.random.default_rng(0)
    prediction = original + draw.normal(scale=0.2, size=original.shape)
    mask = np.kron(draw.random((4, 6, 8)) < 0.6, np.ones((1, 8, 8), bool)).astype(bool)
    return original, prediction, mask


def test_psnr_masked_is_of_hidden_pixels_only(trio):
    original, prediction, mask = trio
    clipped = np.clip(prediction, 0, 1)
    expected = [-10 * math.log10(np.mean((o[m] - p[m]) ** 2)) for o, p, m in zip(original, clipped, mask, strict=True)]
    np.testing.assert_allclose(reconstruction_quality(*trio).psnr_masked, expected, rtol=1e-10)


def test_psnr_masked_is_scikit_image_s_of_the_hidden_pixels_laid_side_by_side(trio):
    original, prediction, mask = trio
    expected = [
        peak_signal_noise_ratio(o[m], np.clip(p[m], 0, 1), data_range=1.0)
        for o, p, m in zip(original, prediction, mask, strict=True)
    ]
    np.testing.assert_allclose(reconstruction_quality(*trio).psnr_masked, expected, rtol=1e-10)


def test_pasted_measures_are_scikit_image_s_of_the_pasted_picture(trio):
    original, prediction, mask = trio
    found = reconstruction_quality(*trio)
    for i, (o, p, m) in enumerate(zip(original, np.clip(prediction, 0, 1), mask, strict=True)):
        pasted = np.where(m[..., None], p, o)
        assert found.psnr_pasted[i] == pytest.approx(peak_signal_noise_ratio(o, pasted, data_range=1.0))
        ssim = [
            structural_similarity(
                o[..., c], pasted[..., c], data_range=1.0, gaussian_weights=True, sigma=1.5,
                use_sample_covariance=False, full=True,
            )[1]
            for c in range(3)
        ]  # fmt: skip
        whole = np.mean(ssim, 0)
        assert found.ssim_gaussian_pasted[i] == pytest.approx(whole.mean())
        assert found.ssim_gaussian_masked[i] == pytest.approx(whole[m].mean())


def test_visible_pixels_of_the_prediction_do_not_matter(trio):
    original, prediction, mask = trio
    changed = np.where(mask[..., None], prediction, 0.5)
    for a, b in zip(reconstruction_quality(original, changed, mask), reconstruction_quality(*trio), strict=True):
        np.testing.assert_array_equal(a, b)


def test_visible_pixels_of_the_original_do_not_matter_for_psnr_masked(trio):
    original, prediction, mask = trio
    changed = np.where(mask[..., None], original, 0.0)
    found = reconstruction_quality(changed, prediction, mask)
    np.testing.assert_allclose(found.psnr_masked, reconstruction_quality(*trio).psnr_masked)


def test_mask_true_is_hidden(trio):
    original, _, mask = trio
    perfect_where_hidden = np.where(mask[..., None], original, 0.0)
    perfect_where_visible = np.where(mask[..., None], 0.0, original)
    assert (reconstruction_quality(original, perfect_where_hidden, mask).psnr_masked == 100).all()
    assert (reconstruction_quality(original, perfect_where_visible, mask).psnr_masked < 30).all()


def test_pasting_raises_psnr_by_the_share_of_visible_pixels(trio):
    found = reconstruction_quality(*trio)
    gain = -10 * np.log10(trio[2].mean((1, 2)))
    np.testing.assert_allclose(found.psnr_pasted - found.psnr_masked, gain)


def test_a_perfect_prediction_has_100_db_and_ssim_1(trio):
    original, _, mask = trio
    for name, values in zip(Quality._fields, reconstruction_quality(original, original, mask), strict=True):
        np.testing.assert_allclose(values, 100 if "psnr" in name else 1)


def test_images_do_not_mix(trio):
    whole = reconstruction_quality(*trio)
    for i in range(4):
        alone = reconstruction_quality(*(part[i : i + 1] for part in trio))
        for a, b in zip(alone, whole, strict=True):
            np.testing.assert_allclose(a[0], b[i])


@pytest.fixture
def measured(tiny_vit) -> tuple[Reconstruction, torch.Tensor, Any]:
    """An analysis that has seen one batch of normalised photographs' size."""
    masked_model = MaskedImageModel(tiny_vit()).eval()
    subject = Subject(
        label="tiny", anatomy=anatomy(masked_model.encoder), mean=MEAN, std=STD, masked_model=masked_model,
        masking=MaskSettings(unit=16, ratio=0.6), seed=3,
    )  # fmt: skip
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    analysis = Reconstruction(subject)
    with torch.no_grad():
        analysis.update(
            Batch(images=images, labels=torch.zeros(6).long(), indices=torch.arange(10, 16), features=torch.zeros(6, 1))
        )
    return analysis, images, masked_model


def rows_of(analysis: Reconstruction) -> dict[str, Any]:
    return {row.statistic: row for row in analysis.compute().rows}


def masks_of(analysis: Reconstruction, images: torch.Tensor, ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    batch = Batch(images=images, labels=torch.zeros(6).long(), indices=torch.arange(10, 16), features=torch.zeros(6, 1))
    return analysis._masks(batch, ratio)


@torch.no_grad()
def test_masked_l1_is_the_loss_of_each_image_averaged(measured):
    analysis, images, model = measured
    mask, hidden = masks_of(analysis, images, 0.6)
    assert hidden.sum((1, 2)).tolist() == [3 * 16 * 16] * 6  # ceil(0.6 x 4) units of 16 px
    prediction = model(images, mask)
    rows = rows_of(analysis)
    each = [float(masked_l1(p[None], o[None], h[None])) for p, o, h in zip(prediction, images, hidden, strict=True)]
    mean = [float(mean_colour_l1(o[None], h[None])) for o, h in zip(images, hidden, strict=True)]
    assert rows["masked_l1"].value == pytest.approx(np.mean(each), rel=1e-5)
    assert rows["mean_colour_l1"].value == pytest.approx(np.mean(mean), rel=1e-5)
    assert rows["masked_l1"].images == 6


@torch.no_grad()
def test_the_sound_protocol_measures_pixels_between_0_and_1(measured):
    analysis, images, model = measured
    mask, hidden = masks_of(analysis, images, 0.6)
    std, mean = (torch.tensor(v)[None, :, None, None] for v in (STD, MEAN))
    original, prediction = (
        (t * std + mean).permute(0, 2, 3, 1).double().numpy() for t in (images, model(images, mask))
    )
    expected = reconstruction_quality(original, prediction, hidden.numpy())
    rows = rows_of(analysis)
    for name, values in expected._asdict().items():
        assert rows[name].value == pytest.approx(values.mean(), rel=1e-4)


@torch.no_grad()
def test_the_reference_protocol_is_torchmetrics_without_a_data_range_on_the_pooled_batch(measured):
    analysis, images, model = measured
    mask, hidden = masks_of(analysis, images, 0.4)
    assert hidden.sum((1, 2)).tolist() == [2 * 16 * 16] * 6  # the notebook's ratio: ceil(0.4 x 4)
    prediction = model(images, mask)
    span = float(images.max() - images.min())
    rows = rows_of(analysis)
    assert rows["psnr_reference"].value == pytest.approx(
        float(pooled_psnr(prediction, images, data_range=span)), rel=1e-5
    )
    assert rows["ssim_reference"].value == pytest.approx(float(torch_ssim(prediction, images)), rel=1e-4)


def test_intervals_enclose_their_values(measured):
    for row in rows_of(measured[0]).values():
        assert row.ci_low <= row.value <= row.ci_high


@torch.no_grad()
def test_pictures_shown_are_original_masked_predicted_and_pasted(measured):
    analysis, images, model = measured
    mask, hidden = masks_of(analysis, images, 0.6)
    pixels = analysis.compute().arrays["pixels"]
    assert pixels.shape == (4, 4, 32, 32, 3)
    assert pixels.dtype == np.uint8
    std, mean = (torch.tensor(v)[None, :, None, None] for v in (STD, MEAN))
    original, prediction = (
        ((t * std + mean) * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()[:4]
        for t in (images, model(images, mask))
    )
    covered = hidden[:4, ..., None].numpy()
    np.testing.assert_allclose(pixels[:, 0], original, atol=1)
    np.testing.assert_allclose(pixels[:, 2], prediction, atol=1)
    np.testing.assert_allclose(pixels[:, 3], np.where(covered, prediction, original), atol=1)
    np.testing.assert_allclose(pixels[:, 1], np.where(covered, np.round(255 * np.array(MEAN)), original), atol=1)


def test_a_picture_s_mask_depends_on_the_seed_and_the_picture_alone(measured):
    analysis, images, _ = measured
    together, _ = masks_of(analysis, images, 0.6)
    for i in range(6):
        batch = Batch(
            images=images[i : i + 1], labels=torch.zeros(1).long(), indices=torch.tensor([10 + i]),
            features=torch.zeros(1, 1),
        )  # fmt: skip
        assert torch.equal(analysis._masks(batch, 0.6)[0][0], together[i])
    assert len({tuple(mask.flatten().tolist()) for mask in together}) > 1


def test_errors_follow_density_among_hidden_patches_alone():
    draw = torch.Generator().manual_seed(0)
    density = torch.randint(0, 4, (3, 4, 6), generator=draw) / 4
    mask = torch.stack([torch.randperm(24, generator=draw).view(4, 6) < 15 for _ in range(3)])
    error = torch.rand(3, 4, 6, generator=draw)
    found = error_against_density(error, density, mask)
    for b in range(3):
        for column, of in enumerate((density[b], density[b].flip(1))):
            expected = spearmanr(error[b][mask[b]], of[mask[b]]).statistic
            assert float(found[b, column]) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(error_against_density(torch.where(mask, error, 9.0), density, mask), found)
    torch.testing.assert_close(error_against_density(density + 1, density, mask)[:, 0], torch.ones(3))


@pytest.mark.parametrize("family", ["vit", "swin"])
@torch.no_grad()
def test_error_against_keypoints_is_scipy_s_of_every_picture_s_hidden_patches(family, tiny_vit, tiny_swin, pictures):
    model = MaskedImageModel(tiny_vit(64) if family == "vit" else tiny_swin(64)).eval()
    body = anatomy(model.encoder)
    pixels = np.stack([np.full((64, 64, 3), 90, np.uint8), *[cv2.resize(picture, (64, 64)) for picture in pictures]])
    std, mean = (torch.tensor(v)[None, :, None, None] for v in (STD, MEAN))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    analysis = Reconstruction(
        Subject(
            label="tiny", anatomy=body, mean=MEAN, std=STD, masked_model=model, masking=MaskSettings(unit=16, ratio=0.6)
        )
    )
    batch = Batch(images=images, labels=torch.zeros(5).long(), indices=torch.arange(5), features=torch.zeros(5, 1))
    analysis.update(batch)
    mask, _ = analysis._masks(batch, 0.6)
    error, side = (model(images, mask) - images).abs().mean(1).numpy(), body.mask_patch
    each: dict[str, list[float]] = {"": [], "_control": []}
    for b in range(1, 5):  # the first has no keypoint
        cells = [tuple(cell) for cell in mask[b].nonzero().tolist()]
        blocks = [np.s_[i * side : (i + 1) * side, j * side : (j + 1) * side] for i, j in cells]
        for name, drawn in (("", keypoint_map(pixels[b])), ("_control", keypoint_map(pixels[b])[:, ::-1])):
            each[name].append(spearmanr([error[b][at].mean() for at in blocks], [drawn[at].mean() for at in blocks])[0])
    rows = rows_of(analysis)
    for name, values in each.items():
        assert rows[f"error_keypoint_spearman{name}"].value == pytest.approx(np.mean(values), abs=1e-4)
        assert rows[f"error_keypoint_spearman{name}"].images == 4
    excess = np.mean(np.subtract(each[""], each["_control"]))
    assert rows["error_keypoint_spearman_excess"].value == pytest.approx(excess, abs=1e-4)
    assert rows["masked_l1"].images == 5


@torch.no_grad()
def test_pictures_without_keypoints_leave_no_row_about_them(tiny_vit):
    model = MaskedImageModel(tiny_vit()).eval()
    subject = Subject(
        label="tiny", anatomy=anatomy(model.encoder), mean=MEAN, std=STD, masked_model=model,
        masking=MaskSettings(unit=16, ratio=0.6),
    )  # fmt: skip
    analysis = Reconstruction(subject)
    ramp = torch.linspace(-1, 1, 32).expand(2, 3, 32, 32).clone()  # smooth: no corner anywhere
    analysis.update(
        Batch(
            images=ramp, labels=torch.zeros(2).long(), indices=torch.arange(2),
            features=torch.zeros(2, 1),
        )
    )  # fmt: skip
    assert not any("keypoint" in statistic for statistic in rows_of(analysis))


def test_every_row_says_its_protocol(measured):
    for name, row in rows_of(measured[0]).items():
        told = items(row.protocol)
        reference = name.endswith("_reference")
        assert told["evaluation"] == "reconstruction"
        assert (told["resolution"], told["test"], told["seeds"], told["mask_unit"]) == ("32", "6", "1", "16")
        assert told["mask_ratio"] == ("0.4" if reference else "0.6"), name
        in_unit_interval = name.startswith(("psnr", "ssim")) and not reference
        assert told["pixels"].startswith("in [0, 1]" if in_unit_interval else "normalised"), name


@torch.no_grad()
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_pictures_of_one_colour_have_no_reference_psnr(tiny_vit, shift):
    """They have no range; nor has the prediction of a head of biases alone, and then SSIM's constants decide."""
    model = MaskedImageModel(tiny_vit()).eval()
    torch.nn.init.zeros_(model.decoder[0].weight)
    torch.nn.init.constant_(model.decoder[0].bias, 0.25 + shift)
    subject = Subject(
        label="tiny", anatomy=anatomy(model.encoder), mean=MEAN, std=STD, masked_model=model,
        masking=MaskSettings(unit=16, ratio=0.6),
    )  # fmt: skip
    analysis = Reconstruction(subject)
    images = torch.full((3, 3, 32, 32), 0.25)
    analysis.update(
        Batch(images=images, labels=torch.zeros(3).long(), indices=torch.arange(3), features=torch.zeros(3, 1))
    )
    rows = rows_of(analysis)
    assert "psnr_reference" not in rows
    for row in rows.values():
        assert np.isfinite([row.value, row.ci_low, row.ci_high]).all(), row
    # of two constants x and y, Wang's SSIM is (2xy + c) / (x^2 + y^2 + c), with c = 0.01^2 at a range of 1
    x, y, c = 0.25, 0.25 + shift, 1e-4
    assert rows["ssim_reference"].value == pytest.approx((2 * x * y + c) / (x * x + y * y + c), rel=1e-3)


@torch.no_grad()
def test_the_reference_psnr_s_interval_is_that_of_the_pooled_error(measured):
    analysis, images, model = measured
    mask, _ = masks_of(analysis, images, 0.4)
    error = (model(images, mask) - images).square().mean((1, 2, 3)).double().numpy()
    draws = np.random.default_rng(7).integers(0, 6, (20_000, 6))
    peak = float(images.max() - images.min())
    low, high = np.quantile(10 * np.log10(peak**2 / error[draws].mean(1)), [0.025, 0.975])
    row = rows_of(analysis)["psnr_reference"]
    assert (row.ci_low, row.ci_high) == pytest.approx((low, high), abs=0.1 * (high - low))
