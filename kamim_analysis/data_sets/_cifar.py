"""CIFAR's pickled batches, read without executing what a pickle may ask for."""

import codecs
import errno
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

# what numpy itself puts into a pickle to make an array and a number of it again
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocols below 3 write them: `_codecs.encode` itself would import a codec of any name."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return codecs.latin_1_encode(text)[0]


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _SCALAR for core in ("core", "_core")},
}


class _ArraysOnly(pickle.Unpickler):
    """Containers, numbers, text and numpy arrays; torchvision's reader would call whatever the file names."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file does") from None


def load(path: Path) -> dict[str, Any]:
    """The dictionary in a file. Raises FileNotFoundError, and UserError for what is no CIFAR file."""
    try:
        with path.open("rb") as file:
            entries = _ArraysOnly(file, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in many ways
        raise UserError(f"{str(path)!r} is no CIFAR file: {' '.join(str(error).split())}") from error
    if not isinstance(entries, dict):
        raise UserError(f"{str(path)!r} is no CIFAR file: it holds a {type(entries).__name__}, not a dictionary")
    return entries


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
