"""ImageNet's folders and devkit, against torchvision's reading of them."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from kamim_analysis.data import Pictures, open_pictures
from kamim_analysis.errors import UserError

CRANES = ("crane (n02012849)", "crane (n03126707)")


def archived(folder: Path) -> None:
    """Put the folder's .tar.gz in its place."""
    with tarfile.open(folder.with_name(f"{folder.name}.tar.gz"), "w:gz") as tar:
        tar.add(folder, folder.name)
    shutil.rmtree(folder)


def by_file(labels: dict[str, int]) -> dict[str, int]:
    return {Path(name).name: label for name, label in labels.items()}


def opened(root: Path, split: str = "val") -> Pictures:
    return open_pictures("torch/imagenet", split, root=str(root))


def torchvision_s(root: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Files and classes as torchvision reads a root with the devkit's archive, check sums of the archives aside."""
    module = torchvision.datasets.imagenet
    meta = {kind: (name, None) for kind, (name, _) in module.ARCHIVE_META.items()}
    monkeypatch.setattr(module, "ARCHIVE_META", meta)
    return by_file(dict(module.ImageNet(root, split).imgs))


@pytest.mark.parametrize("split", ["train", "val"])
def test_class_folders_need_no_devkit(tmp_path, monkeypatch, trees, split):
    pictures = opened(trees.imagenet(tmp_path), split)
    found = trees.labels(pictures)
    assert len(found) == {"train": 6, "val": 5}[split]
    assert all((tmp_path / name).is_file() for name in found)
    archived(trees.devkit(tmp_path))
    assert by_file(found) == torchvision_s(tmp_path, split, monkeypatch)


def test_classes_have_names_and_two_cranes_are_told_apart(tmp_path, trees):
    trees.imagenet(tmp_path)
    trees.put(tmp_path / "train" / "zebra crossing" / "1.JPEG", 1)
    for pictures in trees.both("imagenet", tmp_path):
        assert pictures.classes == ("tench", *CRANES, "zebra crossing")


@pytest.mark.parametrize("packed", [True, False])
def test_flat_validation_pictures_get_their_classes_from_the_devkit(tmp_path, monkeypatch, trees, packed):
    root, other = trees.imagenet(tmp_path / "ours", flat=True), trees.imagenet(tmp_path / "torchvision", flat=True)
    with tarfile.open(other / "ILSVRC2012_img_val.tar", "w") as tar:
        for file in (other / "val").iterdir():
            tar.add(file, file.name)
    shutil.rmtree(other / "val")
    archived(trees.devkit(other))
    devkit = trees.devkit(root)
    if packed:
        archived(devkit)
    train, val = trees.both("imagenet", root)
    for split, pictures in (("train", train), ("val", val)):
        assert by_file(trees.labels(pictures)) == torchvision_s(other, split, monkeypatch)
    assert train.classes == val.classes == ("tench", *CRANES)
    np.testing.assert_array_equal(val.read(2)[0], trees.colour(13))


def test_flat_pictures_keep_their_classes_when_one_is_missing(tmp_path, trees):
    trees.devkit(trees.imagenet(tmp_path, flat=True))
    whole = trees.labels(opened(tmp_path))
    (tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    assert trees.labels(opened(tmp_path)) == {name: label for name, label in whole.items() if "00000002" not in name}


def test_a_smaller_training_set_numbers_its_classes_as_the_flat_pictures_do(tmp_path, trees):
    trees.devkit(trees.imagenet(tmp_path, flat=True))
    shutil.rmtree(tmp_path / "train" / "n01440764")
    train, val = trees.both("imagenet", tmp_path)
    assert train.classes == val.classes == ("tench", *CRANES)
    assert set(train.labels.tolist()) == {1, 2}


def test_the_training_set_alone_can_be_pretrained_on(tmp_path, trees):
    trees.imagenet(tmp_path, flat=True)
    assert len(opened(tmp_path, "train")) == 6
    shutil.rmtree(tmp_path / "val")
    assert len(opened(tmp_path, "train")) == 6


def test_a_stray_picture_among_flat_ones_is_refused(tmp_path, trees):
    trees.devkit(trees.imagenet(tmp_path, flat=True))
    trees.put(tmp_path / "val" / "ILSVRC2012_val_00000006.JPEG", 0)
    with pytest.raises(UserError, match=r"'val/ILSVRC2012_val_00000006.JPEG' .* to ILSVRC2012_val_00000005.JPEG"):
        opened(tmp_path)


def test_flat_pictures_without_devkit_are_refused(tmp_path, trees):
    trees.imagenet(tmp_path, flat=True)
    with pytest.raises(UserError, match=r"lacks '.*/ILSVRC2012_devkit_t12.tar.gz'; .* without class folders also"):
        opened(tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_a_devkit_without_its_files_is_refused(tmp_path, trees, packed):
    devkit = trees.devkit(trees.imagenet(tmp_path, flat=True))
    (devkit / "data" / "meta.mat").unlink()
    if packed:
        archived(devkit)
    with pytest.raises(UserError, match=f"lacks '{devkit}{'.tar.gz' if packed else '/data'}/meta.mat'"):
        opened(tmp_path)


def test_the_directory_is_left_as_it_is(tmp_path, trees):
    archived(trees.devkit(trees.imagenet(tmp_path, flat=True)))
    before = sorted(tmp_path.rglob("*"))
    trees.both("imagenet", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
