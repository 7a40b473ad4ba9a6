"""Devices and processes of a training: the one module that knows accelerate."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kamim_analysis.runtime import resolve_precision

from .objective_module import ObjectiveModule
from .recipe import Efficiency


class Parallel:
    """This process's device, its place among the processes of torchrun, and what they do together.

    All processes must call `wrap`, `mean`, `wait` and `tensors`, in the same order.
    """

    def __init__(self, efficiency: Efficiency) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = resolve_precision(efficiency.precision, device)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if precision == "bf16" else "no", cpu=device.type == "cpu"
        )
        self.device: torch.device = self.accelerator.device
        self.processes: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wrap(self, objective: ObjectiveModule) -> Any:
        """Move the objective to the device; the module whose forward pass serves all processes.

        The objective's own weights are those that are trained, possibly in parts; an optimizer is built after this.
        """
        objective.to(self.device)
        return self.accelerator.prepare(objective)

    @contextmanager
    def passes(self, wrapped: Any, *, last: bool) -> Iterator[None]:
        """Around the passes of a micro-batch: gradients are exchanged in the `last` one of a step alone."""
        with nullcontext() if last else self.accelerator.no_sync(wrapped):
            yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss."""
        self.accelerator.backward(loss)

    def clip(self, wrapped: Any, norm: float) -> Tensor:
        """Scale all gradients to this norm at most; their norm before that, still on the device."""
        total: Tensor = self.accelerator.clip_grad_norm_(wrapped.parameters(), norm)
        return total

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        mean: Tensor = self.accelerator.reduce(values, reduction="mean")
        return mean

    def wait(self) -> None:
        """For all processes."""
        self.accelerator.wait_for_everyone()

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor that may lie in parts on all processes, as one."""
        return tensor

    def whole_model(self, objective: ObjectiveModule) -> nn.Module:
        """The objective's model with all its weights, for the first process to look at, judge or export alone."""
        return objective.model
