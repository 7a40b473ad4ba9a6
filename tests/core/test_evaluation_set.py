"""Batches in the order asked for, unreadable pictures left out and counted, transforms as timm's."""

from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from kamim_analysis.data import Pictures, Unreadable, open_pictures
from kamim_analysis.evaluation_set import image_batches

NORMALISATION = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


@pytest.fixture
def folder(tmp_path) -> Pictures:
    """Ten pictures of two classes; 3 and 7 are broken."""
    for i in range(10):
        path = tmp_path / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 10), (20 * i, 255 - 20 * i, 7)).save(path)
        if i in (3, 7):
            path.write_bytes(b"broken")
    return open_pictures(str(tmp_path), "val")


def transform() -> object:
    return timm.data.create_transform(input_size=(3, 8, 8), is_training=False, **NORMALISATION)


def colour_of(pictures: Pictures, index: int) -> torch.Tensor:
    i = int(Path(pictures.identity(index)).stem)
    rgb = torch.tensor([20 * i, 255 - 20 * i, 7]) / 255
    mean, std = (torch.tensor(NORMALISATION[key]) for key in ("mean", "std"))
    return ((rgb - mean) / std)[:, None, None].expand(3, 8, 8)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_order_is_kept_and_unreadable_pictures_are_left_out(folder, batch_size, workers):
    wanted = [8, 1, 9, 0, 4, 3, 2, 6]
    unreadable = Unreadable(len(wanted))
    batches = list(image_batches(folder, wanted, transform(), unreadable, batch_size=batch_size, workers=workers))
    broken = [i for i in wanted if Path(folder.identity(i)).stem in ("3", "7")]
    expected = [i for i in wanted if i not in broken]
    assert broken
    assert torch.cat([batch.indices for batch in batches]).tolist() == expected
    assert torch.cat([batch.labels for batch in batches]).tolist() == [int(folder.labels[i]) for i in expected]
    images = torch.cat([batch.images for batch in batches])
    for image, i in zip(images, expected, strict=True):
        torch.testing.assert_close(image, colour_of(folder, i), atol=1e-5, rtol=0)
    assert unreadable.names == {folder.identity(i) for i in broken}


def test_a_batch_of_only_broken_pictures_is_skipped(folder):
    broken = [i for i in range(10) if Path(folder.identity(i)).stem in ("3", "7")]
    unreadable = Unreadable(3)
    batches = list(image_batches(folder, [*broken, 0], transform(), unreadable, batch_size=2))
    assert [batch.indices.tolist() for batch in batches] == [[0]]
    assert len(unreadable.names) == 2


def test_no_pictures_make_no_batches(folder):
    assert list(image_batches(folder, [], transform(), Unreadable(0))) == []


def test_transform_sees_the_picture_of_the_file(folder):
    seen = []
    list(image_batches(folder, [0], lambda image: seen.append(image) or torch.zeros(3, 8, 8), Unreadable(1)))
    np.testing.assert_array_equal(np.asarray(seen[0]), folder.read(0)[0])
