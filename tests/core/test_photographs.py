"""The bundled photographs: splits that share no pixel, crops that repeat, scales that match."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamim_analysis import photographs
from kamim_analysis.data import open_pictures
from kamim_analysis.decode import read_rgb


@pytest.mark.parametrize("path", photographs.paths(), ids=lambda path: path.stem)
def test_regions_are_the_left_and_the_right_of_the_picture_without_a_common_column(path):
    picture = read_rgb(path)
    train, val = photographs.region(path, "train"), photographs.region(path, "val")
    assert train.shape[1] + val.shape[1] == picture.shape[1]
    np.testing.assert_array_equal(np.concatenate([train, val], 1), picture)
    assert train.shape[1] / picture.shape[1] == pytest.approx(0.7, abs=0.01)


def columns_of(crop: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """First and last column of the picture that a crop covers, from where its memory lies in the picture's."""
    offset = (crop.__array_interface__["data"][0] - picture.__array_interface__["data"][0]) // 3
    left = offset % picture.shape[1]
    return left, left + crop.shape[1]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(index=st.integers(0, 6143), seed=st.integers(0, 9))
def test_training_and_validation_crops_share_no_column(index, seed):
    path = photographs.paths()[index % 12]
    covered = {}
    for split in ("train", "val"):
        crop, label = photographs.crop(index, split, seed)
        assert label == index % 12
        region = photographs.region(path, split)
        covered[split] = columns_of(crop, region.base)
    assert covered["train"][1] <= photographs.region(path, "train").shape[1] <= covered["val"][0]
    assert covered["val"][1] <= region.base.shape[1]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_crop_is_a_square_of_the_region(split):
    for index in range(24):
        crop, label = photographs.crop(index, split, 0)
        region = photographs.region(photographs.paths()[label], split)
        side = crop.shape[0]
        assert crop.shape == (side, side, 3)
        windows = np.lib.stride_tricks.sliding_window_view(region, (side, side, 3))
        first = crop[0, 0]
        candidates = np.argwhere((region[: len(windows), : windows.shape[1]] == first).all(-1))
        assert any(np.array_equal(region[y : y + side, x : x + side], crop) for y, x in candidates)


def test_both_splits_show_textures_at_one_scale():
    # the docstring: a side of 40% to 100% of what fits the validation strip, which is the same for both splits
    for label, path in enumerate(photographs.paths()):
        fitting = min(photographs.region(path, "val").shape[:2])
        for split in ("train", "val"):
            sides = [photographs.crop(label + 12 * i, split, 0)[0].shape[0] for i in range(60)]
            assert min(sides) >= 0.4 * fitting - 2, (path.stem, split)
            assert max(sides) <= fitting + 1, (path.stem, split)
            assert np.mean(sides) == pytest.approx(0.7 * fitting, rel=0.1), (path.stem, split)


def test_a_crop_depends_on_seed_split_and_index_alone():
    first = [photographs.crop(i, "train", 3)[0] for i in range(20)]
    again = [photographs.crop(i, "train", 3)[0] for i in reversed(range(20))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = [photographs.crop(i, "train", 4)[0] for i in range(20)]
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_are_balanced_and_labels_true(split):
    pictures = open_pictures("photographs", split, seed=1)
    counts = np.bincount(pictures.labels, minlength=12)
    assert (counts == len(pictures) // 12).all()
    assert [pictures.read(i)[1] for i in range(30)] == pictures.labels[:30].tolist()
    assert len(pictures.classes) == 12
    assert pictures.identity(0) != pictures.identity(12)
    assert len({pictures.identity(i) for i in range(len(pictures))}) == len(pictures)
