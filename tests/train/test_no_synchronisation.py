"""A step of training never waits for the device: no number, no count and no choice of entries is read back in it.

There is no GPU here, so a CPU stands for it. Weights, buffers, batches and all that is computed of them count as the
device's, and what asks for their values, or for a shape that depends on them, is written down. Beyond its reach: copies
to the device of what was made on the host, and what a tensor that an objective makes from nothing is asked.
"""

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kamim_analysis import plugins
from kamim_analysis.train import loop
from kamim_analysis.train.progress import Progress
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.settings import parse_recipe, recipe_path

TINY = (
    "--encoder.image_size 32 --encoder.patch_size 8 --encoder.width 16 --encoder.depth 2 --encoder.heads 2 "
    "--optim.batch_size 8 --optim.epochs 2 --efficiency.workers 0"
).split()
ATTMASK = (
    "--objective.local_crops 1 --objective.local_size 16 --objective.head_width 16 --objective.head_bottleneck 8 "
    "--objective.head_outputs 32"
)
MAE = "--objective.decoder_width 16 --objective.decoder_depth 1 --objective.decoder_heads 2"
LATENT_MIM = f"{MAE} --objective.visible 5 --objective.projector_width 32"
PROBE = "--objective.layer last --optim.batch_size 8 --optim.epochs 2 --optim.warmup_epochs 0 --efficiency.workers 0"
#: what is tried of each objective: settings that take other paths through its step
CASES = {
    "simmim": ["", "--objective.masking attmask_high", "--objective.masking block --objective.mask_probability 0.5"],
    "kamim": ["", "--objective.masking keypoint_hint", "--data.device_augment true --data.device_size 40"],
    "attmask": [
        ATTMASK,
        f"{ATTMASK} --objective.masking random --objective.keypoint_weights true",
        f"{ATTMASK} --optim.clip_by weight --optim.clip_norm 3",
    ],
    "mae": [MAE, f"{MAE} --objective.masking random_blocks --objective.keypoint_weights true"],
    "latent_mim": [LATENT_MIM, f"{LATENT_MIM} --objective.target_sees all --objective.keypoint_weights true"],
    "linear_probe": [PROBE],
    "fine_tuning": [PROBE],
}

aten = torch.ops.aten
#: operations that put out a number, or a shape that depends on values
READ = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique, aten._unique2, aten.unique_dim,
    aten.unique_consecutive, aten.unique_dim_consecutive, aten.equal, aten.is_nonzero, aten.item, aten.bincount,
}  # fmt: skip
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
#: on a CPU these read memory without any operation, or do nothing
COPIES = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__, Tensor.to}


