"""Checkpoints that are either complete or absent, and that restore a run exactly.

Weights, the optimizer's moments and the number of steps are all there is to restore: samples and every step's own
random draws are functions of (seed, step), and the schedule is of the step.
"""

import json
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch import distributed as dist

from kamim_analysis import weights_file
from kamim_analysis.errors import UserError
from kamim_analysis.output import PARTIAL, flush, unwritable, write_file
from kamim_analysis.version import __version__

from . import checkpoint_files
from .objective_module import ObjectiveModule
from .parallel import Parallel
from .recipe import Recipe
from .settings import as_dict
from .snapshot import HostCopies, moments, placed, restore_moments

log = logging.getLogger(__name__)

ENCODER = "encoder.safetensors"
T = TypeVar("T")


def describe(objective: ObjectiveModule, step: int, recipe: dict[str, Any]) -> dict[str, Any]:
    """What stands beside the weights in a file, enough to build the model again and to tell how it was trained."""
    encoder = objective.encoder
    config = encoder.pretrained_cfg
    shown = ["input_size", "mean", "std", "crop_pct", "interpolation"]
    if config.get("crop_mode", "center") != "center":
        shown.append("crop_mode")
    return {
        "architecture": encoder.architecture,
        "model_args": encoder.model_args,
        "pretrained_cfg": {key: config[key] for key in shown},
        "step": step,
        "version": __version__,
    } | objective.describe(recipe)


class Checkpoints:
    """The checkpoints of a run. All processes call `load`, `save` and `close`; the first one writes.

    `save` returns once weights and moments are copied to the host. A thread writes them while training goes on: one
    checkpoint at a time, so that a `save` waits for the one before. What went wrong in writing is raised, in all
    processes, by the next `save` or `close`. As a context it ends, after an error in training too, once what was saved
    is written.
    """

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        objective: ObjectiveModule,
        optimizer: torch.optim.Optimizer,
        parallel: Parallel,
    ) -> None:
        self.out, self.recipe, self.objective = out, recipe, objective
        self.optimizer, self.parallel = optimizer, parallel
        self.names = {weight: name for name, weight in objective.model.named_parameters()}
        self.weights, self.moments = HostCopies(), HostCopies()
        self.writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        try:
            self._finish()  # alone: the other processes may know of no error
        except UserError as error:
            log.warning("%s", error)

    def load(self) -> int:
        """Restore the newest intact checkpoint of a run; the step it was written after, or 0 where there is none.

        Raises UserError where checkpoints are there but none is intact, for one that does not fit, and where the model
        that the run started from has changed.
        """
        folder = _from_first(self._find)
        if folder is None:
            return 0
        contents = weights_file.read(folder / checkpoint_files.MODEL)
        about = contents.description or {}
        _check_start(self.out, about, self.objective.describe({}))
        model = self.objective.model
        try:
            current = model.state_dict()
            weights = contents.states[""]
            model.load_state_dict(
                {name: placed(weight, current.get(name), self.parallel) for name, weight in weights.items()}
            )
            restore_moments(
                self.optimizer,
                self.names,
                # copies: a mapping would keep the file's pages, and its space on the disk after it is removed
                {name: part.clone() for name, part in load_file(folder / checkpoint_files.OPTIMIZER).items()},
                self.parallel,
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(f"checkpoint {str(folder)!r} does not fit: {' '.join(str(error).split())}") from error
        return int(about["step"])

    def _find(self) -> Path | None:
        checkpoint_files.remove_unfinished(self.out)
        return checkpoint_files.newest_intact(self.out)

    def save(self, step: int) -> None:
        """Have `checkpoints/step-N` written, as weights and moments are now; older ones go as the recipe says."""
        self.close()
        weights = self.weights.take(self.objective.model.state_dict().items(), self.parallel)
        parts = self.moments.take(moments(self.optimizer, self.names), self.parallel)
        if self.parallel.is_first:
            about = deepcopy(describe(self.objective, step, as_dict(self.recipe)))
            self.writing = self.writer.submit(self._write, step, weights, parts, about)

    def _write(self, step: int, weights: dict[str, Tensor], parts: dict[str, Tensor], about: dict[str, Any]) -> None:
        """In the writer's thread."""
        folder = checkpoint_files.folder_of(self.out, step)
        try:
            self.weights.wait()
            self.moments.wait()
            checkpoint_files.remove_unfinished(self.out)
            checkpoint_files.write(self.out, step, weights, parts, about)
            checkpoint_files.prune(self.out, max(self.recipe.keep_checkpoints, 1), self.recipe.keep_every)
        except (OSError, SafetensorError, UserError) as error:
            reason = error if isinstance(error, UserError) else _unwritable(folder, error)
            complete = self.newest()
            last = f"the last complete checkpoint is {complete!r}" if complete else "no checkpoint is complete yet"
            raise UserError(f"{reason}; {last}") from error

    def close(self) -> None:
        """Wait until what was saved is written. Raises UserError where it could not be."""
        _from_first(self._finish)

    def _finish(self) -> None:
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def newest(self) -> str:
        """The newest complete checkpoint's directory, for messages; empty without one."""
        named = checkpoint_files.named_last(self.out)
        return str(self.out / checkpoint_files.FOLDER / named) if named else ""


def _unwritable(path: Path, error: OSError | SafetensorError) -> UserError:
    """As `output.unwritable`; safetensors tells of a full disk in words alone."""
    return unwritable(path, error if isinstance(error, OSError) else OSError(str(error)))


def _from_first(action: Callable[[], T]) -> T:
    """What `action` returns in the first process, or the UserError that it raises there, in all processes."""
    if not dist.is_initialized():
        return action()
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = action()
        except UserError as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    found: T = told[0]
    return found


def _check_start(run: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """A run that started from a trained model, or takes attention from one, goes on with that very model."""
    for weights, opened, use in (
        ("starting_weights", "started_from", "started from"),
        ("attention_weights", "attention_from", "takes attention from"),
    ):
        if then.get(weights) != now.get(weights):
            spec = now.get(opened, {}).get("spec")
            raise UserError(
                f"the weights of model {spec!r} are not those that run {str(run)!r} {use}; restore them, or give a new "
                "directory"
            )


def save_encoder(
    run: Path, objective: ObjectiveModule, encoder: dict[str, Tensor], step: int, recipe: dict[str, Any]
) -> None:
    """The encoder's weights alone, for `kamim analyze` and for plain timm: `encoder.safetensors` and `encoder.json`.

    timm opens it by `create_model(architecture, checkpoint_path="encoder.safetensors", num_classes=0, **model_args)`,
    architecture and model_args as in encoder.json. Raises UserError where it cannot be written.
    """
    description = describe(objective, step, recipe)
    write_file(run / "encoder.json", (json.dumps(description, indent=2) + "\n").encode())
    aside = run / f"{ENCODER}{PARTIAL}"
    try:
        weights_file.write_state(aside, encoder, description)
        flush(aside)
        aside.replace(run / ENCODER)
        flush(run)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise _unwritable(run / ENCODER, error) from error
