"""Training samples that are a function of (seed, epoch, picture) alone.

The order of pictures, the crop and the mask depend on nothing else: not on the number of workers or processes, and
not on what was drawn before. So a run resumes in the middle of an epoch by starting at a step, with nothing to restore.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray
from torch.utils.data import DataLoader, Dataset, default_collate

from kamim_analysis.data import Pictures
from kamim_analysis.decode import UnreadableImage
from kamim_analysis.errors import UserError
from kamim_analysis.runtime import serving_worker
from kamim_analysis.worker_processes import WorkerProcesses

from .crop import UNREADABLE
from .device_decode import JPEG, Undecoded
from .recipe import Data
from .split import check_split
from .views import Augmentation, CropView, View


class TrainingSamples(Dataset[Any]):
    """Sample (epoch, index): picture `index` through the objective's view, and its class `label`."""

    def __init__(self, pictures: Pictures, view: View, seed: int) -> None:
        self.pictures, self.view, self.seed = pictures, view, seed
        self.read: Any = Undecoded(pictures) if view.takes_files else pictures.read

    def __getitem__(self, at: tuple[int, int]) -> tuple[dict[str, Any], list[UnreadableImage]]:
        epoch, index = at
        picture, label, failed = self._read(index)
        state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed does the same and then, for every GPU, what takes as long as decoding
            torch.default_generator.manual_seed(int(state[0]))
            return self.view(picture) | {"label": torch.tensor(label)}, failed

    def batch(self, chosen: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """These samples side by side, finished on the CPU."""
        samples, _failed = _collate(self.view, [self[at] for at in chosen])
        batch = self.view.finish(samples)
        batch.pop(UNREADABLE, None)
        return batch

    def _read(self, index: int) -> tuple[Any, int, list[UnreadableImage]]:
        """The picture and its class, or the next readable one's in its place: a batch keeps its size."""
        failed: list[UnreadableImage] = []
        for step in range(len(self.pictures)):
            try:
                return *self.read((index + step) % len(self.pictures)), failed
            except UnreadableImage as error:
                failed.append(error)
        raise UserError(f"none of the {len(self.pictures)} images of {self.pictures.name} could be read")


@dataclass(frozen=True, kw_only=True)
class Order:
    """The endless sequence of micro-batches of one process, each epoch in a new order, its last partial batch dropped.

    One optimizer step takes `batch_size` pictures: `accumulate` micro-batches on each of `processes` processes.
    """

    length: int
    batch_size: int
    seed: int
    first_step: int = 0
    accumulate: int = 1
    processes: int = 1
    rank: int = 0
    shards: Int64[ndarray, " i"] | None = None
    """The number of the shard that each picture lies in."""
    mixed_shards: int | None = None
    """An epoch takes so many shards at a time, in a new order, and mixes their pictures; None: all at once."""

    def __post_init__(self) -> None:
        check_split(self.batch_size, self.accumulate, self.processes)
        if self.mixed_shards is not None and (self.shards is None or self.mixed_shards < 1):
            raise UserError(
                f"data.mixed_shards {self.mixed_shards} is for packed shards (kamim pack writes them) and counts from 1"
            )
        if self.length < self.batch_size:
            raise UserError(
                f"{self.length} training images are fewer than one batch; "
                f"set --optim.batch_size to {self.length} or less"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.length // self.batch_size

    def samples_of(self, step: int) -> list[tuple[int, int]]:
        """Samples (epoch, index) of optimizer step `step`, 1 for the first, in all processes."""
        orders = [iter(replace(self, first_step=step - 1, rank=rank)) for rank in range(self.processes)]
        return [sample for _ in range(self.accumulate) for order in orders for sample in next(order)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.first_step
        micro = self.batch_size // (self.accumulate * self.processes)
        while True:
            epoch, position = divmod(step, self.steps_per_epoch)
            order = self._epoch(epoch)
            for first in range(position * self.batch_size, self.steps_per_epoch * self.batch_size, self.batch_size):
                batch = order[first : first + self.batch_size].reshape(self.accumulate, self.processes, micro)
                for part in batch[:, self.rank]:
                    yield [(epoch, int(index)) for index in part]
                step += 1

    def _epoch(self, epoch: int) -> Int64[ndarray, " i"]:
        """All pictures in the order of an epoch."""
        draw = np.random.default_rng([self.seed, epoch])
        if self.mixed_shards is None or self.shards is None:
            return draw.permutation(self.length)
        shards, shard = np.unique(self.shards, return_inverse=True)
        turn = draw.permutation(len(shards)) // self.mixed_shards
        mixed = draw.permutation(self.length)
        return mixed[np.argsort(turn[shard[mixed]], kind="stable")]


def _collate(view: View, items: list[tuple[dict[str, Any], list[UnreadableImage]]]) -> Any:
    samples, failed = zip(*items, strict=True)
    return view.join(_side_by_side(samples)), [error for errors in failed for error in errors]


def _side_by_side(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacked, but for images among which are files: those stay a list."""
    lists: dict[str, Any] = {}
    if any(isinstance(sample.get("image"), JPEG) for sample in samples):
        lists["image"] = [sample["image"] for sample in samples]
    rest = [{name: value for name, value in sample.items() if name not in lists} for sample in samples]
    batch: dict[str, Any] = default_collate(rest)
    return batch | lists


def load_samples(
    samples: TrainingSamples, order: Order, *, workers: int, pin: bool, first_micro_batch: int = 0
) -> Iterator[Any]:
    """Micro-batches (dict of tensors, unreadable pictures met) without end.

    From `first_micro_batch` of the order's first step on.
    """
    loader = DataLoader(
        samples,
        batch_sampler=itertools.islice(order, first_micro_batch, None),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=partial(_collate, samples.view),
        pin_memory=pin,
        worker_init_fn=serving_worker,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # or it draws from the global state, in mid-step where workers are replaced
    )
    if not workers:
        return iter(loader)
    loader.check_worker_number_rationality()
    return WorkerProcesses(loader)


def first_crops(pictures: Pictures, count: int, image_size: int, seed: int) -> list[UInt8[ndarray, "y x 3"]]:
    """Crops [S, S, 3] of the pictures that a run of this seed sees first, as a recipe crops that says nothing of it."""
    samples = TrainingSamples(pictures, CropView(Augmentation.of(Data()).crop(image_size)), seed)
    return [
        samples[at][0]["image"].permute(1, 2, 0).contiguous().numpy() for at in first_samples(pictures, count, seed)
    ]


def first_samples(pictures: Pictures, count: int, seed: int) -> list[tuple[int, int]]:
    """The first so many samples of a run of this seed, or one of each picture where there are fewer."""
    count = min(count, len(pictures))
    return next(iter(Order(length=len(pictures), batch_size=count, seed=seed)))
