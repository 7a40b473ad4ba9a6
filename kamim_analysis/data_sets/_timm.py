"""Data sets that timm opens by name and that have no file of their own here."""

import io
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from ..data import Pictures, Split
from ..decode import UnreadableImage, read_rgb, to_rgb
from ..errors import UserError


def open_timm(source: str, split: Split, root: str | None) -> Pictures:
    """A split of a data set by timm's name. Raises UserError for one that is missing or cannot be read by index."""
    import torch

    if source in ("torch/image_folder", "torch/folder"):
        # timm falls back to one folder for both splits without a word, and every picture is its own neighbour
        raise UserError(f"{source!r} is a plain directory of images: give it as --data DIR, without --data_root")
    dataset = _created(source, split, root)
    if isinstance(dataset, torch.utils.data.IterableDataset):
        raise UserError(f"{source!r} can only be read in sequence; give a data set whose items can be read by index")
    return _of_hub(source, dataset.reader) if hasattr(dataset, "reader") else _of_torchvision(source, dataset)


def _created(source: str, split: Split, root: str | None) -> Any:
    import timm.data

    try:
        dataset = timm.data.create_dataset(source, root=root, split="train" if split == "train" else "validation")
        len(dataset)
    except Exception as error:  # each back end raises its own kind for missing files, packages and names
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"timm cannot open data set {source!r} in {root!r}: {reason}") from error
    return dataset


def _of_torchvision(source: str, dataset: Any) -> Pictures:
    """MNIST and its kin, held in memory."""
    items = _Items(source, dataset)
    labels = np.asarray(dataset.targets)
    labels = labels[:, 0] if labels.ndim > 1 else labels  # QMNIST: the class, then who wrote the digit and where
    classes = tuple(str(name) for name in dataset.classes)
    return Pictures(source, classes, labels, len(dataset), items.read, items.name, items.checksum)


@dataclass(frozen=True)
class _Items:
    source: str
    dataset: Any

    def read(self, index: int) -> tuple[UInt8[ndarray, "y x 3"], int]:
        image, label = self.dataset[index]
        return to_rgb(image), int(label)

    def name(self, index: int) -> str:
        return str(index)

    def checksum(self, index: int) -> int:
        return zlib.crc32(np.asarray(self.dataset.data[index]).tobytes())


def _of_hub(source: str, reader: Any) -> Pictures:
    """A data set in the Hugging Face hub's form, with a column of pictures and perhaps one of labels."""
    dataset, key = reader.dataset, reader.label_key
    labels, missing = np.zeros(len(dataset), np.int64), f"the data set has no column {key!r} of class numbers"
    column = np.asarray(dataset[key][:]) if key in dataset.column_names else np.array([])
    if column.dtype.kind == "i" and column.max() >= 0:  # -1 stands for an unknown class, in test splits for all
        labels, missing = column, ""
    rows = _Rows(source, dataset, reader.image_key, labels)
    classes = tuple(getattr(dataset.features.get(key), "names", ()))
    return Pictures(source, classes, labels, len(labels), rows.read, rows.name, rows.mark, missing)


@dataclass(frozen=True)
class _Rows:
    source: str
    dataset: Any
    image_key: str
    labels: ndarray

    def read(self, index: int) -> tuple[UInt8[ndarray, "y x 3"], int]:
        image = self.dataset[index][self.image_key]
        if image is None:
            raise UnreadableImage(self.name(index), "the row holds no picture")
        source = io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]
        return read_rgb(source, self.name(index)), int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.source}[{index}]"

    def mark(self, _index: int) -> str:
        """datasets' own fingerprint: it changes with every file and every operation."""
        return str(self.dataset._fingerprint)
