"""Weights and the optimizer's moments at one moment, copied to the host while training waits, and put back by name."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .parallel import Parallel


class HostCopies:
    """Copies of tensors in host memory. The buffers are used again at the next `take`, and page-locked for CUDA.

    Into memory that is already mapped, a copy takes a seventh of a clone's time.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}
        self.copied: torch.cuda.Event | None = None

    def take(self, tensors: Iterable[tuple[str, Tensor]], parallel: Parallel) -> dict[str, Tensor]:
        """Copies of the tensors by name in the first process, none in others; all processes call this alike.

        They are complete once `wait` has returned; changes of the tensors that are made, or queued on CUDA, after this
        call are not in them.
        """
        copies = {}
        for name, tensor in tensors:
            whole = parallel.whole(tensor.detach())
            if parallel.is_first:
                copies[name] = self._buffer(name, whole).copy_(whole, non_blocking=True)
        if parallel.device.type == "cuda":
            self.copied = torch.cuda.Event()
            self.copied.record()
        return copies

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        buffer = self.buffers.get(name)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = self.buffers[name] = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
        return buffer

    def wait(self) -> None:
        """Until the copies of the last `take` are complete; other threads run meanwhile."""
        if self.copied is not None:
            self.copied.synchronize()


def moments(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's state as PARAMETER/MOMENT and tensor; of a parameter that was never stepped, nothing."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            for key, value in optimizer.state.get(weight, {}).items():
                yield f"{names[weight]}/{key}", value


def restore_moments(
    optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str], tensors: dict[str, Tensor], parallel: Parallel
) -> None:
    """Give the optimizer the moments by name. Its rates and decays stay: the schedule sets them from the step.

    Raises ValueError for moments of other parameters.
    """
    states: dict[str, dict[str, Tensor]] = {name: {} for name in names.values()}
    for entry, tensor in tensors.items():
        name, _, key = entry.rpartition("/")
        if name not in states:
            raise ValueError(f"the optimizer has no parameter {name!r}")
        states[name][key] = tensor
    numbered = {}
    for number, weight in enumerate(weight for group in optimizer.param_groups for weight in group["params"]):
        state = states[names[weight]]
        for key, tensor in state.items():
            if key != "step" and tensor.shape != weight.shape:
                expected, came = list(weight.shape), list(tensor.shape)
                raise ValueError(f"{key} of {names[weight]!r} has shape {came}, its parameter {expected}")
        if state:
            numbered[number] = {
                key: tensor if key == "step" else placed(tensor, weight, parallel) for key, tensor in state.items()
            }
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})


def placed(tensor: Tensor, like: Tensor | None, parallel: Parallel) -> Tensor:
    """A whole tensor in parts where `like` lies in parts."""
    return parallel.placed(tensor, like) if isinstance(like, DTensor) else tensor
