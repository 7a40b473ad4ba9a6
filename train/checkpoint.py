"""Checkpoints that are either complete or absent, and that restore a run exactly.

Weights, optimizer and the number of steps are all there is to restore: samples and every step's own random draws are
functions of (seed, step), and the schedule is of the step.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kamim_analysis import weights_file
from kamim_analysis.errors import UserError
from kamim_analysis.output import PARTIAL, flush, write_file
from kamim_analysis.version import __version__

from .objective_module import ObjectiveModule
from .parallel import Parallel
from .recipe import Recipe
from .settings import as_dict

ENCODER = "encoder.safetensors"


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
    """The checkpoints of a run. All processes call `load`, `save` and `close`; the first one writes."""

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

    def load(self) -> int:
        """Restore the last checkpoint of a run; the step it was written after, or 0 where there is none.

        Raises UserError for a checkpoint that does not fit, and where the model that the run started from has changed.
        """
        last = self.out / "last"
        if not last.is_file():
            return 0
        folder = self.out / "checkpoints" / last.read_text(encoding="utf-8").strip()
        contents = weights_file.read(folder / "model.safetensors")
        _check_start(self.out, contents.description or {}, self.objective.describe({}))
        weights_file.check(folder / "state.pt")
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        try:
            self.objective.model.load_state_dict(contents.states[""])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"checkpoint {str(folder)!r} does not fit: {' '.join(str(error).split())}") from error
        return int(state["step"])

    def save(self, step: int) -> None:
        """Write `checkpoints/step-N` aside, flush it, rename it, then point `last` at it; older ones go.

        Whatever moment the process is killed at, `last` names a complete checkpoint.
        """
        if not self.parallel.is_first:
            return
        folder = self.out / "checkpoints" / f"step-{step:08d}"
        aside = folder.with_name(folder.name + PARTIAL)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        description = describe(self.objective, step, as_dict(self.recipe))
        weights_file.write_state(aside / "model.safetensors", self.objective.model.state_dict(), description)
        state = {"step": step, "optimizer": self.optimizer.state_dict(), "version": __version__}
        torch.save(state, aside / "state.pt")
        for file in aside.iterdir():
            flush(file)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        flush(folder.parent)
        write_file(self.out / "last", f"{folder.name}\n".encode())
        for old in sorted(folder.parent.glob("step-*"))[: -max(self.recipe.keep_checkpoints, 1)]:
            shutil.rmtree(old)

    def close(self) -> None:
        """Wait until what was saved is written."""

    def newest(self) -> str:
        """The newest complete checkpoint's directory, for messages; empty without one."""
        last = self.out / "last"
        return str(self.out / "checkpoints" / last.read_text(encoding="utf-8").strip()) if last.is_file() else ""


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
    architecture and model_args as in encoder.json.
    """
    description = describe(objective, step, recipe)
    write_file(run / "encoder.json", (json.dumps(description, indent=2) + "\n").encode())
    aside = run / f"{ENCODER}{PARTIAL}"
    weights_file.write_state(aside, encoder, description)
    flush(aside)
    aside.replace(run / ENCODER)
