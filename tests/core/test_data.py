"""Pictures from directories, their stamps, and the account of unreadable ones."""

import gzip
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kamim_analysis.data import Unreadable, check_source, has_two_splits, open_pictures
from kamim_analysis.decode import UnreadableImage
from kamim_analysis.errors import UserError


def colour(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (8, 10, 3)).astype(np.uint8)


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colour(seed)).save(path)
    return path


def listed(source: Path, split: str = "val") -> list[tuple[str, int]]:
    pictures = open_pictures(str(source), split)
    return [(pictures.identity(i), pictures.read(i)[1]) for i in range(len(pictures))]


def test_a_directory_with_train_and_val(tmp_path):
    for seed, name in enumerate(["train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png"]):
        put(tmp_path / name, seed)
    assert has_two_splits(str(tmp_path))
    assert listed(tmp_path, "train") == [("cat/1.png", 0), ("dog/2.png", 1)]
    assert listed(tmp_path, "val") == [("cat/3.png", 0), ("dog/4.png", 1)]
    pictures = open_pictures(str(tmp_path), "val")
    np.testing.assert_array_equal(pictures.read(1)[0], colour(3))
    assert pictures.classes == ("cat", "dog")
    np.testing.assert_array_equal(pictures.labels, [0, 1])


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("training", "validation"), ("train", "test")])
def test_names_of_split_folders(tmp_path, train, val):
    put(tmp_path / train / "a" / "1.png")
    put(tmp_path / val / "a" / "2.png")
    assert listed(tmp_path, "train") == [("a/1.png", 0)]
    assert listed(tmp_path, "val") == [("a/2.png", 0)]


def test_a_class_missing_from_one_split_keeps_the_same_numbers_in_both(tmp_path):
    for name in ["train/ant/1.png", "train/bee/2.png", "train/cow/3.png", "val/bee/4.png", "val/cow/5.png"]:
        put(tmp_path / name)
    train, val = (open_pictures(str(tmp_path), split) for split in ("train", "val"))
    number = {
        split: dict(zip(p.classes, range(len(p.classes)), strict=True)) for split, p in (("t", train), ("v", val))
    }
    assert number["v"]["bee"] == number["t"]["bee"]
    assert val.read(0)[1] == train.read(1)[1]


def test_a_directory_without_splits_serves_as_both(tmp_path):
    put(tmp_path / "cat" / "1.png")
    put(tmp_path / "dog" / "2.png")
    assert not has_two_splits(str(tmp_path))
    assert listed(tmp_path, "train") == listed(tmp_path, "val") == [("cat/1.png", 0), ("dog/2.png", 1)]


def test_only_one_split_folder_is_no_split(tmp_path):
    put(tmp_path / "train" / "cat" / "1.png")
    assert not has_two_splits(str(tmp_path))
    assert listed(tmp_path) == [("train/cat/1.png", 0)]


def test_nested_classes_are_told_apart(tmp_path):
    for name in ["pets/cat/1.png", "pets/dog/2.png", "wild/cat/3.png"]:
        put(tmp_path / name)
    assert open_pictures(str(tmp_path), "val").classes == ("pets/cat", "pets/dog", "wild/cat")


def test_a_flat_directory_has_one_class(tmp_path):
    for i in range(3):
        put(tmp_path / f"{i}.png")
    pictures = open_pictures(str(tmp_path), "val")
    assert len(pictures.classes) == 1
    assert pictures.labels.tolist() == [0, 0, 0]
    assert pictures.unlabelled == "they lie in no class folders"


def test_class_folders_are_labels(tmp_path):
    put(tmp_path / "cat" / "1.png")
    assert not open_pictures(str(tmp_path), "val").unlabelled


def test_a_stamp_tells_a_file_from_what_replaced_it(tmp_path):
    path = put(tmp_path / "cat" / "1.png")
    pictures = open_pictures(str(tmp_path), "val")
    assert pictures.stamp(0) == f"cat/1.png {path.stat().st_size}"
    path.write_bytes(b"other")
    assert pictures.stamp(0) == "cat/1.png 5"
    path.unlink()
    assert pictures.stamp(0) == "cat/1.png -1"