class Reads(TorchDispatchMode):
    """Writes down, as "operation at file:line", what reads values of tensors that were `put` on the device, and of what
    is made of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations: set[Any] = set()
        # storages, kept so that none of their addresses is used again
        self.on_device: dict[int, Any] = {}

    def put(self, *values: Any) -> None:
        """Tensors count as the device's."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self.on_device[storage._cdata] = storage

    def holds(self, *values: Any) -> bool:
        """Whether one of them is the device's."""
        tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
        return any(tensor.untyped_storage()._cdata in self.on_device for tensor in tensors)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Writes nothing down meanwhile."""
        found = list(self.found)
        yield
        self.found[:] = found

    def note(self, name: str) -> None:
        """The innermost place outside torch and this class's like."""
        own = {"note", "__torch_dispatch__", "__torch_function__"}
        frames = [frame for frame in traceback.extract_stack() if frame.name not in own]
        place = next(frame for frame in reversed(frames) if not re.search("site-packages|[<>]", frame.filename))
        self.found.append(f"{name} at {Path(place.filename).name}:{place.lineno}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, operation = kwargs or {}, func.overloadpacket
        self.operations.add(operation)
        if self.holds(args, kwargs):
            by_mask = operation in INDEXED and any(
                index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
            )
            repeats = func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
            if operation in READ or by_mask or repeats:
                self.note(str(operation))
            out = func(*args, **kwargs)
            self.put(out)
            return out
        return func(*args, **kwargs)


class Copies(TorchFunctionMode):
    """The same of methods that copy to the host."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is one_hot:
            # it looks at the labels on a CPU alone: on CUDA it leaves the check to the kernel (ATen's Onehot.cpp)
            with self.reads.resting():
                return func(*args, **kwargs)
        to_host = func is not Tensor.to or (
            "cpu" in [str(value) for value in (*args[1:], *kwargs.values())] and not kwargs.get("non_blocking")
        )
        if func in COPIES and to_host and self.reads.holds(args):
            self.reads.note(func.__name__)
        return func(*args, **kwargs)


def reads_of(recipe: Recipe, out: Path) -> Reads:
    """What the loop's second step reads; in the first, rows of attention are looked at, once and for all."""
    run = loop._build(recipe, out, loop.begin(recipe))
    run.wrapped.train()
    reads, finish = Reads(), run.batches.finish

    def put_and_finish(batch: dict[str, Any]) -> dict[str, Tensor]:
        reads.put(batch)
        return finish(batch)

    run.batches.finish = put_and_finish

    def step(number: int) -> None:
        progress = Progress(number, run.order.steps_per_epoch, recipe.optim.epochs)
        run.schedule.set(progress)
        loop._step(run, progress)

    step(0)
    reads.put(list(run.objective.parameters()), list(run.objective.buffers()))
    with reads, Copies(reads):
        step(1)
    return reads


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=f"{name}-{number}")
        for name in plugins.names("kamim_analysis.train.objectives")
        for number, options in enumerate(CASES[name])
    ],
)
def test_a_step_reads_nothing_back(name: str, options: str, pictures: Path, model: Path, tmp_path: Path) -> None:
    if name in ("linear_probe", "fine_tuning"):
        chosen = ["--config", str(recipe_path(name)), "--objective.model", str(model)]
    else:
        chosen = ["--config", str(recipe_path(f"{name}_photographs")), *TINY]
    recipe = parse_recipe([*chosen, "--data.source", str(pictures), *options.split()])
    reads = reads_of(recipe, tmp_path / "run")
    assert reads.found == []
    # forward and backward passes and the optimizer were seen
    assert {aten.addmm, aten.mm, aten._fused_adamw_} <= reads.operations


READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool((x > 0).any()),
    "a condition": lambda x: 1 if x.sum() > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "to the CPU": lambda x: x.to("cpu", non_blocking=False),
    "index by a mask": lambda x: x[x > 0],
    "assign by a mask": lambda x: x.clone().index_put_((x > 0,), torch.zeros(3)),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
    "repeat": lambda x: x.repeat_interleave(x.long().clamp(0, 3)),
    "backward of a mask": lambda x: x.clone().requires_grad_()[torch.tensor([True, True, False, True])],
}
STAYS: dict[str, Callable[[Tensor], Any]] = {
    "the host's own draws": lambda x: x * float(torch.rand(())),
    "index by numbers": lambda x: x[x.argsort()],
    "where of three": lambda x: torch.where(x > 0, x, 0),
    "fill by a mask": lambda x: x.masked_fill(x > 0, 0),
    "repeat a number of times": lambda x: x.repeat_interleave(2),
    "move within": lambda x: x.to(torch.float64),
    "to the CPU, later": lambda x: x.to("cpu", non_blocking=True),
}


def found_of(ask: Callable[[Tensor], Any]) -> list[str]:
    """What is found in a call, as within a step."""
    reads, values = Reads(), torch.tensor([1.0, -1.0, 2.0, 3.0])
    reads.put(values)
    with reads, Copies(reads):
        ask(values)
    return reads.found


@pytest.mark.parametrize("ask", READS.values(), ids=READS.keys())
def test_what_reads_is_found(ask: Callable[[Tensor], Any]) -> None:
    (found,) = set(found_of(ask))
    assert f"at {Path(__file__).name}:" in found


@pytest.mark.parametrize("ask", STAYS.values(), ids=STAYS.keys())
def test_what_does_not_read_is_not_found(ask: Callable[[Tensor], Any]) -> None:
    assert found_of(ask) == []
