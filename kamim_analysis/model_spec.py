"""The models that a command line names, checked before anything heavy is imported."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from . import weights_file
from .errors import UserError
from .hub import WEIGHTS, find_weights
from .timm_names import SHORT_NAMES, check_architecture

Kind = Literal["random", "timm", "hub", "weights"]
_FORMS = "a run directory, a weights file, a directory with config.json, timm:NAME, hf:OWNER/NAME or random:NAME"
#: signs of a label, and how none begins
_LONGEST_LABEL, _FORMULA = 200, "=+-@"
_CHECKPOINT = re.compile(r"[\w-][\w.-]*")
_OWNER_AND_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How weights files are to be read, where their keys and shapes leave a choice."""

    heads: int | None = None
    """The head count, for files that do not tell it."""
    layout: str | None = None
    """The layout's name, where several fit."""
    branch: str | None = None
    """Which encoder, such as `teacher`, where a file holds several: the BRANCH of `FILE@BRANCH`."""


@dataclass(frozen=True)
class ModelSpec:
    """One model: what to call it, what the user wrote, and where it is."""

    label: str
    spec: str
    kind: Kind
    target: str
    """An architecture, the hub's OWNER/NAME, or a weights file's path (for `random`: whose architecture is taken)."""
    reading: Reading = Reading()


def parse(text: str, reading: Reading | None = None) -> ModelSpec:
    """Parse `LABEL=SPEC` or `SPEC`.

    SPEC is a run directory (its last checkpoint is taken), a weights file, `FILE@BRANCH` for one of its encoders (such
    as `teacher`), a directory of the hub's layout, `timm:NAME`, `hf:OWNER/NAME`, `random:NAME` or `random:RUN`, a
    control of that run's architecture.
    Raises UserError for one that does not exist, or whose file is damaged or holds code.

    >>> parse("control=random:vit_tiny")  # doctest: +ELLIPSIS
    ModelSpec(label='control (random)', spec='random:vit_tiny', kind='random', target='vit_tiny', reading=...)
    """
    label, separator, spec = text.partition("=")
    if not separator:
        label, spec = "", text
    if not spec or spec in ("random:", "timm:", "hf:"):
        raise UserError(f"model {text!r} names no SPEC: give {_FORMS}")
    kind, separator, name = spec.partition(":")
    if separator and kind == "random":
        # a control must not be mistaken for a trained model, whatever its label
        mark = "" if "random" in label else " (random)"
        return ModelSpec(f"{label}{mark}" if label else spec, spec, "random", _control(name))
    if separator and kind == "timm":
        return ModelSpec(label or spec, spec, "timm", check_architecture(name))
    if separator and kind == "hf":
        if not _OWNER_AND_NAME.fullmatch(name):
            raise UserError(f"{spec!r} names no model of the hub: give hf:OWNER/NAME")
        return ModelSpec(label or name.split("/")[1], spec, "hub", name, reading or Reading())
    return _weights_spec(label, spec, reading or Reading())


def _weights_spec(label: str, spec: str, reading: Reading) -> ModelSpec:
    """A path, or PATH@BRANCH where no such path exists."""
    name, at, branch = spec.rpartition("@")
    if Path(spec).exists() or not at:
        name, branch = spec, ""
    path = _weights_path(Path(name))
    weights_file.check(path)
    return ModelSpec(label or Path(spec).name, spec, "weights", str(path), replace(reading, branch=branch or None))


def _control(name: str) -> str:
    """An architecture's name, or the weights file of a trained model whose architecture the control shares."""
    if name in SHORT_NAMES:
        return name
    if Path(name).exists():
        path = _weights_path(Path(name))
        weights_file.check(path)
        return str(path)
    return check_architecture(name)


def parse_all(texts: Sequence[str], reading: Reading | None = None) -> list[ModelSpec]:
    """Parse the models of one command; their labels must differ, and be such that figures and tables can hold them."""
    specs = [parse(text, reading) for text in texts]
    labels = [spec.label for spec in specs]
    for label in labels:
        _check_label(label)
        if labels.count(label) > 1:
            raise UserError(f"two models are called {label!r}; tell them apart with LABEL=SPEC")
    return specs


def _check_label(label: str) -> None:
    """Refuse what no figure has room for or shows, and what a spreadsheet that opens a CSV would compute."""
    if len(label) > _LONGEST_LABEL or not label.isprintable():
        raise UserError(
            f"{label[:_LONGEST_LABEL]!r} is no model's name: at most {_LONGEST_LABEL} signs, all of which can be seen; "
            "give another with LABEL=SPEC"
        )
    if label[0] in _FORMULA:
        raise UserError(
            f"{label!r} begins with {label[0]}, a spreadsheet's sign of a formula; give another name with LABEL=SPEC"
        )


def _weights_path(path: Path) -> Path:
    """The weights file of a path: itself, or that of a checkpoint or of a run's last checkpoint."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"unknown model {str(path)!r}: no such file or directory; give {_FORMS}")
        return path
    last = path / "last"
    if last.is_file():
        named = last.read_text(encoding="utf-8", errors="replace").strip()
        if not _CHECKPOINT.fullmatch(named):
            raise UserError(f"{str(last)!r} names no checkpoint of this run but {named[:_LONGEST_LABEL]!r}")
        path = path / "checkpoints" / named
    weights = find_weights(path)
    if weights is None:
        raise UserError(f"directory {str(path)!r} is no training run: it has neither `last` nor {', '.join(WEIGHTS)}")
    return weights
