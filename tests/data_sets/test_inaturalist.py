"""iNaturalist's folders, against torchvision's reading of them."""

import logging
import shutil

import numpy as np
import pytest
import torchvision.datasets

from kamim_analysis.data import open_pictures


def test_it_is_what_torchvision_reads(tmp_path, trees):
    both = trees.both("inaturalist", trees.inaturalist(tmp_path))
    for version, pictures in zip(("2021_train", "2021_valid"), both, strict=True):
        theirs = torchvision.datasets.INaturalist(tmp_path, version)
        expected = {f"{version}/{theirs.all_categories[label]}/{file}": label for label, file in theirs.index}
        assert trees.labels(pictures) == expected
        assert pictures.classes == ("Lumbricus terrestris", "Sabella spallanzanii", "Kalmia latifolia")
    np.testing.assert_array_equal(pictures.read(2)[0], trees.colour(52))


@pytest.mark.parametrize("train", ["2021_train_mini", "train", "train_mini"])
def test_the_mini_training_set_and_the_archives_own_folders(tmp_path, trees, caplog, train):
    trees.inaturalist(tmp_path, train, "2021_valid" if train.startswith("2021") else "val")
    with caplog.at_level(logging.INFO):
        ours, val = trees.both("inaturalist", tmp_path)
    assert (len(ours), len(val)) == (6, 3)
    assert ours.identity(0) == f"{train}/{trees.species[0]}/00-aaaa-bbbb.jpg"
    assert ("mini training set" in caplog.text) == ("mini" in train)


def test_the_whole_training_set_goes_before_the_mini_one(tmp_path, trees):
    trees.inaturalist(trees.inaturalist(tmp_path), "2021_train_mini")
    assert open_pictures("torch/inat", "train", root=str(tmp_path)).identity(0).startswith("2021_train/")


def test_a_species_missing_from_one_split_keeps_its_number(tmp_path, trees):
    trees.inaturalist(tmp_path)
    shutil.rmtree(tmp_path / "2021_valid" / trees.species[1])
    train, val = trees.both("inaturalist", tmp_path)
    assert train.classes == val.classes
    assert val.labels.tolist() == [0, 2]
