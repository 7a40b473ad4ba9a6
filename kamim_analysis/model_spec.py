"""The models that a command line names, checked before anything heavy is imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import weights_file
from .errors import UserError
from .timm_names import SHORT_NAMES, check_architecture

Kind = Literal["random", "timm", "weights"]


@dataclass(frozen=True)
class ModelSpec:
    """One model: what to call it, what the user wrote, and where it is."""

    label: str
    spec: str
    kind: Kind
    target: str
    """An architecture, or the path of a weights file (for `random`: one whose architecture is taken)."""


def parse(text: str) -> ModelSpec:
    """Parse `LABEL=SPEC` or `SPEC`.

    SPEC is a run directory (its last checkpoint is taken), a weights file, `timm:NAME`, `random:NAME` or
    `random:RUN`, a control of that run's architecture.
    Raises UserError for one that does not exist, or whose file is damaged or holds code.

    >>> parse("control=random:vit_tiny")
    ModelSpec(label='control (random)', spec='random:vit_tiny', kind='random', target='vit_tiny')
    """
    label, separator, spec = text.partition("=")
    if not separator:
        label, spec = "", text
    if not spec or spec in ("random:", "timm:"):
        raise UserError(f"model {text!r} names no SPEC: give a run directory, a weights file, timm:NAME or random:NAME")
    kind, separator, name = spec.partition(":")
    if separator and kind == "random":
        # a control must not be mistaken for a trained model, whatever its label
        mark = "" if "random" in label else " (random)"
        return ModelSpec(f"{label}{mark}" if label else spec, spec, "random", _control(name))
    if separator and kind == "timm":
        return ModelSpec(label or spec, spec, "timm", check_architecture(name))
    path = _weights_path(Path(spec))
    weights_file.check(path)
    return ModelSpec(label or Path(spec).name, spec, "weights", str(path))


def _control(name: str) -> str:
    """An architecture's name, or the weights file of a trained model whose architecture the control shares."""
    if name in SHORT_NAMES:
        return name
    if Path(name).exists():
        path = _weights_path(Path(name))
        weights_file.check(path)
        return str(path)
    return check_architecture(name)


def parse_all(texts: Sequence[str]) -> list[ModelSpec]:
    """Parse the models of one command; their labels must differ."""
    specs = [parse(text) for text in texts]
    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"two models are called {label!r}; tell them apart with LABEL=SPEC")
    return specs


def _weights_path(path: Path) -> Path:
    """The weights file of a path: itself, or that of a checkpoint or of a run's last checkpoint."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(
                f"unknown model {str(path)!r}: no such file or directory; give a run directory, a weights file, "
                "timm:NAME or random:NAME"
            )
        return path
    last = path / "last"
    if last.is_file():
        path = path / "checkpoints" / last.read_text(encoding="utf-8").strip()
    model = path / "model.safetensors"
    if not model.is_file():
        raise UserError(f"directory {str(path)!r} is no training run: it has neither `last` nor model.safetensors")
    return model
