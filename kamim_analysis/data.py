"""Pictures with labels, from wherever they lie: the bundled photographs, a directory, or any timm data set."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from . import photographs
from .decode import UnreadableImage, read_rgb, to_rgb
from .errors import UserError

Split = Literal["train", "val"]
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .jp2 .jpe .jfif .avif".split())
_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train", "training"), "val": ("val", "validation", "test")}
_TIMM_PREFIXES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
# crops in the photographs' splits, a multiple of the twelve pictures
_PHOTOGRAPH_CROPS: dict[Split, int] = {"train": 6144, "val": 2304}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """A map-style collection: `read(i)` decodes picture i. Cheap to pickle for a data worker."""

    name: str
    classes: tuple[str, ...]
    """Names of the classes; empty where the source does not name them."""
    labels: ndarray | None
    """Class of each picture, or None where it is known only after reading."""
    length: int
    reader: Callable[[int], tuple[UInt8[ndarray, "y x 3"], int]] = field(repr=False)
    namer: Callable[[int], str] = field(repr=False, default=str)

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> tuple[UInt8[ndarray, "y x 3"], int]:
        """RGB uint8 [H, W, 3] and class of picture `index`. Raises UnreadableImage."""
        return self.reader(index)

    def identity(self, index: int) -> str:
        """What to call picture `index`: its path, relative to the data, where it has one."""
        return self.namer(index)


def open_pictures(source: str, split: Split, *, root: str | None = None, seed: int = 0) -> Pictures:
    """The pictures of a DATA argument: `photographs`, a directory, or a timm data set's name.

    A directory without train/ and val/ has one split, which serves as both. `root` is where a timm data set lies.
    Raises UserError for a source that is missing, empty or cannot be read by index.
    """
    if source == "photographs":
        return _open_photographs(split, seed)
    if source.startswith(_TIMM_PREFIXES):
        return _open_timm(source, split, root)
    return _open_directory(Path(source), split)


def has_two_splits(source: str) -> bool:
    """Whether the source has training pictures apart from its validation pictures."""
    if source == "photographs" or source.startswith(_TIMM_PREFIXES):
        return True
    return all(_split_folder(Path(source), split) for split in ("train", "val"))


def check_source(source: str) -> None:
    """Raise the UserError that opening a mistyped source would raise, without listing or importing anything."""
    if source == "photographs" or source.startswith(_TIMM_PREFIXES):
        return
    if not Path(source).is_dir():
        raise UserError(
            f"no data at {source!r}: give 'photographs', an existing directory of images, or a timm data set's name "
            f"that begins with one of {', '.join(_TIMM_PREFIXES)}"
        )
    if next(_image_files(Path(source)), None) is None:
        raise UserError(f"directory {source!r} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")


def _open_photographs(split: Split, seed: int) -> Pictures:
    names = tuple(path.stem for path in photographs.paths())
    count = _PHOTOGRAPH_CROPS[split]
    return Pictures(
        name="photographs",
        classes=names,
        labels=np.arange(count) % len(names),
        length=count,
        reader=_PhotographReader(split, seed),
        namer=_Names([f"{names[i % len(names)]}#{i // len(names)}" for i in range(count)]),
    )


@dataclass(frozen=True)
class _PhotographReader:
    split: Split
    seed: int

    def __call__(self, index: int) -> tuple[UInt8[ndarray, "y x 3"], int]:
        return photographs.crop(index, self.split, self.seed)


@dataclass(frozen=True)
class _Names:
    names: Sequence[str]

    def __call__(self, index: int) -> str:
        return self.names[index]


def _split_folder(root: Path, split: Split) -> Path | None:
    return next((root / name for name in _SPLIT_FOLDERS[split] if (root / name).is_dir()), None)


def _image_files(root: Path) -> Iterator[Path]:
    """Image files below `root`, hidden files and folders left out; linked folders are entered, loops are not."""
    entered = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        entered.add(os.path.realpath(folder))
        folders[:] = sorted(
            name for name in folders if name[0] != "." and os.path.realpath(Path(folder, name)) not in entered
        )
        for name in files:
            if name[0] != "." and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(folder, name)


def _open_directory(root: Path, split: Split) -> Pictures:
    check_source(str(root))
    folder = _split_folder(root, split) if has_two_splits(str(root)) else root
    assert folder is not None
    files = sorted(_image_files(folder), key=lambda path: path.relative_to(folder).as_posix())
    if not files:
        raise UserError(f"directory {str(folder)!r} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    class_of = [path.relative_to(folder).parent.as_posix() for path in files]
    classes = _classes(root)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[name] for name in class_of])
    names = [path.relative_to(folder).as_posix() for path in files]
    return Pictures(root.name, classes, labels, len(files), _FileReader(folder, names, labels), _Names(names))


def _classes(root: Path) -> tuple[str, ...]:
    """Folders that hold images, of both splits together, so that a class has one number in both."""
    both = (_split_folder(root, "train"), _split_folder(root, "val")) if has_two_splits(str(root)) else (root,)
    folders = [folder for folder in both if folder]
    found = {path.relative_to(folder).parent.as_posix() for folder in folders for path in _image_files(folder)}
    return tuple(sorted(found))


@dataclass(frozen=True)
class _FileReader:
    root: Path
    names: Sequence[str]
    labels: ndarray

    def __call__(self, index: int) -> tuple[UInt8[ndarray, "y x 3"], int]:
        return read_rgb(self.root / self.names[index], self.names[index]), int(self.labels[index])


def _open_timm(source: str, split: Split, root: str | None) -> Pictures:
    import timm.data
    import torch

    try:
        dataset = timm.data.create_dataset(source, root=root, split="train" if split == "train" else "validation")
        length = len(dataset)
    except Exception as error:  # each back end raises its own kind for missing files, packages and names
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"timm cannot open data set {source!r} in {root!r}: {reason}") from error
    if isinstance(dataset, torch.utils.data.IterableDataset):
        raise UserError(f"{source!r} can only be read in sequence; give a data set whose items can be read by index")
    if hasattr(dataset, "loader"):  # torchvision's own would drop transparency
        dataset.loader = read_rgb
    labels = getattr(dataset, "targets", None)
    classes = tuple(str(name) for name in getattr(dataset, "classes", ()))
    return Pictures(
        source, classes, None if labels is None else np.asarray(labels), length, _TimmReader(source, dataset)
    )


@dataclass(frozen=True)
class _TimmReader:
    source: str
    dataset: Any

    def __call__(self, index: int) -> tuple[UInt8[ndarray, "y x 3"], int]:
        reader = getattr(self.dataset, "reader", None)
        if reader is None:
            image, label = self._item(index)
            return (image if isinstance(image, ndarray) else to_rgb(image)), int(label)
        file, label = reader[index]  # timm's own decoding would drop transparency on black
        return read_rgb(file, f"{self.source}[{index}]"), int(label)

    def _item(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except (UnreadableImage, OSError, ValueError, SyntaxError) as error:
            raise UnreadableImage(f"{self.source}[{index}]", " ".join(str(error).split())) from error


class Unreadable:
    """Names and counts the pictures that could not be read, and says at the end whether they were too many."""

    def __init__(self, total: int, allowed_share: float = 0.01) -> None:
        self.total, self.allowed_share = total, allowed_share
        self.names: set[str] = set()

    def add(self, errors: Sequence[UnreadableImage]) -> None:
        """Warn of each picture once."""
        for error in errors:
            if error.name not in self.names:
                self.names.add(error.name)
                log.warning("skipped unreadable image %s", error)

    def check(self) -> None:
        """Raise UserError when more than the allowed share failed."""
        share = len(self.names) / max(self.total, 1)
        if share > self.allowed_share:
            raise UserError(
                f"{len(self.names)} of {self.total} images ({share:.1%}) could not be read, more than the allowed "
                f"{self.allowed_share:.1%}; mend them or raise --max_unreadable"
            )
