"""Micro-batches on the device, for as long as they are asked for."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kamim_analysis.data import Unreadable

from .samples import Order, TrainingSamples, load_samples


class Batches:
    """Micro-batches (tensors by name) of this process, from the order's first step on, without end.

    What cannot be read is told to `unreadable`.
    """

    def __init__(
        self, samples: TrainingSamples, order: Order, unreadable: Unreadable, device: torch.device, *, workers: int
    ) -> None:
        self.unreadable, self.device = unreadable, device
        self.loaded: Iterator[Any] = load_samples(samples, order, workers=workers, pin=device.type == "cuda")

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, Tensor]:
        batch, failed = next(self.loaded)
        self.unreadable.add(failed)
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
