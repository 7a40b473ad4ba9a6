"""Alignment: what the crop is, that it repeats, and that the number is the paper's."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resize

from kamim_analysis.analyses._analysis import Subject
from kamim_analysis.analyses._suite import Suite
from kamim_analysis.analyses.alignment import Alignment, augmented, crop_box, squared_distance
from kamim_analysis.encoders import anatomy
from kamim_analysis.evaluation_set import ImageBatch
from kamim_analysis.reconstruction import MEAN, STD


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def subject_of(model, **options) -> Subject:
    return Subject(label="tiny", anatomy=anatomy(model), mean=MEAN, std=STD, **({"encoder": model} | options))


def pictures(count: int) -> ImageBatch:
    images = torch.stack([torch.randn(3, 32, 32, generator=seeded(i)) + torch.eye(3)[i % 3][:, None, None]
                          for i in range(count)])  # fmt: skip
    return ImageBatch(images, torch.arange(count) % 3, torch.arange(count))


def values_of(encoder, batch: ImageBatch, **options) -> dict[str, float]:
    suite = Suite(encoder, subject_of(encoder, **options), ["alignment"])
    suite.update(batch)
    return {row.statistic: row.value for row in suite.outcome().rows}


@pytest.mark.parametrize("size", [(32, 32), (224, 160), (8, 8)])
def test_crops_lie_inside_and_have_simclr_s_area_and_ratio(size):
    height, width = size
    boxes = [crop_box(height, width, seeded(i)) for i in range(300)]
    for top, left, tall, wide in boxes:
        assert 0 <= top <= top + tall <= height
        assert 0 <= left <= left + wide <= width
    cropped = [(tall, wide) for _, _, tall, wide in boxes if (tall, wide) != size]
    # rounding to pixels moves both a little
    slack = 2 / min(size)
    assert all(0.08 - slack < tall * wide / (height * width) <= 1 for tall, wide in cropped)
    assert all(abs(math.log(wide / tall)) < math.log(4 / 3) + 4 * slack for tall, wide in cropped)
    areas = [tall * wide / (height * width) for tall, wide in cropped]
    assert np.ptp(areas) > 0.7


def test_a_crop_fills_the_picture_and_is_mirrored_half_the_time():
    image = torch.randn(3, 24, 32, generator=seeded(0))
    mirrored = 0
    for seed in range(100):
        found = augmented(image, seeded(seed))
        assert found.shape == image.shape
        top, left, tall, wide = crop_box(24, 32, seeded(seed))
        plain = resize(image[:, top : top + tall, left : left + wide], [24, 32], interpolation=3, antialias=True)
        is_mirrored = torch.allclose(found, plain.flip(-1), atol=1e-5)
        assert is_mirrored != torch.allclose(found, plain, atol=1e-5)
        mirrored += is_mirrored
    assert 35 < mirrored < 65


def test_augmentation_repeats_with_its_seed_and_takes_no_global_random_numbers():
    image, state = torch.randn(3, 16, 16, generator=seeded(0)), torch.get_rng_state()
    assert torch.equal(augmented(image, seeded(3)), augmented(image, seeded(3)))
    assert not torch.equal(augmented(image, seeded(3)), augmented(image, seeded(4)))
    assert torch.equal(torch.get_rng_state(), state)


def test_distance_is_that_of_unit_features_between_0_and_4():
    one, other = torch.randn(9, 5, generator=seeded(0)), torch.randn(9, 5, generator=seeded(1))
    cosine = torch.nn.functional.cosine_similarity(one, other)
    torch.testing.assert_close(squared_distance(one, other), 2 - 2 * cosine)
    torch.testing.assert_close(squared_distance(one, -one), torch.full((9,), 4.0))
    torch.testing.assert_close(squared_distance(one.bfloat16(), 3 * one.bfloat16()), torch.zeros(9), atol=1e-4, rtol=0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_rows_are_distances_between_features_of_pictures_and_of_their_crops(tiny_vit, pooling):
    encoder, batch = tiny_vit(), pictures(6)
    values = values_of(encoder, batch, pooling=pooling, seed=2)
    crops = torch.stack([augmented(image, seeded(2 * 1_000_003 + i)) for i, image in enumerate(batch.images)])
    tokens = [encoder.forward_features(images) for images in (batch.images, crops)]
    one, other = (t[:, 1:].mean(1) if pooling == "mean" else t[:, 0] for t in tokens)
    one, other = (torch.nn.functional.normalize(f) for f in (one, other))
    assert values["alignment"] == pytest.approx(float((one - other).square().sum(1).mean()), abs=1e-5)
    others = float(torch.pdist(one).square().mean())
    assert values["distance_to_others"] == pytest.approx(others, abs=1e-5)
    assert values["relative_alignment"] == pytest.approx(values["alignment"] / others, rel=1e-4)


def test_pictures_that_look_alike_everywhere_do_not_move(tiny_vit):
    plain = torch.linspace(-1, 1, 5)[:, None, None, None].expand(-1, 3, 32, 32)
    values = values_of(tiny_vit(), ImageBatch(plain, torch.arange(5), torch.arange(5)))
    assert values["alignment"] == pytest.approx(0, abs=1e-5)
    assert values["relative_alignment"] < 1e-3


def test_two_pictures_have_no_others_to_compare_with(tiny_vit):
    assert set(values_of(tiny_vit(), pictures(2))) == {"alignment"}


def test_without_an_encoder_it_is_skipped_with_a_reason(tiny_vit):
    encoder = tiny_vit()
    suite = Suite(encoder, subject_of(encoder, encoder=None), ["alignment"])
    assert suite.skipped == {"alignment": "there is no encoder to pass the crops through"}
    assert Alignment.unavailable(subject_of(encoder)) is None
