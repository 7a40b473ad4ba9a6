"""A weights file read and recognised, with what its config or our own description says of it."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import weights_file
from .checkpoints._layout import Hints, Recognised
from .encoders import check_arguments
from .errors import UserError
from .hub import CONFIGS
from .model_spec import Reading
from .plain_data import json_of
from .recognition import identify
from .reconstruction import MEAN, STD
from .timm_names import check_architecture
from .weights_file import OURS, Contents

#: beside the weights of a run's checkpoint: the size and SHA-256 of each file
CHECKPOINT = "checkpoint.json"
# of what `kamim export` adds to another library's config, that which the opened model should know again
_ADDED = ("masking", "step", "version", "layer_norm_eps")
# layouts that many share, so that the weights' own normalisation is a guess
_ANY_ORIGIN = ("timm_vit", "timm_swin", "huggingface_vit", "huggingface_swin")
# Pillow's numbers of filters, as preprocessor_config.json has them
_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

# pixels: some times the side that the largest published encoders were trained on
_LARGEST_SIDE = 4_096


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
    """Read a weights file and find out what it is.

    Raises UserError as `weights_file.read` and `identify` do, and for a description or a config that asks for what no
    honest one asks for.
    """
    with _unchanged(path):
        contents = weights_file.read(path)
        config, preprocessing = _configs(path)
        with _told_as_damage(path):
            source = _recognised(path, contents, config, preprocessing, reading)
            _check_sizes(source, sum(len(state) for state in contents.states.values()))
            _check_transform(source.pretrained_cfg, path)
    return source


@contextmanager
def _unchanged(path: Path) -> Iterator[None]:
    """Raise UserError where another file has taken its place: the SHA-256 would not be that of what was read."""
    before = _files(path)
    try:
        yield
    except (OSError, UserError) as error:
        if _files(path) != before:
            raise _replaced(path) from error
        raise
    if _files(path) != before:
        raise _replaced(path)


def _files(path: Path) -> list[tuple[int, int, int]]:
    """What tells the files of the weights from others; empty where one is gone."""
    try:
        found = [part.stat() for part in {path, *weights_file.parts(path)}]
    except OSError:
        return []
    return sorted((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def _replaced(path: Path) -> UserError:
    return UserError(
        f"{str(path)!r} was replaced or removed while it was read, as by a training that goes on; run the same command "
        "again"
    )


@contextmanager
def _told_as_damage(path: Path) -> Iterator[None]:
    """A description may hold anything in the place of anything."""
    try:
        yield
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"what {str(path)!r} or the config beside it says of the model is damaged: {reason}") from error


def _recognised(
    path: Path, contents: Contents, config: dict[str, Any], preprocessing: dict[str, Any], reading: Reading
) -> Source:
    """By our own description, by timm's config, or by the layouts."""
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
        sha256=weights_digest(path),
        pretrained_cfg=cfg,
        description=_added(config),
    )


def _check_sizes(source: Source, tensors: int) -> None:
    """Refuse a model that is larger than the file that it is said to lie in, before it is built.

    Each block has a tensor of its own, and with all others' one of width x width numbers at least. The side of
    its pictures does not show in every file's tensors, so that it has a limit of its own.
    """
    arguments, held = source.recognised.model_args, sum(one.numel() for one in source.recognised.encoder.values())
    sizes = {name: max(_numbers(value), default=0) for name, value in arguments.items()}
    blocks = sum(_numbers(arguments.get("depths", arguments.get("depth", 1))))
    width, factor = sizes.get("embed_dim", 1), max(1.0, sizes.get("mlp_ratio", 1.0) - 1)
    if any(math.isnan(size) or size < 0 for size in sizes.values()) or blocks > tensors:
        raise _absurd(source, f"{blocks:,g} blocks in {tensors} tensors")
    for name in ("patch_size", "num_heads", "window_size", "embed_dim", "depth", "img_size"):
        if name in arguments and any(not one > 0 for one in _numbers(arguments[name])):
            raise _absurd(source, f"{name} {arguments[name]!r}")
    if blocks * width**2 * factor > held or max(sizes.get("reg_tokens", 0), sizes.get("in_chans", 0)) * width > held:
        raise _absurd(source, f"more numbers than the {held:,} there are")
    if sizes.get("img_size", 0) > _LARGEST_SIDE or sizes.get("window_size", 0) > _LARGEST_SIDE:
        raise _absurd(source, f"pictures or windows of more than {_LARGEST_SIDE} px")
    positions, patch = source.recognised.encoder.get("pos_embed"), sizes.get("patch_size", 0)
    sides = [*_numbers(arguments.get("img_size", 0))] or [0]
    if positions is not None and patch and sides[0] // patch * (sides[-1] // patch) > positions.shape[1]:
        raise _absurd(source, f"more patches than its {positions.shape[1]} positions")


