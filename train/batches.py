"""Micro-batches on the device, for as long as they are asked for."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kamim_analysis.data import Unreadable
from kamim_analysis.decode import UnreadableImage
from kamim_analysis.worker_processes import WorkerProcesses, tell_of_loss

from .crop import UNREADABLE
from .samples import Order, TrainingSamples, load_samples

Loaded = tuple[dict[str, Any], list[UnreadableImage]]


class Batches:
    """Micro-batches (tensors by name) of this process, from the order's first step on, without end.

    What cannot be read is told to `unreadable`. `finish` is what the view leaves to the device. Workers that die are
    replaced, and the same samples follow. On CUDA the next micro-batch is copied and finished on a stream of its own
    while this one computes.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        order: Order,
        unreadable: Unreadable,
        device: torch.device,
        *,
        workers: int,
        finish: Callable[[dict[str, Any]], dict[str, Tensor]] = dict,
    ) -> None:
        self.samples, self.order, self.unreadable = samples, order, unreadable
        self.device, self.workers, self.finish = device, workers, finish
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ahead: Loaded | None = None
        self.taken, self.losses = 0, 0
        self.loaded = self._start()

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, Tensor]:
        batch, failed = self._on_device() if self.ahead is None else self.ahead
        self.unreadable.add(failed)
        if self.stream is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self.stream)
            for value in batch.values():
                if isinstance(value, Tensor):
                    value.record_stream(computing)  # its memory is not given away while this stream uses it
            self.ahead = self._on_device()
        return batch

    def close(self) -> None:
        """End the workers."""
        if isinstance(self.loaded, WorkerProcesses):
            self.loaded.end()

    def _on_device(self) -> Loaded:
        """The next micro-batch, moved and finished; on CUDA only begun to be."""
        batch, failed = self._next()
        if self.stream is not None:
            # what earlier steps still compute with is not overwritten
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
            moved = {
                name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in batch.items()
            }
            finished: dict[str, Any] = self.finish(moved)
            return finished, failed + finished.pop(UNREADABLE, [])

    def _start(self) -> Iterator[Any]:
        """From the micro-batch on that is due."""
        steps, within = divmod(self.taken, self.order.accumulate)
        order = replace(self.order, first_step=self.order.first_step + steps)
        return load_samples(
            self.samples, order, workers=self.workers, pin=self.device.type == "cuda", first_micro_batch=within
        )

    def _next(self) -> Loaded:
        """The next micro-batch as workers load it. Raises UserError when they die again and again."""
        while True:
            try:
                loaded: Loaded = next(self.loaded)
            except Exception:
                deaths = self.loaded.deaths() if isinstance(self.loaded, WorkerProcesses) else []
                if not deaths:
                    raise
                self._replace(deaths)
            else:
                self.taken, self.losses = self.taken + 1, 0
                return loaded

    def _replace(self, deaths: list[str]) -> None:
        self.losses += 1
        self.close()
        tell_of_loss(deaths, self.losses, "--efficiency.workers")
        self.loaded = self._start()
