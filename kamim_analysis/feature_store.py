"""Features of one model and one data set on disk, for evaluations to read instead of extracting them again.

    STORE/features.json          of what they are: weights, transform, layers, poolings, norm, pictures
    STORE/val/00000.safetensors  "LAYER.POOLING" [n, ...]; labels [n], indices [n] and unreadable [m], int64
    STORE/train/...              where the data have training pictures apart

A shard holds the pictures of a stretch of the split in ascending order of their index in the data, less those that
could not be read, whose indices are `unreadable`. Reading maps the files into memory and touches what is asked for.
"""

import json
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
from .output import PARTIAL
from .sampling import ChosenPictures

INDEX, FORMAT = "features.json", 1


def holds_store(folder: Path) -> bool:
    """Whether features were written there, or were about to be when the process was killed."""
    return (folder / INDEX).is_file() or all(path.name == INDEX + PARTIAL for path in folder.iterdir())


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
        return StoredSplit([self.file(shard) for shard in self.shards if shard.startswith(f"{name}/")])

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
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    if not isinstance(index, dict) or "format" not in index:
        raise UserError(f"{str(path)!r} holds no features ({INDEX} is missing or unreadable); run kamim features first")
    if index["format"] != FORMAT:
        raise UserError(
            f"features in {str(path)!r} are of format {index['format']}, and {FORMAT} is read here; extract them anew"
        )
    return FeatureStore(path, index)


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
    """The shards of a split, mapped into memory."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._opened: dict[int, Any] = {}
        parts = {
            name: [self.tensor(i, name) for i in range(len(files))] for name in ("indices", "labels", "unreadable")
        }
        self.indices, self.labels, self.unreadable = map(torch.cat, parts.values())
        #: the first row of each shard
        self.starts = torch.tensor([0, *map(len, parts["indices"])]).cumsum(0)[:-1]

    def tensor(self, shard: int, name: str) -> Tensor:
        """A tensor of a shard, not read before it is touched."""
        try:
            if shard not in self._opened:
                self._opened[shard] = safe_open(self.files[shard], "pt")
            mapped: Tensor = self._opened[shard].get_tensor(name)
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"shard {str(self.files[shard])!r} is damaged or missing ({reason}); remove it and run the same kamim "
                "features again"
            ) from error
        return mapped

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
            read[here] = self.split.tensor(shard, self.name)[rows[here] - self.split.starts[shard]].float()
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
