"""A weights file read and recognised, with what its config or our own description says of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import weights_file
from .checkpoints._layout import Hints, Recognised
from .errors import UserError
from .hub import CONFIGS
from .model_spec import Reading
from .recognition import identify
from .reconstruction import MEAN, STD
from .timm_names import check_architecture
from .weights_file import OURS, Contents

# of what `kamim export` adds to another library's config, that which the opened model should know again
_ADDED = ("masking", "step", "version", "layer_norm_eps")
# layouts that many share, so that the weights' own normalisation is a guess
_ANY_ORIGIN = ("timm_vit", "timm_swin", "huggingface_vit", "huggingface_swin")
# Pillow's numbers of filters, as preprocessor_config.json has them
_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A recognised weights file, ready to be built."""

    path: Path
    layout: str
    branch: str
    recognised: Recognised
    notes: tuple[str, ...]
    sha256: str
    pretrained_cfg: dict[str, Any]
    """What timm's evaluation transform needs."""
    description: dict[str, Any] = field(default_factory=dict)
    """Our own description, for the manifest."""

    @property
    def masking(self) -> dict[str, Any]:
        """Keyword arguments of MaskSettings: how images were masked in pretraining."""
        masking: dict[str, Any] = self.description.get("masking", self.recognised.masking)
        return masking


def read_source(path: Path, reading: Reading) -> Source:
    """Read a weights file and find out what it is. Raises UserError as `weights_file.read` and `identify` do."""
    contents = weights_file.read(path)
    config, preprocessing = _configs(path)
    if contents.description is not None:
        return _ours(path, contents, contents.description, reading.branch)
    if "architecture" in config:
        _check_branch(path, reading.branch, {})
        return _timm_hub(path, contents, config)
    hints = Hints(heads=reading.heads, config=config, settings=contents.settings)
    found = identify(contents, str(path), hints, layout=reading.layout, branch=reading.branch)
    cfg, guess = _evaluation(found.recognised, preprocessing, known_origin=found.layout not in _ANY_ORIGIN)
    return Source(
        path=path,
        layout=found.layout,
        branch=found.branch,
        recognised=found.recognised,
        notes=(*found.notes, *guess),
        sha256=_sha256(path),
        pretrained_cfg=cfg,
        description=_added(config),
    )


def _check_branch(path: Path, branch: str | None, branches: Mapping[str, str]) -> str:
    """The branch's name, the first where none is asked for; empty where there is a single encoder."""
    if branch and branch not in branches:
        if branches:
            raise UserError(f"{str(path)!r} holds no encoder called {branch!r}; it has {', '.join(branches)}")
        raise UserError(f"{str(path)!r} holds one encoder, not one called {branch!r}; leave @ out")
    return branch or next(iter(branches), "")


def _ours(path: Path, contents: Contents, description: dict[str, Any], asked: str | None) -> Source:
    """Our own files: `encoder.safetensors`, or a checkpoint's `model.safetensors` with all else that is trained."""
    missing = {"architecture", "model_args"} - description.keys()
    if missing:
        raise UserError(f"the weights file's own description lacks {', '.join(sorted(missing))}; it cannot be opened")
    (state,) = contents.states.values()
    whole = any(key.startswith("encoder.") for key in state)
    branches: dict[str, str] = description.get("branches", {}) if whole else {}
    branch = _check_branch(path, asked, branches)
    prefix = branches.get(branch, "encoder.")
    # a probe's head predicts no pixels, nor does what distils
    reconstructs = whole and "classifier" not in description and description.get("head", "linear") is not None
    beside = ("encoder.", *description.get("beside", ()), *branches.values())
    recognised = Recognised(
        architecture=description["architecture"],
        model_args=description["model_args"],
        encoder={k.removeprefix(prefix): v for k, v in state.items() if not whole or k.startswith(prefix)},
        # all the rest, so that the strict load names what is not head or mask token
        decoder={k: v for k, v in state.items() if not k.startswith(beside)} if reconstructs else {},
        head=description.get("head") or "linear",
        head_args=description.get("head_args", {}),
        layer_norm_eps=description.get("layer_norm_eps"),
    )
    cfg = description.get("pretrained_cfg") or _evaluation(recognised, {}, known_origin=True)[0]
    return Source(path=path, layout=OURS, branch=branch, recognised=recognised, notes=(), sha256=_sha256(path),
                  pretrained_cfg=cfg, description=description)  # fmt: skip


def _timm_hub(path: Path, contents: Contents, config: Mapping[str, Any]) -> Source:
    """A directory of timm's layout on the hub: its config names the architecture."""
    (state,) = contents.states.values()
    classifier = sorted(key for key in state if key.split(".")[0] in ("head", "head_dist"))
    added = _added(config)
    recognised = Recognised(
        architecture=check_architecture(config["architecture"]),
        # timm's own `save_for_hf` counts the classes among the arguments; encoders are built without classifier
        model_args={k: v for k, v in (config.get("model_args") or {}).items() if k != "num_classes"},
        encoder={key: value for key, value in state.items() if key not in classifier},
        layer_norm_eps=added.get("layer_norm_eps"),
    )
    notes = (f"left out: {', '.join(classifier)}",) if classifier else ()
    return Source(path=path, layout="timm_hub", branch="", recognised=recognised, notes=notes, sha256=_sha256(path),
                  pretrained_cfg=dict(config.get("pretrained_cfg") or {}), description=added)  # fmt: skip


def _added(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `kamim export` noted of the model in another library's config; empty for a config of other origin."""
    noted = config.get(OURS)
    return {key: noted[key] for key in _ADDED if key in noted} if isinstance(noted, dict) else {}


def _configs(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and preprocessor_config.json beside the weights, empty where there are none."""
    found: list[dict[str, Any]] = []
    for name in CONFIGS:
        file = path.with_name(name)
        try:
            read = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError as error:
            raise UserError(f"{str(file)!r} is no readable JSON: {error}") from error
        if not isinstance(read, dict):
            raise UserError(f"{str(file)!r} is no JSON object")
        found.append(read)
    return found[0], found[1]


def _evaluation(
    recognised: Recognised, preprocessing: Mapping[str, Any], *, known_origin: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The evaluation transform, from the hub's preprocessing where there is one, else ImageNet's mean and deviation.

    The whole picture is shown, not a centre crop: crop percentage 1, unless the preprocessing names another.
    """
    cfg: dict[str, Any] = {"mean": MEAN, "std": STD, "crop_pct": 1.0, "interpolation": "bicubic"}
    size = recognised.model_args.get("img_size")
    if isinstance(size, int):
        cfg["input_size"] = (3, size, size)
    if {"image_mean", "image_std"} <= preprocessing.keys():
        cfg |= {"mean": tuple(preprocessing["image_mean"]), "std": tuple(preprocessing["image_std"])}
        if preprocessing.get("do_normalize") is False:
            cfg |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        cfg["interpolation"] = _INTERPOLATIONS.get(preprocessing.get("resample", 3), "bicubic")
        cfg |= {key: preprocessing[key] for key in ("crop_pct", "crop_mode") if preprocessing.get(key)}
        return cfg, ()
    return cfg, () if known_origin else ("mean and deviation are not in the weights: taken as ImageNet's",)


def _sha256(path: Path) -> str:
    """Of the file, or of its shards one after the other."""
    digest = hashlib.sha256()
    for part in weights_file.parts(path):
        with part.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
