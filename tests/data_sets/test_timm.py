"""Data sets that timm opens: MNIST, those in the hub's form, and what is refused."""

import io
import json
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from timm.version import __version__ as timm_version

from kamim_analysis.data import Pictures, open_pictures
from kamim_analysis.decode import UnreadableImage
from kamim_analysis.errors import UserError

# what timm before 1.0.31 makes a refusal of
WORDS = pytest.mark.skipif(
    tuple(map(int, timm_version.split(".")[:3])) < (1, 0, 31), reason="timm before 1.0.31 opens no labels in words"
)


def write_idx(path: Path, values: NDArray[Any]) -> None:
    """A file in MNIST's own form: unsigned bytes (8), or numbers of four bytes (12)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{values.ndim}I", 0, 8 if values.dtype == np.uint8 else 12, values.ndim, *values.shape)
    path.write_bytes(head + values.astype(">i4" if values.dtype != np.uint8 else np.uint8).tobytes())


def test_mnist_in_its_own_layout(tmp_path):
    draw = np.random.default_rng(0)
    digits = {
        kind: draw.integers(0, 256, (count, 28, 28)).astype(np.uint8) for kind, count in (("train", 7), ("t10k", 5))
    }
    for kind, images in digits.items():
        write_idx(tmp_path / "MNIST" / "raw" / f"{kind}-images-idx3-ubyte", images)
        write_idx(tmp_path / "MNIST" / "raw" / f"{kind}-labels-idx1-ubyte", np.arange(len(images), dtype=np.uint8))
    for split, kind in (("train", "train"), ("val", "t10k")):
        pictures = open_pictures("torch/mnist", split, root=str(tmp_path))
        assert len(pictures) == len(digits[kind])
        pixels, label = pictures.read(3)
        np.testing.assert_array_equal(pixels, np.repeat(digits[kind][3][..., None], 3, -1))
        assert label == 3
        np.testing.assert_array_equal(pictures.labels, np.arange(len(pictures)))
        assert len(pictures.classes) == 10
        assert pictures.stamp(3) == f"3 {zlib.crc32(digits[kind][3].tobytes())}"


def test_qmnist_s_label_is_the_digit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    about = np.array([[7, 4, 999, 1, 2, 3, 0, 0], [0, 4, 998, 1, 2, 3, 0, 0], [9, 4, 997, 1, 2, 3, 0, 0]])
    write_idx(tmp_path / "QMNIST" / "raw" / "qmnist-train-images-idx3-ubyte", pixels)
    write_idx(tmp_path / "QMNIST" / "raw" / "qmnist-train-labels-idx2-int", about)
    pictures = open_pictures("torch/qmnist", "train", root=str(tmp_path))
    assert pictures.labels.tolist() == [pictures.read(i)[1] for i in range(3)] == [7, 0, 9]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Any:
    """Writes two splits of pictures and labels, as the hub's parquet files hold them, and opens the training split."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets").disable_progress_bars()
    import pyarrow
    import pyarrow.parquet

    def opened(name: str, labels: list[Any]) -> Pictures:
        files = [png(255), png(254), png(0), b"no picture"]
        images = [{"bytes": file, "path": f"{i}.png"} for i, file in enumerate(files)]
        numbered, text = {"names": ["cat", "dog"], "_type": "ClassLabel"}, {"dtype": "string", "_type": "Value"}
        label = numbered if isinstance(labels[0], int) else text
        about = {"info": {"features": {"image": {"_type": "Image"}, name: label}}}
        table = pyarrow.table({"image": images, name: labels})
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
        folder = tmp_path / "set"
        folder.mkdir()
        for split in ("train", "validation"):
            pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
        return open_pictures(f"hfds/{folder}", "train", root=str(tmp_path / "cache"))

    return opened


def png(value: int) -> bytes:
    """Four channels of one value: 0 is transparent."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 4), value, np.uint8)).save(file, format="PNG")
    return file.getvalue()


def test_a_data_set_of_the_hub_knows_its_labels(hub):
    pictures = hub("label", [1, 0, 1, 0])
    assert pictures.classes == ("cat", "dog")
    assert pictures.labels.tolist() == [1, 0, 1, 0]
    assert not pictures.unlabelled
    assert pictures.read(0)[1] == 1
    assert (pictures.read(2)[0] == 255).all()  # transparent
    assert pictures.stamp(1).startswith(f"{pictures.name}[1] ")
    with pytest.raises(UnreadableImage, match=r"\[3\]'"):
        pictures.read(3)
    assert pickle.loads(pickle.dumps(pictures)).read(0)[1] == 1


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("label", [-1] * 4),
        pytest.param("label", ["a", "b", "c", "d"], marks=WORDS),
        ("class", [0, 1, 0, 1]),
    ],
)
def test_a_data_set_of_the_hub_without_labels_says_so(hub, name, labels):
    pictures = hub(name, labels)
    assert pictures.unlabelled == "the data set has no column 'label' of class numbers"
    assert pictures.labels.tolist() == [0, 0, 0, 0]
    assert pictures.read(1)[1] == 0


def test_a_plain_directory_by_timm_s_name_is_given_by_itself(tmp_path):
    with pytest.raises(UserError, match="'torch/image_folder' is a plain directory of images: give it as --data DIR"):
        open_pictures("torch/image_folder", "val", root=str(tmp_path))


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"timm cannot open data set 'torch/mnist' in .*: .+"):
        open_pictures("torch/mnist", "val", root=str(tmp_path))
    with pytest.raises(UserError, match=r"timm cannot open data set 'torch/no_such_set'"):
        open_pictures("torch/no_such_set", "val", root=str(tmp_path))


def test_what_streams_is_refused(tmp_path, monkeypatch):
    import timm.data
    import torch.utils.data

    class Streamed(torch.utils.data.IterableDataset):
        """What timm returns for wds/ and tfds/: a length, and nothing to index."""

        def __len__(self) -> int:
            return 3

        def __iter__(self) -> object:
            return iter(())

    monkeypatch.setattr(timm.data, "create_dataset", lambda *_args, **_options: Streamed())
    with pytest.raises(UserError, match="'wds/shards' can only be read in sequence"):
        open_pictures("wds/shards", "val", root=str(tmp_path))