def test_stamps_of_photographs_tell_splits_and_seeds_apart():
    stamps = {open_pictures("photographs", split, seed=seed).stamp(13) for split in ("train", "val") for seed in (0, 1)}
    assert len(stamps) == 4
    assert all(stamp.startswith("brick#1 ") for stamp in stamps)


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".Png", ".webp", ".bmp", ".tif", ".TIFF", ".gif", ".ppm"])
def test_suffixes_in_any_case(tmp_path, suffix):
    put(tmp_path / f"a{suffix}")
    assert len(open_pictures(str(tmp_path), "val")) == 1


def test_other_files_and_hidden_files_are_left_out(tmp_path):
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "a" / ".2.png")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / "folder.png").mkdir()
    assert listed(tmp_path) == [("a/1.png", 0)]


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".thumbnails/large"])
def test_hidden_folders_are_left_out(tmp_path, hidden):
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "a" / hidden / "1-checkpoint.png")
    put(tmp_path / hidden / "2.png")
    assert listed(tmp_path) == [("a/1.png", 0)]


def test_a_data_directory_below_a_hidden_one_is_read(tmp_path):
    put(tmp_path / ".cache" / "pets" / "a" / "1.png")
    assert listed(tmp_path / ".cache" / "pets") == [("a/1.png", 0)]


def test_class_folders_may_be_links(tmp_path):
    put(tmp_path / "store" / "cat" / "1.png")
    put(tmp_path / "data" / "dog" / "2.png")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "store" / "cat", target_is_directory=True)
    assert listed(tmp_path / "data") == [("cat/1.png", 0), ("dog/2.png", 1)]


def test_order_does_not_depend_on_the_file_system(tmp_path):
    for name in ["b/2.png", "a/9.png", "b/1.png", "a/10.png"]:
        put(tmp_path / name)
    assert [name for name, _ in listed(tmp_path)] == ["a/10.png", "a/9.png", "b/1.png", "b/2.png"]


def test_an_empty_directory_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    for refuse in (lambda: open_pictures(str(tmp_path), "val"), lambda: check_source(str(tmp_path))):
        with pytest.raises(UserError, match=r"holds no images \(\.avif"):
            refuse()


def test_an_empty_split_is_refused(tmp_path):
    put(tmp_path / "train" / "a" / "1.png")
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match=r"val' holds no images"):
        open_pictures(str(tmp_path), "val")


@pytest.mark.parametrize("source", ["nowhere", "photograph", "cifar10"])
def test_a_missing_source_is_refused_with_what_would_do(source):
    for refuse in (lambda: open_pictures(source, "val"), lambda: check_source(source)):
        with pytest.raises(UserError, match=f"no data at '{source}': give 'photographs', an existing dir.*torch/ci"):
            refuse()


def test_pictures_travel_to_a_worker(tmp_path):
    put(tmp_path / "a" / "1.png", 5)
    for source in (str(tmp_path), "photographs"):
        pictures = open_pictures(source, "val")
        sent = pickle.loads(pickle.dumps(pictures))
        np.testing.assert_array_equal(sent.read(0)[0], pictures.read(0)[0])
        assert sent.identity(0) == pictures.identity(0)


def test_unreadable_pictures_are_named_once_and_counted(caplog):
    unreadable = Unreadable(100, 0.01)
    with caplog.at_level(logging.WARNING):
        unreadable.add([UnreadableImage("a.jpg", "truncated")])
        unreadable.add([UnreadableImage("a.jpg", "truncated")])
    assert [record.getMessage() for record in caplog.records] == ["skipped unreadable image 'a.jpg': truncated"]
    unreadable.check()  # 1 of 100 is the allowed share
    unreadable.add([UnreadableImage("b.jpg", "empty")])
    with pytest.raises(UserError, match=r"2 of 100 images \(2\.0%\) could not be read, more than the allowed 1\.0%"):
        unreadable.check()


def test_no_pictures_and_none_unreadable_is_fine():
    Unreadable(0).check()


def test_gzipped_files_are_no_pictures(tmp_path):
    (tmp_path / "a.png.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(UserError, match="holds no images"):
        open_pictures(str(tmp_path), "val")
