"""Devices and processes of a training: the one module that knows accelerate and FSDP.

accelerate finds the device and wraps for DDP. FSDP2 is asked of torch itself: accelerate's plug-in wants the optimizer
handed over together with the model and chooses what to shard by class names, which of a timm model one would have to
know, while `fully_shard` on each block of each encoder is two lines, and leaves names, hooks and the optimizer alone.
"""

import atexit
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from kamim_analysis import processes
from kamim_analysis.encoders import anatomy, is_encoder
from kamim_analysis.runtime import resolve_precision

from . import dtensors
from .objective_module import ObjectiveModule
from .recipe import Efficiency

log = logging.getLogger(__name__)


class Parallel:
    """This process's device, its place among the processes of torchrun, and what they do together.

    All processes must call `wrap`, `mean`, `wait`, `whole` and `whole_model`, in the same order.
    """

    def __init__(self, efficiency: Efficiency) -> None:
        _join()
        self.accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
        self.device: torch.device = self.accelerator.device
        self.processes: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        self.half = resolve_precision(efficiency.precision, self.device) == "bf16"
        self.mesh: DeviceMesh | None = None
        if efficiency.parallel == "fsdp" and self.processes > 1:
            self.mesh = init_device_mesh(self.device.type, (self.processes,))
        self._copy: nn.Module | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wrap(self, objective: ObjectiveModule) -> Any:
        """Move the objective to the device; the module whose forward pass serves all processes.

        The objective's own weights are those that are trained, possibly in parts; an optimizer is built after this.
        """
        if self.mesh is None:
            objective.to(self.device)
            return self.accelerator.prepare(objective)
        if self.is_first:
            self._copy = deepcopy(objective.model)
        objective.to(self.device)
        return _sharded(objective, self.mesh, half=self.half)

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward pass: bf16 where the recipe asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    @contextmanager
    def passes(self, wrapped: Any, *, last: bool) -> Iterator[None]:
        """Around the passes of a micro-batch: gradients are exchanged in the `last` one of a step alone."""
        if isinstance(wrapped, FSDPModule):
            wrapped.set_requires_gradient_sync(last)
            yield
        else:
            with nullcontext() if last else self.accelerator.no_sync(wrapped):
                yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss."""
        loss.backward()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        mean: Tensor = self.accelerator.reduce(values, reduction="mean")
        return mean

    def wait(self) -> None:
        """For all processes."""
        self.accelerator.wait_for_everyone()

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor that may lie in parts on all processes, as one, on the device."""
        return dtensors.whole(tensor)

    def placed(self, tensor: Tensor, like: Tensor) -> Tensor:
        """A tensor that every process has whole, as `like` lies: on its device, and in parts if that does."""
        return dtensors.placed(tensor, like)

    def whole_model(self, objective: ObjectiveModule) -> nn.Module:
        """The objective's model with all its weights, for the first process to look at, judge or export alone.

        Of weights in parts a copy on the device, which does not follow later steps; other processes get what they have.
        """
        if self.mesh is None:
            return objective.model
        kept = self._copy.state_dict() if self._copy is not None else {}
        for name, tensor in objective.model.state_dict().items():
            weight = dtensors.whole(tensor)
            if name in kept:
                kept[name].copy_(weight)
        return objective.model if self._copy is None else deepcopy(self._copy).to(self.device)


def _join() -> None:
    """With the other processes of torchrun, if there are any, until this one ends: several trainings may follow each
    other, and a group that was left cannot be joined again."""
    # how `accelerate launch --cpu --num_processes 2` looks from inside the single process that it starts
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        log.warning("accelerate launch --cpu started one process alone; for several use torchrun --nproc_per_node N")
    together = ExitStack()
    together.enter_context(processes.joined())
    atexit.register(together.close)


def _sharded(objective: ObjectiveModule, mesh: DeviceMesh, *, half: bool) -> FSDPModule:
    """Each block of each encoder, teachers included, is gathered when it is needed; all else once a pass.

    On CUDA blocks are gathered as bf16 where `half`, which autocast would make of most weights anyway (on a CPU it
    leaves norms alone, which then want float32), and gradients are summed in float32. All else, such as embeddings and
    heads, stays in float32, which AttMask's head asks for and which gives the residual stream DDP's precision.
    """
    precision = MixedPrecisionPolicy()
    if half and mesh.device_type == "cuda":
        precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    # listed first: sharding changes the classes by which models are known
    encoders = [module for module in objective.modules() if is_encoder(module)]
    blocks = [encoder.get_submodule(block.path) for encoder in encoders for block in anatomy(encoder).blocks]
    parts = [fully_shard(block, mesh=mesh, mp_policy=precision) for block in blocks]
    parts.append(fully_shard(objective, mesh=mesh))
    if mesh.device_type == "cpu":
        for part in parts:
            part.set_force_sum_reduction_for_comms(True)  # asked for a mean, gloo gives the sum in torch 2.8
    return parts[-1]
