"""CIFAR's pickles, against torchvision's reading of them, and what a malicious one may not do."""

import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets

from kamim_analysis.data import open_pictures
from kamim_analysis.data_sets import _cifar
from kamim_analysis.errors import UserError

KINDS = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}


@pytest.mark.parametrize("dump", [None, lambda v: pickle.dumps(v, 2), pickle.dumps], ids=["python2", "2", "newest"])
@pytest.mark.parametrize("name", KINDS)
def test_it_is_what_torchvision_reads(tmp_path, monkeypatch, trees, name, dump):
    getattr(trees, name)(tmp_path, dump)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    for split, pictures in zip(("train", "val"), trees.both(name, tmp_path), strict=True):
        theirs = KINDS[name](tmp_path, train=split == "train")
        assert len(pictures) == len(theirs)
        assert pictures.classes == tuple(theirs.classes)
        assert pictures.labels.tolist() == theirs.targets
        for i in range(len(theirs)):
            np.testing.assert_array_equal(pictures.read(i)[0], np.asarray(theirs[i][0]))
    red, green, blue = trees.cifar_pixels(18 if name == "cifar10" else 6)[-2].reshape(3, 32, 32)
    np.testing.assert_array_equal(pictures.read(1)[0], np.dstack([red, green, blue]))


def test_pictures_are_named_by_file_and_row_and_stamped_by_their_pixels(tmp_path, trees):
    train, val = trees.both("cifar10", trees.cifar10(tmp_path))
    names = [train.identity(i) for i in (0, 2, 3, 14)]
    assert names == ["data_batch_1#0", "data_batch_1#2", "data_batch_2#0", "data_batch_5#2"]
    sums = [zlib.crc32(row.tobytes()) for row in trees.cifar_pixels(18)]
    assert train.stamp(3) == f"data_batch_2#0 {sums[3]}"
    assert val.stamp(2) == f"test_batch#2 {sums[17]}"


class Mischief:
    """A pickle of it makes a folder when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["entry", "label", "whole", "meta"])
def test_a_malicious_file_does_not_execute(tmp_path, trees, where):
    trees.cifar10(tmp_path)
    made = tmp_path / "made"
    file = tmp_path / "cifar-10-batches-py" / ("batches.meta" if where == "meta" else "test_batch")
    entries = pickle.loads(file.read_bytes(), encoding="latin1")
    spoilt: Any = {
        "entry": {**entries, "batch_label": Mischief(made)},
        "label": {**entries, "labels": [0, 1, Mischief(made)]},
        "whole": Mischief(made),
        "meta": {"label_names": [Mischief(made)]},
    }[where]
    file.write_bytes(pickle.dumps(spoilt))
    pickle.loads(file.read_bytes())
    made.rmdir()  # so it does work on a careless reader
    with pytest.raises(UserError, match=rf"{file.name}' is no CIFAR file: it asks for \w+.mkdir, which no CIFAR file"):
        open_pictures("torch/cifar10", "val", root=str(tmp_path))
    assert not made.exists()


@pytest.mark.parametrize(
    "asked",
    ["os system", "builtins eval", "builtins getattr", "numpy load", "numpy fromfile", "codecs encode",
     "numpy.core.multiarray fromstring", "_codecs decode", "functools partial"],
)  # fmt: skip
def test_nothing_but_arrays_can_be_asked_for(tmp_path, asked):
    module, name = asked.split()
    path = tmp_path / "test_batch"
    path.write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(UserError, match=f"it asks for {module}.{name}, which"):
        _cifar.load(path)


def test_no_codec_but_that_of_bytes_is_looked_up(tmp_path):
    path = tmp_path / "test_batch"
    path.write_bytes(b"c_codecs\nencode\n(VNaN\nVrot13\ntR.")
    with pytest.raises(UserError, match="bytes in encoding 'rot13'"):
        _cifar.load(path)


BLACK = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"data": BLACK}, "'labels' as many numbers"),
        ({"data": BLACK, "labels": [0, 1, 2]}, "'labels' as many numbers"),
        ({"data": BLACK, "labels": [[0], [1, 2]]}, "'labels' as many numbers"),
        ({"data": BLACK, "labels": 0}, "'labels' as many numbers"),
        ({"data": BLACK[:0], "labels": []}, "'labels' as many numbers"),
        ({"data": BLACK, "labels": [0, 10]}, "below 10"),
        ({"data": BLACK, "labels": [0, -1]}, "below 10"),
        ({"data": BLACK, "labels": [0.0, 1.0]}, "'labels' as many numbers"),
        ({"data": BLACK.astype(np.float32), "labels": [0, 1]}, "must be uint8"),
        ({"data": BLACK[:, :1024], "labels": [0, 1]}, "of 3072 a picture"),
        ([1, 2], "holds a list, not a dictionary"),
    ],
)
def test_what_is_no_batch_is_refused(tmp_path, trees, entries, said):
    file = trees.cifar10(tmp_path) / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(pickle.dumps(entries))
    with pytest.raises(UserError, match=rf"test_batch' is no CIFAR file: .*{said}"):
        open_pictures("torch/cifar10", "val", root=str(tmp_path))


def test_a_truncated_file_is_refused_in_one_line(tmp_path, trees):
    file = trees.cifar10(tmp_path) / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"data_batch_3' is no CIFAR file: .*truncated") as refused:
        open_pictures("torch/cifar10", "train", root=str(tmp_path))
    assert "\n" not in str(refused.value)


def test_the_fine_labels_need_their_names(tmp_path, trees):
    file = trees.cifar100(tmp_path) / "cifar-100-python" / "meta"
    file.write_bytes(pickle.dumps({"coarse_label_names": ["a", "b"]}))
    with pytest.raises(UserError, match="meta' is no CIFAR file: it has no 'fine_label_names'"):
        open_pictures("torch/cifar100", "val", root=str(tmp_path))
