"""Pictures with labels, from wherever they lie: the bundled photographs, a directory, packed shards, or by name."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from . import photographs, plugins
from .decode import UnreadableImage, check_regular, read_rgb
from .errors import UserError, printable, some

if TYPE_CHECKING:
    from .shards import ShardIndex

Split = Literal["train", "val"]
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .jp2 .jpe .jfif .avif".split())
_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train", "training"), "val": ("val", "validation", "test")}
_TIMM_PREFIXES = ("torch/", "hfds/", "hfids/", "tfds/", "wds/")
_NAMED = "kamim_analysis.data_sets"
# unreadable pictures that are named one by one: a directory that goes away has millions
_NAMED_SINGLY = 100
# crops in the photographs' splits, a multiple of the twelve pictures
_PHOTOGRAPH_CROPS: dict[Split, int] = {"train": 6144, "val": 2304}

log = logging.getLogger(__name__)


def _unmarked(_index: int) -> str:
    return "unmarked"


@dataclass(frozen=True)
class Pictures:
    """A map-style collection: `read(i)` decodes picture i. Cheap to pickle for a data worker."""

    name: str
    classes: tuple[str, ...]
    """Names of the classes, printable; empty where the source does not name them."""
    labels: ndarray | None
    """Class of each picture, or None where it is known only after reading."""
    length: int
    reader: Callable[[int], tuple[UInt8[ndarray, "y x 3"], int]] = field(repr=False)
    namer: Callable[[int], str] = field(repr=False, default=str)
    marker: Callable[[int], object] = field(repr=False, default=_unmarked)
    unlabelled: str = ""
    """Why the source has no labels, as what is said of its pictures; empty where it has. All are then of class 0."""
    opener: Callable[[int], bytes] | None = field(repr=False, default=None)
    """What gives the file of a picture as it lies there; None where pictures are no files of their own."""
    shards: Int64[ndarray, " i"] | None = field(repr=False, default=None)
    """The number of the shard that each picture lies in; None where they lie in none."""

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> tuple[UInt8[ndarray, "y x 3"], int]:
        """RGB uint8 [H, W, 3] and class of picture `index`. Raises UnreadableImage."""
        return self.reader(index)

    def encoded(self, index: int) -> bytes | None:
        """The file of picture `index`, not decoded; None where it is no file of its own. Raises UnreadableImage."""
        return None if self.opener is None else self.opener(index)

    def identity(self, index: int) -> str:
        """What to call picture `index`: its path, relative to the data, where it has one; printable."""
        return printable(self.namer(index))

    def stamp(self, index: int) -> str:
        """What tells, without decoding, that picture `index` is still the same one: its identity and a mark.

        The mark is the size in bytes of a file (-1 where it is gone), a check sum of what is packed in a shard or held
        in memory, the split and seed of a crop of the photographs.
        """
        return f"{self.namer(index)} {self.marker(index)}"


def open_pictures(source: str, split: Split, *, root: str | None = None, seed: int = 0) -> Pictures:
    """The pictures of a DATA argument: `photographs`, a directory, packed shards or their URL, or a set by name.

    A directory without train/ and val/ has one split, which serves as both. `root` is where a data set by name lies;
    nothing is ever downloaded. Raises UserError for a source that is missing, empty or cannot be read by index.
    """
    pictures = _open(source, split, root, seed)
    return replace(pictures, classes=tuple(map(printable, pictures.classes)))


def _open(source: str, split: Split, root: str | None, seed: int) -> Pictures:
    if source == "photographs":
        return _open_photographs(split, seed)
    kind, _, name = source.partition("/")
    name = {"inat": "inaturalist"}.get(name.lower(), name.lower())  # timm's spellings
    if kind == "torch" and name in plugins.names(_NAMED):
        return _open_named(source, name, split, root)
    if source.startswith(_TIMM_PREFIXES):
        from .data_sets._timm import open_timm

        return open_timm(source, split, root)
    packed = _packed(source)
    if packed is not None:
        return packed.pictures(split)
    return _open_directory(Path(source), split)


def _open_named(source: str, name: str, split: Split, root: str | None) -> Pictures:
    """A data set with a reader of its own. Raises UserError that says what must lie where."""
    data_set = plugins.load(_NAMED, name, "data set")
    if root is None:
        raise UserError(f"{source!r} needs --data_root DIR (data.root in a recipe); there must be {data_set.NEEDS}")
    try:
        pictures: Pictures = data_set.open_set(source, Path(root).expanduser(), split)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{source!r} in DIR = {root!r} lacks {str(error.filename)!r}; there must be {data_set.NEEDS}"
        ) from error
    return pictures


def _packed(source: str) -> "ShardIndex | None":
    """The shards that `kamim pack` wrote there, if it did. Raises UserError for what it did not finish."""
    from .shards import find_shards

    return find_shards(source)


def has_two_splits(source: str) -> bool:
    """Whether the source has training pictures apart from its validation pictures."""
    if source == "photographs" or source.startswith(_TIMM_PREFIXES):
        return True
    packed = _packed(source)
    if packed is not None:
        return packed.has_two_splits
    return all(_split_folder(Path(source), split) for split in ("train", "val"))


def check_source(source: str) -> None:
    """Raise the UserError that opening a mistyped source would raise, without listing it or importing torch."""
    if source == "photographs" or source.startswith(_TIMM_PREFIXES) or _packed(source) is not None:
        return
    if not Path(source).is_dir():
        raise UserError(
            f"no data at {source!r}: give 'photographs', an existing directory of images or of packed shards, their "
            f"URL, or a data set's name ({', '.join(f'torch/{name}' for name in plugins.names(_NAMED))}, or timm's, "
            f"which begins with one of {', '.join(_TIMM_PREFIXES)})"
        )
    if next(_image_files(Path(source)), None) is None:
        if any(Path(source).glob("*.tar")):
            raise UserError(
                f"directory {source!r} holds tar files that kamim pack did not write; unpack them into class folders, "
                "and pack those"
            )
        raise UserError(f"directory {source!r} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")


def _open_photographs(split: Split, seed: int) -> Pictures:
    names = tuple(path.stem for path in photographs.paths())
    crops, count = _Photographs(split, seed, names), _PHOTOGRAPH_CROPS[split]
    return Pictures(
        name="photographs",
        classes=names,
        labels=np.arange(count) % len(names),
        length=count,
        reader=crops.read,
        namer=crops.name,
        marker=crops.mark,
    )


@dataclass(frozen=True)
class _Photographs:
    split: Split
    seed: int
    names: tuple[str, ...]

    def read(self, index: int) -> tuple[UInt8[ndarray, "y x 3"], int]:
        return photographs.crop(index, self.split, self.seed)

    def name(self, index: int) -> str:
        return f"{self.names[index % len(self.names)]}#{index // len(self.names)}"

    def mark(self, _index: int) -> str:
        return f"{self.split} {self.seed}"


@dataclass(frozen=True)
class Files:
    """Pictures in files, their names relative to `root`."""

    root: Path
    names: Sequence[str]
    labels: ndarray

    def encoded(self, index: int) -> bytes:
        """The file as it is. Raises UnreadableImage."""
        try:
            check_regular(self.root / self.names[index])
            return (self.root / self.names[index]).read_bytes()
        except OSError as error:
            raise UnreadableImage(self.names[index], error.strerror or str(error)) from error

    def read(self, index: int) -> tuple[UInt8[ndarray, "y x 3"], int]:
        """The decoded file and its class. Raises UnreadableImage."""
        return read_rgb(self.root / self.names[index], self.names[index]), int(self.labels[index])

    def name(self, index: int) -> str:
        """The file, relative to the root."""
        return self.names[index]

    def size(self, index: int) -> int:
        """Bytes of the file; -1 where it is gone."""
        try:
            return (self.root / self.names[index]).stat().st_size
        except OSError:
            return -1

    def pictures(self, source: str, classes: tuple[str, ...], unlabelled: str = "") -> Pictures:
        """The files as a collection."""
        return Pictures(
            source,
            classes,
            self.labels,
            len(self.names),
            self.read,
            self.name,
            self.size,
            unlabelled=unlabelled,
            opener=self.encoded,
        )


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
    flat = "they lie in no class folders" if classes == (".",) else ""
    return Files(folder, names, labels).pictures(root.name, classes, flat)


def _classes(root: Path) -> tuple[str, ...]:
    """Folders that hold images, of both splits together, so that a class has one number in both."""
    both = (_split_folder(root, "train"), _split_folder(root, "val")) if has_two_splits(str(root)) else (root,)
    folders = [folder for folder in both if folder]
    found = {path.relative_to(folder).parent.as_posix() for folder in folders for path in _image_files(folder)}
    return tuple(sorted(found))


class Unreadable:
    """Names and counts the pictures that could not be read, and says at the end whether they were too many.

    So it does with those that could be read and have changed meanwhile (`ChosenPictures.changed`).
    """

    def __init__(self, total: int, allowed_share: float = 0.01) -> None:
        self.total, self.allowed_share = total, allowed_share
        self.names: set[str] = set()
        self.changed: set[str] = set()

    def add(self, errors: Sequence[UnreadableImage]) -> None:
        """Warn of each picture once, and of no more than a hundred."""
        for error in errors:
            name = printable(error.name)
            if name in self.names:
                continue
            self.names.add(name)
            if len(self.names) <= _NAMED_SINGLY:
                log.warning("skipped unreadable image %s", error)
            elif len(self.names) == _NAMED_SINGLY + 1:
                log.warning("more than %d images are unreadable; the others are counted", _NAMED_SINGLY)

    def check(self) -> None:
        """Raise UserError when more than the allowed share failed, or when any picture has changed."""
        share = len(self.names) / max(self.total, 1)
        if share > self.allowed_share:
            raise UserError(
                f"{len(self.names)} of {self.total} images ({share:.1%}) could not be read, more than the allowed "
                f"{self.allowed_share:.1%}; mend them or raise --max_unreadable"
            )
        if self.changed:
            raise UserError(
                f"{len(self.changed)} of {self.total} images changed while they were read "
                f"({some(sorted(self.changed), 3)}): what was computed may be of the old ones or of the new; run the "
                "same command again (with --overwrite)"
            )
