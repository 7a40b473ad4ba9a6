"""CIFAR's pickled batches, read without executing what a pickle may ask for."""

import codecs
import errno
import io
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from ..data import Pictures
from ..errors import UserError

# what an array's elements, or a number, may be: others' sizes and fields numpy takes from a pickle unchecked
_ELEMENTS = ("u1", "i1", "i2", "i4", "i8", "f4", "f8")


class _Kind:
    """Stands for numpy.dtype in a pickle."""

    def __init__(self, name: str, *_flags: bool) -> None:
        if name not in _ELEMENTS:
            raise pickle.UnpicklingError(f"array elements {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Of what follows only the order of the bytes matters."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray in a pickle, until all is read."""

    def __init__(self, *_empty: object) -> None:
        self.found = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Version, shape, elements, whether the first axis varies fastest, and bytes."""
        _version, shape, kind, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        self.found = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _number(kind: _Kind, raw: str | bytes) -> Any:
    """A number of numpy's."""
    return np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, kind.dtype)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocols below 3 write them: `_codecs.encode` itself would import a codec of any name."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return codecs.latin_1_encode(text)[0]


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _number for core in ("core", "_core")},
}


class _ArraysOnly(pickle._Unpickler):  # type: ignore[name-defined,misc]
    """Containers, numbers, text and numpy arrays; torchvision's reader would call whatever the file names.

    Python's own unpickler and not that in C, which takes 34 GB for a memo that a file of ten bytes numbers 2^31.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does") from None


def load(path: Path) -> dict[str, Any]:
    """The dictionary in a file. Raises FileNotFoundError, and UserError for what is no CIFAR file."""
    try:
        content = path.read_bytes()
        if not content.endswith(pickle.STOP):
            raise pickle.UnpicklingError("it is truncated")
        entries = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in many ways
        raise UserError(f"{str(path)!r} is no CIFAR file: {' '.join(str(error).split())}") from error
    if not isinstance(entries, dict):
        raise UserError(f"{str(path)!r} is no CIFAR file: it holds a {type(entries).__name__}, not a dictionary")
    return {str(key): one.found if isinstance(one, _Array) else one for key, one in entries.items()}


@dataclass(frozen=True)
class _InMemory:
    """Pictures of 32 x 32 pixels, each a row of red, then green, then blue; named by file and row."""

    pixels: UInt8[ndarray, "i 3072"]
    labels: Int64[ndarray, " i"]
    files: tuple[str, ...]
    rows: tuple[int, ...]
    """How many pictures each file holds."""

    def read(self, index: int) -> tuple[UInt8[ndarray, "y x 3"], int]:
        return self.pixels[index].reshape(3, 32, 32).transpose(1, 2, 0).copy(), int(self.labels[index])

    def name(self, index: int) -> str:
        ends = np.cumsum(self.rows)
        file = int(np.searchsorted(ends, index, side="right"))
        return f"{self.files[file]}#{index - int(ends[file]) + self.rows[file]}"

    def checksum(self, index: int) -> int:
        return zlib.crc32(self.pixels[index].tobytes())


def open_batches(source: str, folder: Path, files: tuple[str, ...], label_key: str, meta: tuple[str, str]) -> Pictures:
    """The pictures of a split, held in memory; `meta` is the file of the class names and their key in it."""
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))
    classes = load(folder / meta[0]).get(meta[1])
    if not classes:
        raise UserError(f"{str(folder / meta[0])!r} is no CIFAR file: it has no {meta[1]!r}")
    batches = [_batch(folder / file, label_key, len(classes)) for file in files]
    pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    held = _InMemory(pixels, labels, files, tuple(len(part) for part, _ in batches))
    return Pictures(source, tuple(map(str, classes)), labels, len(labels), held.read, held.name, held.checksum)


def _batch(path: Path, label_key: str, classes: int) -> tuple[ndarray, ndarray]:
    """Pixels [i, 3072] and labels of a file. Raises UserError where they are not as the CIFAR page describes them."""
    entries = load(path)
    try:
        pixels, labels = np.asarray(entries.get("data", [])), np.asarray(entries.get(label_key, []))
    except ValueError:  # lists of lists of several lengths
        pixels = labels = np.array([])
    shaped = pixels.dtype == np.uint8 and pixels.shape == (labels.size, 3072) and labels.ndim == 1
    if not shaped or labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"{str(path)!r} is no CIFAR file: 'data' must be uint8 of 3072 a picture and {label_key!r} as many numbers "
            f"of classes below {classes}"
        )
    return pixels, labels.astype(np.int64)
