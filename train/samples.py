"""Training samples that are a function of (seed, epoch, picture) alone.

The order of pictures, the crop and the mask depend on nothing else: not on the number of workers or processes, and
not on what was drawn before. So a run resumes in the middle of an epoch by starting at a step, with nothing to restore.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from kamim_analysis.data import Pictures
from kamim_analysis.decode import UnreadableImage
from kamim_analysis.errors import UserError
from kamim_analysis.runtime import quiet_worker

from .recipe import Data
from .views import Augmentation, View


class TrainingSamples(Dataset[Any]):
    """Sample (epoch, index): picture `index` through the objective's view, and its class `label`."""

    def __init__(self, pictures: Pictures, view: View, seed: int) -> None:
        self.pictures, self.view, self.seed = pictures, view, seed

    def __getitem__(self, at: tuple[int, int]) -> tuple[dict[str, Tensor], list[UnreadableImage]]:
        epoch, index = at
        picture, label, failed = self._read(index)
        state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state[0]))
            return self.view(picture) | {"label": torch.tensor(label)}, failed

    def _read(self, index: int) -> tuple[Any, int, list[UnreadableImage]]:
        """The picture and its class, or the next readable one's in its place: a batch keeps its size."""
        failed: list[UnreadableImage] = []
        for step in range(len(self.pictures)):
            try:
                return *self.pictures.read((index + step) % len(self.pictures)), failed
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

    def __post_init__(self) -> None:
        parts = self.accumulate * self.processes
        if self.batch_size % parts:
            raise UserError(
                f"batch_size {self.batch_size} does not split into {self.accumulate} micro-batches on "
                f"{self.processes} processes; the nearest that do are {self.batch_size // parts * parts or parts} and "
                f"{(self.batch_size // parts + 1) * parts}"
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

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.first_step
        micro = self.batch_size // (self.accumulate * self.processes)
        while True:
            epoch, position = divmod(step, self.steps_per_epoch)
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
            for first in range(position * self.batch_size, self.steps_per_epoch * self.batch_size, self.batch_size):
                batch = order[first : first + self.batch_size].reshape(self.accumulate, self.processes, micro)
                for part in batch[:, self.rank]:
                    yield [(epoch, int(index)) for index in part]
                step += 1


def _collate(items: list[tuple[dict[str, Tensor], list[UnreadableImage]]]) -> Any:
    samples, failed = zip(*items, strict=True)
    return default_collate(list(samples)), [error for errors in failed for error in errors]


def load_samples(samples: TrainingSamples, order: Order, *, workers: int, pin: bool) -> Iterator[Any]:
    """Micro-batches (dict of tensors, unreadable pictures met) without end."""
    loader = DataLoader(
        samples,
        batch_sampler=order,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin,
        worker_init_fn=quiet_worker,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def first_crops(pictures: Pictures, count: int, image_size: int, seed: int) -> list[UInt8[ndarray, "y x 3"]]:
    """Crops [S, S, 3] of the pictures that a run of this seed sees first, as a recipe crops that says nothing of it."""
    augment = Augmentation.of(Data()).build(image_size)
    samples = TrainingSamples(
        pictures, lambda picture: {"image": augment(torch.from_numpy(picture).permute(2, 0, 1))}, seed
    )
    return [
        samples[at][0]["image"].permute(1, 2, 0).contiguous().numpy() for at in first_samples(pictures, count, seed)
    ]


def first_samples(pictures: Pictures, count: int, seed: int) -> list[tuple[int, int]]:
    """The first so many samples of a run of this seed, or one of each picture where there are fewer."""
    count = min(count, len(pictures))
    return next(iter(Order(length=len(pictures), batch_size=count, seed=seed)))