def _check_transform(told: Mapping[str, Any], path: Path) -> None:
    """Raise UserError unless pictures can be shown to the model as its description says."""
    size, mean, std = told.get("input_size", (3, 1, 1)), told.get("mean", MEAN), told.get("std", STD)
    share = told.get("crop_pct", 1.0)
    right = {
        "input_size": len(size) == 3 and all(isinstance(one, int) and 0 < one <= _LARGEST_SIDE for one in size),
        "mean": len(mean) == 3 and all(math.isfinite(one) for one in mean),
        "std": len(std) == 3 and all(math.isfinite(one) and one > 0 for one in std),
        "crop_pct": share is None or 0.1 <= share <= 10,
        "interpolation": told.get("interpolation", "bicubic") in (*_INTERPOLATIONS.values(), "random"),
        "crop_mode": told.get("crop_mode", "center") in ("center", "squash", "border"),
    }
    for name, fits in right.items():
        if not fits:
            raise UserError(
                f"{str(path)!r}: the description's {name} is {str(told[name])[:80]}, which no picture takes"
            )


def _numbers(value: object) -> Iterator[float]:
    """The numbers in an argument; a switch is none."""
    for one in value if isinstance(value, list | tuple) else (value,):
        if isinstance(one, int | float) and not isinstance(one, bool):
            yield one


def _absurd(source: Source, what: str) -> UserError:
    asked = {name: value for name, value in source.recognised.model_args.items() if any(_numbers(value))}
    return UserError(f"{str(source.path)!r} describes a model that cannot lie in it, {what}: {str(asked)[:200]}")


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
    check_architecture(description["architecture"])
    check_arguments(description["model_args"], str(path))
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
        layer_norm_eps=_epsilon(description),
    )
    cfg = description.get("pretrained_cfg") or _evaluation(recognised, {}, known_origin=True)[0]
    return Source(path=path, layout=OURS, branch=branch, recognised=recognised, notes=(), sha256=_intact(path),
                  pretrained_cfg=cfg, description=description)  # fmt: skip


def _timm_hub(path: Path, contents: Contents, config: Mapping[str, Any]) -> Source:
    """A directory of timm's layout on the hub: its config names the architecture."""
    (state,) = contents.states.values()
    classifier = sorted(key for key in state if key.split(".")[0] in ("head", "head_dist"))
    added = _added(config)
    # timm's own `save_for_hf` counts the classes among the arguments; encoders are built without classifier
    arguments = {k: v for k, v in (config.get("model_args") or {}).items() if k != "num_classes"}
    check_arguments(arguments, str(path.with_name(CONFIGS[0])))
    recognised = Recognised(
        architecture=check_architecture(config["architecture"]),
        model_args=arguments,
        encoder={key: value for key, value in state.items() if key not in classifier},
        layer_norm_eps=_epsilon(added),
    )
    notes = (f"left out: {', '.join(classifier)}",) if classifier else ()
    return Source(path=path, layout="timm_hub", branch="", recognised=recognised, notes=notes,
                  sha256=weights_digest(path), pretrained_cfg=dict(config.get("pretrained_cfg") or {}),
                  description=added)  # fmt: skip


def _epsilon(description: Mapping[str, Any]) -> float | None:
    found = description.get("layer_norm_eps")
    return None if found is None else float(found)


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
            read = json_of(file.read_text(encoding="utf-8")) if file.is_file() else {}
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


def _intact(path: Path) -> str:
    """The SHA-256 of a file of ours. Raises UserError where the checkpoint that it lies in noted another."""
    found = weights_digest(path)
    try:
        noted = json_of(path.with_name(CHECKPOINT).read_bytes())["files"][path.name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):  # a file by itself; resuming looks at the whole checkpoint
        return found
    if noted != found:
        raise UserError(
            f"{str(path)!r} is damaged: its SHA-256 is not the one that {CHECKPOINT} noted; kamim train with the same "
            "command goes back to the last intact checkpoint"
        )
    return found


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file, or of its shards one after the other."""
    digest = hashlib.sha256()
    for part in weights_file.parts(path):
        with part.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
