"""Places' lists and folders, against torchvision's reading of them."""

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from kamim_analysis.data import open_pictures
from kamim_analysis.errors import UserError


@pytest.mark.parametrize("size", ["large", "256"])
def test_it_is_what_torchvision_reads(tmp_path, monkeypatch, trees, size):
    trees.places365(tmp_path, size)
    monkeypatch.setattr(torchvision.datasets.places365, "check_integrity", lambda *_, **__: True)
    for split, pictures in zip(("train-standard", "val"), trees.both("places365", tmp_path), strict=True):
        theirs = torchvision.datasets.Places365(tmp_path, split, small=size == "256")
        assert {str(tmp_path / name): label for name, label in trees.labels(pictures).items()} == dict(theirs.imgs)
        for i, (file, _) in enumerate(theirs.imgs):
            np.testing.assert_array_equal(pictures.read(i)[0], np.asarray(Image.open(file)))
    assert pictures.identity(1) == f"val_{size}/Places365_val_00000002.jpg"


def test_classes_are_named_by_their_numbers_not_by_the_alphabet(tmp_path, trees):
    _, val = trees.both("places365", trees.places365(tmp_path))
    assert val.classes == ("airfield", "bazaar/outdoor", "bazaar/indoor")
    assert [val.classes[label] for label in val.labels] == ["bazaar/indoor", "airfield", "bazaar/outdoor", "bazaar/indoor"]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("large", "small", "read"),
    [
        (("train", "val"), ("train", "val"), ("data_large_standard", "val_large")),
        (("val",), ("train", "val"), ("data_256_standard", "val_256")),
        (("val",), ("train",), ("data_256_standard", "val_large")),
    ],
)
def test_both_splits_are_of_one_size_where_they_can_be(tmp_path, trees, large, small, read):
    trees.places365(trees.places365(tmp_path, "large", large), "256", small)
    assert tuple(pictures.identity(0).split("/")[0] for pictures in trees.both("places365", tmp_path)) == read


def test_the_archives_own_folder_is_found(tmp_path, trees):
    trees.places365(tmp_path, "256")
    (tmp_path / "data_256_standard").rename(tmp_path / "data_256")
    train, _ = trees.both("places365", tmp_path)
    assert train.identity(0) == "data_256/a/airfield/00000001.jpg"
    np.testing.assert_array_equal(train.read(0)[0], trees.colour(0))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("places365_val.txt", "Places365_val_00000001.jpg 3\n", "do not number the same classes"),
        ("categories_places365.txt", "/a/airfield 1\n/b/bazaar/indoor 2\n/b/barn 3\n", "do not number the same"),
        ("categories_places365.txt", "/a/airfield 0\n/b/bazaar/indoor 1\n", "do not number the same classes"),
        ("places365_val.txt", "Places365_val_00000001.jpg 0\nPlaces365_val_00000002.jpg\n", "line 2 of .*_val.txt'"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, trees, file, text, said):
    trees.places365(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=said):
        open_pictures("torch/places365", "val", root=str(tmp_path))
