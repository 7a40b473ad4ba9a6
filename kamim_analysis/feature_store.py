"""Features of one model and one data set on disk, for evaluations to read instead of extracting them again.

    STORE/features.json          of what they are: weights, transform, layers, poolings, norm, pictures
    STORE/val/00000.safetensors  "LAYER.POOLING" [n, ...]; labels [n], indices [n] and unreadable [m], int64
    STORE/train/...              where the data have training pictures apart

A shard holds the pictures of a stretch of the split in ascending order of their index in the data, less those that
could not be read, whose indices are `unreadable`. Reading maps the files into memory and touches what is asked for.
Each tensor has a check sum in its shard, which is compared when the tensor is first read; the index has its own.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .data import Pictures, Unreadable
from .decode import UnreadableImage
from .errors import UserError, some
from .extraction import Features, Key, Wanted
from .fingerprints import pictures_fingerprint
from .lock import LOCK
from .output import PARTIAL
from .plain_data import digest_of, json_of
from .sampling import ChosenPictures

INDEX, FORMAT = "features.json", 1
#: of a shard's metadata, and of an index whose shards all have it: the CRC-32 of each tensor by name
CHECK_SUMS = "crc32"
_DIGEST = "sha256"


#: what every index tells
_TOLD = set("model data features last_layer norm dtype batch_size shard_pictures splits".split())


def holds_store(folder: Path) -> bool:
    """Whether features were written there, or were about to be when the process was killed."""
    begun = (INDEX + PARTIAL, LOCK)
    return (folder / INDEX).is_file() or all(path.name in begun for path in folder.iterdir())


def tensor_name(key: Key) -> str:
    """What a layer's pooling is called in a shard."""
    return f"{key[0]}.{key[1]}"


