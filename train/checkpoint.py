"""Checkpoints that are either complete or absent, and that restore a run exactly.

Weights, optimizer and the number of steps are all there is to restore: samples and every step's own random draws are
functions of (seed, step), and the schedule is of the step.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kamim_analysis import weights_file
from kamim_analysis.errors import UserError
from kamim_analysis.output import flush
from kamim_analysis.version import __version__

from .objective_module import ObjectiveModule

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


def save(
    run: Path,
    objective: ObjectiveModule,
    optimizer: torch.optim.Optimizer,
    step: int,
    *,
    recipe: dict[str, Any],
    keep: int,
) -> Path:
    """Write `checkpoints/step-N` aside, flush it, rename it, then point `last` at it; older ones go.

    Whatever moment the process is killed at, `last` names a complete checkpoint.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    description = describe(objective, step, recipe)
    weights_file.write_state(aside / "model.safetensors", objective.model.state_dict(), description)
    state = {"step": step, "optimizer": optimizer.state_dict(), "version": __version__}
    torch.save(state, aside / "state.pt")
    for file in aside.iterdir():
        flush(file)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    flush(folder.parent)
    write_whole(run / "last", folder.name + "\n")
    for old in sorted(folder.parent.glob("step-*"))[: -max(keep, 1)]:
        shutil.rmtree(old)
    return folder


def load(run: Path, objective: ObjectiveModule, optimizer: torch.optim.Optimizer) -> int:
    """Restore the last checkpoint of a run; the step it was written after, or 0 where there is none.

    Raises UserError for a checkpoint that does not fit, and where the model that the run started from has changed.
    """
    last = run / "last"
    if not last.is_file():
        return 0
    folder = run / "checkpoints" / last.read_text(encoding="utf-8").strip()
    contents = weights_file.read(folder / "model.safetensors")
    _check_start(run, contents.description or {}, objective.describe({}))
    weights_file.check(folder / "state.pt")
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    try:
        objective.model.load_state_dict(contents.states[""])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise UserError(f"checkpoint {str(folder)!r} does not fit: {' '.join(str(error).split())}") from error
    return int(state["step"])


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


def save_encoder(run: Path, objective: ObjectiveModule, step: int, recipe: dict[str, Any]) -> None:
    """The encoder alone, for `kamim analyze` and for plain timm: `encoder.safetensors` and `encoder.json`.

    timm opens it by `create_model(architecture, checkpoint_path="encoder.safetensors", num_classes=0, **model_args)`,
    architecture and model_args as in encoder.json.
    """
    description = describe(objective, step, recipe)
    write_whole(run / "encoder.json", json.dumps(description, indent=2) + "\n")
    aside = run / f"{ENCODER}.partial"
    encoder: nn.Module = objective.encoder
    weights_file.write_state(aside, encoder.state_dict(), description)
    flush(aside)
    aside.replace(run / ENCODER)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old text or the new, never a part."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(text, encoding="utf-8")
    flush(aside)
    aside.replace(path)
