"""Writing a feature store so that a run killed at any moment is gone on with by the next, and ends with the same bytes.

The index is written first, then each shard aside, flushed to the disk and renamed: what has its name is whole. Shards
hold whole batches, so the batches of a resumed run, and of several processes, are those of a single run.
"""

import json
import logging
import shutil
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from . import processes
from .data import Pictures, Unreadable
from .encoders import anatomy
from .errors import UserError
from .evaluation_set import ImageBatch
from .extraction import Extractor, Key, Loading, Wanted, batches_of, check_finite
from .feature_store import (
    CHECK_SUMS,
    FORMAT,
    INDEX,
    FeatureStore,
    check_sum,
    encoder_difference,
    open_store,
    tensor_name,
    with_digest,
)
from .fingerprints import describe_encoder, indices_fingerprint, pictures_fingerprint
from .lock import locked
from .opening import OpenedModel
from .output import write_file
from .runtime import best_device
from .sampling import ChosenPictures

log = logging.getLogger(__name__)

DataType = Literal["float32", "float16"]
# what is lost at most when a run is killed, and held in memory until it is written
_SHARD_PICTURES, _SHARD_BYTES = 2048, 2**27


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What is to be stored of one model and one data set."""

    opened: OpenedModel
    data: ChosenPictures
    wanted: Wanted
    loading: Loading
    dtype: DataType = "float32"
    shard_pictures: int | None = None
    """Pictures of a shard, rounded down to whole batches; None: 2,048, or what fits 128 MB."""

    @cached_property
    def extractor(self) -> Extractor:
        """Raises UserError for features that the encoder does not offer."""
        return Extractor(self.opened.encoder.to(best_device()), self.wanted)

    @cached_property
    def shapes(self) -> dict[Key, tuple[int, ...]]:
        """The shape of one picture's feature by layer and pooling, found out with a black picture."""
        size = anatomy(self.opened.encoder).image_size
        features = self.extractor(torch.zeros(1, 3, *size, device=best_device()))
        return {key: tuple(values.shape[1:]) for key, values in features.items()}

    @property
    def picture_bytes(self) -> int:
        """What one picture takes in the store: its features, its label and its index."""
        size: int = getattr(torch, self.dtype).itemsize
        return sum(map(prod, self.shapes.values())) * size + 16

    @cached_property
    def shard_size(self) -> int:
        """Pictures of a shard, a multiple of the batch size."""
        most = self.shard_pictures or min(_SHARD_PICTURES, _SHARD_BYTES // self.picture_bytes)
        return max(most // self.loading.batch_size, 1) * self.loading.batch_size

    @cached_property
    def chosen(self) -> dict[str, list[int]]:
        """The pictures of each split, in ascending order: files are read as they lie."""
        splits = {"val": self.data.test_indices} | ({"train": self.data.bank_indices} if self.data.bank else {})
        return {split: sorted(indices) for split, indices in splits.items()}

    def pictures(self, split: str) -> Pictures:
        """The pictures of a split."""
        pictures = self.data.test if split == "val" else self.data.bank
        assert pictures is not None
        return pictures

    def pictures_of(self, shard: str) -> list[int]:
        """The pictures of a shard."""
        split, number = shard.split("/")
        start = int(number) * self.shard_size
        return self.chosen[split][start : start + self.shard_size]

    def index(self) -> dict[str, Any]:
        """What stands in features.json; nothing of the time, the machine or the progress."""
        wanted, opened = self.wanted, self.opened
        index = {
            "format": FORMAT,
            "model": {"label": opened.label, "spec": opened.spec} | opened.provenance | describe_encoder(opened),
            "data": self.data.source,
            "features": {tensor_name(key): shape for key, shape in self.shapes.items()},
            "last_layer": len(anatomy(opened.encoder).blocks),
            "norm": wanted.norm,
            "dtype": self.dtype,
            "batch_size": self.loading.batch_size,
            "shard_pictures": self.shard_size,
            "splits": {split: self._about(split) for split in self.chosen},
            CHECK_SUMS: "of each tensor, in its shard",
        }
        plain: dict[str, Any] = json.loads(json.dumps(index, default=str))
        return with_digest(plain)

    def _about(self, split: str) -> dict[str, Any]:
        pictures, chosen = self.pictures(split), self.chosen[split]
        return {
            "source": pictures.name,
            "pictures": len(pictures),
            "fingerprint": pictures_fingerprint(pictures),
            "chosen": len(chosen),
            "indices": indices_fingerprint(chosen),
        }


def write_store(extraction: Extraction, out: Path) -> FeatureStore:
    """Extract what `out` does not hold yet, each of several processes whole shards; `out` must be a store or empty.

    Raises UserError for a store of something else, or one that another command writes, for too little space, and for
    features that are not finite.
    """
    with locked(out) if processes.is_first() else nullcontext():
        return _written(extraction, out)


def _written(extraction: Extraction, out: Path) -> FeatureStore:
    missing: set[str] = set()
    if processes.is_first():
        missing = set(_begun(extraction, out).missing())
    # every process learns it from the first, and so none starts before the index is there
    jobs = sorted(processes.united(missing))
    start, stop = (len(jobs) * part // processes.count() for part in (processes.rank(), processes.rank() + 1))
    for split, shards in groupby(jobs[start:stop], key=lambda shard: shard.split("/")[0]):
        _write_shards(extraction, split, list(shards), out)
    processes.united(set())  # no process ends before all have written
    store = open_store(out)
    for split in extraction.chosen:
        lost = store.split(split).unreadable.tolist()
        extraction.data.unreadable.names |= {extraction.pictures(split).identity(i) for i in lost}
    return store


def _begun(extraction: Extraction, out: Path) -> FeatureStore:
    """The store with its index, which is written unless it is there."""
    index = extraction.index()
    if (out / INDEX).is_file():
        store = open_store(out)
        different = _difference(store.index, index)
        if different:
            raise UserError(
                f"{str(out)!r} holds other features ({different}); give a new --out, or the same settings to go on"
            )
        _check_space(extraction, store)
        return store
    store = FeatureStore(out, index)
    _check_space(extraction, store)
    write_file(out / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    return store


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In what two indices differ, less where model and data lie and what they are called; empty where in nothing."""
    model = encoder_difference(there["model"], here["model"])
    if model:
        return f"of another model: {model}"
    if there["features"] != here["features"]:
        return f"{_layers_and_poolings(there)}, not {_layers_and_poolings(here)}"
    for name in ("norm", "dtype", "batch_size", "shard_pictures"):
        if there[name] != here[name]:
            return f"{name} is {there[name]}, not {here[name]}"
    return _difference_of_pictures(there["splits"], here["splits"])


def _difference_of_pictures(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    if there.keys() != here.keys():
        return f"of the splits {', '.join(there)}, not {', '.join(here)}"
    for split, about in here.items():
        for name in ("pictures", "chosen"):  # in the data, and of them stored
            if there[split][name] != about[name]:
                return f"{there[split][name]} {name} of {split}, not {about[name]}"
        if any(there[split][name] != about[name] for name in ("fingerprint", "indices")):
            return f"the pictures of {split} are others, or their names, sizes, labels or the seed have changed"
    return ""


def _layers_and_poolings(index: Mapping[str, Any]) -> str:
    layers, poolings = zip(*(name.split(".") for name in index["features"]), strict=True)
    return f"{','.join(dict.fromkeys(poolings))} of layers {','.join(dict.fromkeys(layers))}"


def _check_space(extraction: Extraction, store: FeatureStore) -> None:
    """Say how much will be written. Raises UserError where the disk has less."""
    missing = store.missing()
    needed = sum(len(extraction.pictures_of(shard)) for shard in missing) * extraction.picture_bytes
    there = next(folder for folder in (store.path, *store.path.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"features need {megabytes(needed)} and {str(there)!r} has {megabytes(free)} free; take fewer layers, "
            "poolings or --images, or --dtype float16"
        )
    if missing:
        begun = len(store.shards) - len(missing)
        progress = f", {begun} of {len(store.shards)} shards are there already" if begun else ""
        log.info("%s to write to %s (%s free)%s", megabytes(needed), store.path, megabytes(free), progress)
    else:
        log.info("%s is complete already", store.path)


def megabytes(size: int) -> str:
    """Bytes for a reader.

    >>> megabytes(3_400_000), megabytes(1_234_000_000)
    ('3.4 MB', '1,234 MB')
    """
    return f"{size / 1e6:,.{0 if size >= 1e8 else 1}f} MB"


def _write_shards(extraction: Extraction, split: str, shards: list[str], out: Path) -> None:
    """All in one go over their pictures, so that loading does not start anew with each shard."""
    chosen = extraction.chosen[split]
    indices = [i for shard in shards for i in extraction.pictures_of(shard)]
    pictures, opened = extraction.pictures(split), extraction.opened
    unreadable = Unreadable(len(indices))

    def shard_of(batch: ImageBatch) -> str:
        return f"{split}/{bisect_left(chosen, int(batch.indices[0])) // extraction.shard_size:05d}"

    left = dict.fromkeys(shards)
    # closed at once after an error, so that the progress bar ends before the error is told
    with closing(batches_of(opened, pictures, indices, unreadable, extraction.loading, f"features of {split}")) as read:
        for shard, group in groupby(read, key=shard_of):
            _write_shard(extraction, shard, group, out)
            del left[shard]
    for shard in left:  # not one of its pictures could be read
        _write_shard(extraction, shard, iter(()), out)


def _write_shard(extraction: Extraction, shard: str, batches: Iterator[ImageBatch], out: Path) -> None:
    pictures = extraction.pictures(shard.split("/")[0])
    dtype = getattr(torch, extraction.dtype)
    parts = {tensor_name(key): [torch.empty(0, *shape, dtype=dtype)] for key, shape in extraction.shapes.items()}
    parts |= {name: [torch.empty(0, dtype=torch.int64)] for name in ("indices", "labels")}
    for batch in batches:
        features = extraction.extractor(batch.images.to(best_device(), non_blocking=True))
        check_finite(features, batch.indices, pictures, extraction.opened.label)
        if dtype == torch.float16:
            features = {key: _halved(key, values) for key, values in features.items()}
        for key, values in features.items():
            parts[tensor_name(key)].append(values.cpu())
        parts["indices"].append(batch.indices)
        parts["labels"].append(batch.labels)
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    lost = set(extraction.pictures_of(shard)) - set(tensors["indices"].tolist())
    tensors["unreadable"] = torch.tensor(sorted(lost), dtype=torch.int64)
    # one entry of metadata: several would be written in a random order
    sums = json.dumps({name: check_sum(values) for name, values in tensors.items()})
    write_file(FeatureStore(out, {}).file(shard), safetensors.torch.save(tensors, {CHECK_SUMS: sums}))


def _halved(key: Key, values: Tensor) -> Tensor:
    half = values.half()
    if not half.isfinite().all():
        raise UserError(f"layer {key[0]} ({key[1]}) has values beyond 65504, float16's largest; take --dtype float32")
    return half