@dataclass(frozen=True)
class FeatureStore:
    """A directory that `kamim features` wrote, finished or not."""

    path: Path
    index: dict[str, Any]

    @property
    def shapes(self) -> dict[Key, tuple[int, ...]]:
        """The shape of one picture's feature by layer and pooling."""
        named = ((name.split("."), shape) for name, shape in self.index["features"].items())
        return {(int(layer), pooling): tuple(shape) for (layer, pooling), shape in named}

    @property
    def shards(self) -> list[str]:
        """The names of all shards, finished or not, in the order of the pictures."""
        size = self.index["shard_pictures"]
        return [
            f"{split}/{number:05d}"
            for split, about in self.index["splits"].items()
            for number in range(-(-about["chosen"] // size))
        ]

    def file(self, shard: str) -> Path:
        """Where a shard lies."""
        return self.path / f"{shard}.safetensors"

    def missing(self) -> list[str]:
        """The shards that are still to be written."""
        return [shard for shard in self.shards if not self.file(shard).is_file()]

    def split(self, name: str) -> "StoredSplit":
        """The pictures of a split. Raises UserError for a shard that is missing or damaged."""
        files = [self.file(shard) for shard in self.shards if shard.startswith(f"{name}/")]
        return StoredSplit(files, summed=CHECK_SUMS in self.index)

    def unfit_for(
        self, encoder: Mapping[str, Any], label: str, keys: Sequence[Key], wanted: Wanted, data: ChosenPictures
    ) -> str:
        """Why these are not the features wanted of a model, in a few words; empty where they are.

        `encoder` is `fingerprints.describe_encoder` of the model called `label`.
        """
        other = encoder_difference(self.index["model"], encoder)
        if other:
            return f"features in {str(self.path)!r} are of another model than {label!r} ({other})"
        reasons = (*self._lacks(keys, wanted), *self._other_pictures(data))
        if not reasons and self.missing():
            done = len(self.shards) - len(self.missing())
            reasons = (f"are unfinished ({done} of {len(self.shards)} shards)",)
        return f"features in {str(self.path)!r} {reasons[0]}" if reasons else ""

    def _lacks(self, keys: Sequence[Key], wanted: Wanted) -> Iterator[str]:
        last = self.index["last_layer"]
        stored = Wanted(layers=(), norm=self.index["norm"])
        for layer, pooling in keys:
            if (layer, pooling) not in self.shapes:
                layers = sorted({layer for layer, _ in self.shapes})
                poolings = ", ".join(dict.fromkeys(name for _, name in self.shapes))
                yield f"lack {pooling} of layer {layer} (they hold {poolings} of layers {some(layers, 30)})"
            if stored.normed(layer, last) != wanted.normed(layer, last):
                states = ["after", "before"] if stored.normed(layer, last) else ["before", "after"]
                yield (
                    f"are of layer {layer} {states[0]} the final norm (--norm {stored.norm}), and those {states[1]} it "
                    f"are asked for (--norm {wanted.norm})"
                )

    def _other_pictures(self, data: ChosenPictures) -> Iterator[str]:
        for split, pictures in (("val", data.test), ("train", data.bank)):
            about = self.index["splits"].get(split)
            if pictures is None:
                continue
            if about is None:
                yield f"are of other pictures (without the {split} split of {data.source!r})"
            elif about["pictures"] != len(pictures):
                yield f"are of other pictures ({about['pictures']} in {split}, not {len(pictures)})"
            elif about["fingerprint"] != pictures_fingerprint(pictures):
                yield f"are of other pictures (names, sizes, labels or seed differ from {data.source!r}, {split})"

    def read(
        self, split: str, pictures: Pictures, indices: Sequence[int], keys: Sequence[Key], unreadable: Unreadable
    ) -> Features:
        """Features of the pictures at `indices`, in that order, those left out that could not be read.

        Raises UserError for pictures of which the store holds nothing, and for damaged shards.
        """
        stored = self.split(split)
        rows, found = stored.rows_of(torch.tensor(indices))
        lost = [i for i, there in zip(indices, found.tolist(), strict=True) if not there]
        unknown = set(lost) - set(stored.unreadable.tolist())
        if unknown:
            raise UserError(
                f"features in {str(self.path)!r} lack {len(unknown)} of the {len(indices)} pictures of {split} asked "
                f"for (they are of {self.index['splits'][split]['chosen']}); extract more with kamim features --images"
            )
        unreadable.add([UnreadableImage(pictures.identity(i), "when its features were extracted") for i in lost])
        if not found.any():
            raise UserError(f"none of the {len(indices)} images of {pictures.name} could be read")
        rows = rows[found]
        lazy = {key: StoredRows(stored, tensor_name(key), self.shapes[key], rows) for key in keys}
        return Features(stored.indices[rows], stored.labels[rows], _Loaded(lazy), lazy)


def open_store(path: Path) -> FeatureStore:
    """Raises UserError for a directory that holds no features, or those of another version's format."""
    index: Any = None
    with suppress(OSError, ValueError):
        index = json_of((path / INDEX).read_text(encoding="utf-8"))
    if not isinstance(index, dict) or "format" not in index:
        raise UserError(
            f"{str(path)!r} holds no features ({INDEX} is missing or unreadable); write them to a new directory with "
            "kamim features"
        )
    if index["format"] != FORMAT:
        raise UserError(
            f"features in {str(path)!r} are of format {index['format']}, and {FORMAT} is read here; extract them anew"
        )
    # stores of before had no check sums
    if not _is_possible(index) or (_DIGEST in index and index[_DIGEST] != digest_of(index, without=_DIGEST)):
        raise UserError(f"{str(path / INDEX)!r} is damaged; put back a copy, or extract the features anew")
    return FeatureStore(path, index)


def _is_possible(index: Mapping[str, Any]) -> bool:
    """Whether an index, whoever wrote it, tells all that is read from it, and names and counts that can be."""
    try:
        shapes, splits, size, last = (index[name] for name in ("features", "splits", "shard_pictures", "last_layer"))
        named = all(layer.isdecimal() and len(layer) < 6 for layer, _ in (name.split(".") for name in shapes))
        sides = all(_is_count(side) for shape in shapes.values() for side in shape)
        counts = all(_is_count(about["pictures"]) and _is_count(about["chosen"]) for about in splits.values())
        within = all(about["chosen"] <= about["pictures"] and "fingerprint" in about for about in splits.values())
        described = not encoder_difference(index["model"], index["model"])  # which reads all that is compared
        sized = _is_count(size) and size > 0 and _is_count(last)
        return named and sides and counts and within and described and sized and index.keys() >= _TOLD
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**31


def with_digest(index: dict[str, Any]) -> dict[str, Any]:
    """An index with the SHA-256 of all that it tells."""
    return index | {_DIGEST: digest_of(index, without=_DIGEST)}


def check_sum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's type, shape and numbers: a gigabyte takes under a second, less than a disk reads it in."""
    about = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, about)


def encoder_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In what two descriptions of encoders differ, the coarsest thing first; empty where in nothing."""
    sizes = [tuple(one["transform"]["input_size"][1:]) for one in (there, here)]
    arguments = [{k: v for k, v in one["model_args"].items() if k != "img_size"} for one in (there, here)]
    if there["architecture"] != here["architecture"]:
        return f"its architecture is {there['architecture']}, not {here['architecture']}"
    if arguments[0] != arguments[1]:
        return f"its architecture has {arguments[0] or 'no arguments'}, not {arguments[1] or 'none'}"
    if sizes[0] != sizes[1]:
        (height, width), (asked_height, asked_width) = sizes
        return f"its image size is {height} x {width} px, not {asked_height} x {asked_width} px"
    for name, value in there["transform"].items():
        if value != here["transform"].get(name):
            return f"its pictures' {name} is {value}, not {here['transform'].get(name)}"
    return "" if there["weights"] == here["weights"] else "its weights differ"


class StoredSplit:
    """The shards of a split, mapped into memory. `summed`: each tensor must have a check sum."""

    def __init__(self, files: Sequence[Path], *, summed: bool = False) -> None:
        self.files, self.summed = list(files), summed
        self._opened: dict[int, Any] = {}
        self._intact: set[tuple[int, str]] = set()
        parts = {
            name: [self.tensor(i, name) for i in range(len(files))] for name in ("indices", "labels", "unreadable")
        }
        for i, found in enumerate(zip(*parts.values(), strict=True)):
            if {(one.dtype, one.ndim) for one in found} != {(torch.int64, 1)} or len(found[0]) != len(found[1]):
                raise self._damaged(i, "its indices and labels are not those of pictures")
        self.indices, self.labels, self.unreadable = map(torch.cat, parts.values())
        #: pictures of each shard, and the first row of each
        self.lengths = list(map(len, parts["indices"]))
        self.starts = torch.tensor([0, *self.lengths]).cumsum(0)[:-1]

    def tensor(self, shard: int, name: str) -> Tensor:
        """A tensor of a shard, read whole for its check sum the first time, and later where it is touched."""
        try:
            if shard not in self._opened:
                self._opened[shard] = safe_open(self.files[shard], "pt")
            mapped: Tensor = self._opened[shard].get_tensor(name)
            if (shard, name) not in self._intact:
                self._compare(shard, name, mapped)
                self._intact.add((shard, name))
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            raise self._damaged(shard, " ".join(str(error).split())) from error
        return mapped

    def features(self, shard: int, name: str, shape: tuple[int, ...]) -> Tensor:
        """Features of the pictures of a shard, each of this shape, as `tensor` reads them."""
        found = self.tensor(shard, name)
        if found.shape != (self.lengths[shard], *shape) or not found.is_floating_point():
            raise self._damaged(shard, f"{name} is {found.dtype} of {list(found.shape)}, not as the index tells")
        return found

    def _damaged(self, shard: int, reason: str) -> UserError:
        return UserError(
            f"shard {str(self.files[shard])!r} is damaged or missing ({reason}); remove it and run the same kamim "
            "features again"
        )

    def _compare(self, shard: int, name: str, tensor: Tensor) -> None:
        """Raise ValueError for a tensor that is not the one that was written."""
        metadata = self._opened[shard].metadata() or {}
        noted = json_of(metadata.get(CHECK_SUMS, "{}"))
        if name not in noted and (self.summed or noted):
            raise ValueError(f"the check sum of {name} is missing")
        if name in noted and noted[name] != check_sum(tensor):
            raise ValueError(f"the check sum of {name} differs")

    def rows_of(self, indices: Int64[Tensor, " i"]) -> tuple[Int64[Tensor, " i"], Any]:
        """The row of each picture, and whether there is one."""
        if not len(self.indices):
            return torch.zeros_like(indices), torch.zeros(len(indices), dtype=torch.bool)
        rows = torch.searchsorted(self.indices, indices).clamp(max=len(self.indices) - 1)
        return rows, self.indices[rows] == indices


@dataclass(frozen=True)
class StoredRows:
    """One layer and pooling of chosen pictures (`extraction.Rows`)."""

    split: StoredSplit
    name: str
    shape_of_one: tuple[int, ...]
    chosen: Int64[Tensor, " i"]
    """The row of each picture in the split."""

    @property
    def shape(self) -> torch.Size:
        """[images, ...]."""
        return torch.Size((len(self.chosen), *self.shape_of_one))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, positions: Int64[Tensor, " b"], /) -> Float[Tensor, "b ..."]:
        """Those of the pictures at these positions, in this order, float32."""
        rows = self.chosen[positions]
        shards = torch.searchsorted(self.split.starts, rows, right=True) - 1
        read = torch.empty(len(rows), *self.shape_of_one)
        for shard in shards.unique().tolist():
            here = (shards == shard).nonzero()[:, 0]
            features = self.split.features(shard, self.name, self.shape_of_one)
            read[here] = features[rows[here] - self.split.starts[shard]].float()
        return read


class _Loaded(Mapping[Key, Tensor]):
    """Whole tensors, each read when it is asked for."""

    def __init__(self, rows: Mapping[Key, StoredRows]) -> None:
        self._rows = rows

    def __getitem__(self, key: Key) -> Tensor:
        rows = self._rows[key]
        return rows[torch.arange(len(rows))]

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[Key]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
