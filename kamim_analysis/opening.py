"""From a model's SPEC on the command line to a frozen encoder, ready to be hooked."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import encoders, plugins, weights_file
from .checkpoints._layout import Recognised
from .errors import UserError
from .model_spec import ModelSpec, parse
from .reconstruction import MEAN, STD, MaskedImageModel, MaskSettings
from .timm_names import SHORT_NAMES

log = logging.getLogger(__name__)


@dataclass
class OpenedModel:
    """A model of the command line."""

    label: str
    spec: str
    encoder: Any
    """The timm model, in evaluation mode."""
    masked_model: MaskedImageModel | None
    """The encoder with its head and mask token, where the weights hold them."""
    masking: MaskSettings
    transform: Callable[[Any], torch.Tensor]
    """timm's evaluation transform for the model: Pillow image -> normalised float [3, H, W]."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """For the manifest: where the weights come from, their hash, what was guessed or resized."""


def load_encoder(spec: str, image_size: int | None = None) -> nn.Module:
    """The encoder of a SPEC, an unmodified timm model in evaluation mode.

    SPEC is a run directory, a weights file, `timm:NAME` or `random:NAME`, as on the command line. `image_size`
    resizes the position embedding by timm's own function; None keeps the size of the weights.
    """
    encoder: nn.Module = open_model(parse(spec), image_size).encoder
    return encoder


def open_model(
    spec: ModelSpec, image_size: int | None = None, *, seed: int = 0, heads: int | None = None
) -> OpenedModel:
    """Open a parsed SPEC. Raises UserError for whatever cannot be opened, in one line."""
    if spec.kind == "random":
        return _open_random(spec, image_size, seed)
    if spec.kind == "timm":
        return _open_timm(spec, image_size)
    return _open_weights(spec, image_size, heads)


def _open_random(spec: ModelSpec, image_size: int | None, seed: int) -> OpenedModel:
    """The architecture with seeded random weights: the same that training with this seed starts from."""
    path = Path(spec.target)
    config: dict[str, Any] = {}
    if path.is_file():
        recognised, description = _recognised(path, None)
        arguments = recognised.model_args | ({} if image_size is None else {"img_size": image_size})
        make = partial(encoders.build, recognised.architecture, arguments)
        config = description.get("pretrained_cfg", _normalisation_of(recognised))
    else:
        make = partial(encoders.create, spec.target, image_size or _default_size(spec.target))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = make()
    encoder.pretrained_cfg.update(config)
    return _opened(spec, encoder, {"source": "random weights", "seed": seed})


def _default_size(name: str) -> int:
    """The papers' 192 px for their encoders, timm's own size for others."""
    if name in SHORT_NAMES:
        return 192
    import timm

    config = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config else 224


def _open_timm(spec: ModelSpec, image_size: int | None) -> OpenedModel:
    arguments = {} if image_size is None else {"img_size": image_size}
    try:
        encoder = encoders.build(spec.target, arguments, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises its own and its transport's errors
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"pretrained weights of timm:{spec.target} are neither cached nor reachable ({reason}); "
            f"use a weights file, or random:{spec.target} for a control"
        ) from error
    return _opened(spec, encoder, {"source": "timm pretrained"})


def _open_weights(spec: ModelSpec, image_size: int | None, heads: int | None) -> OpenedModel:
    path = Path(spec.target)
    recognised, description = _recognised(path, heads)
    arguments = dict(recognised.model_args)
    stored = arguments.get("img_size")
    if image_size is not None:
        arguments["img_size"] = image_size
    encoder = encoders.build(recognised.architecture, arguments)
    notes = list(recognised.announcements)
    if image_size is not None and stored not in (None, image_size) and "pos_embed" in recognised.encoder:
        notes.append(f"position embedding resized from {stored} px to {image_size} px")
    for note in notes:
        log.warning("%s: %s", spec.label, note)
    _load_strictly(encoder, recognised.encoder, path)
    encoder.pretrained_cfg.update(description.get("pretrained_cfg", _normalisation_of(recognised)))
    opened = _opened(spec, encoder, {"source": str(path), "sha256": _sha256(path), "notes": notes} | description)
    if recognised.decoder:
        opened.masked_model = MaskedImageModel(encoder).eval()
        _load_strictly(opened.masked_model, recognised.decoder, path, partial="encoder.")
        opened.masking = MaskSettings(**description.get("masking", {}))
    return opened


def describe_weights(spec: ModelSpec) -> str:
    """One line that says what a weights file holds, from its keys and shapes."""
    recognised, description = _recognised(Path(spec.target), None)
    weights = sum(tensor.numel() for tensor in recognised.encoder.values())
    whole = ["with mask token and head"] if recognised.decoder else []
    arguments = ", ".join(f"{name}={value}" for name, value in recognised.model_args.items() if value is not None)
    step = [f"after step {description['step']}"] if "step" in description else []
    return "; ".join(
        [
            f"{recognised.architecture}({arguments})",
            f"{weights:,} weights",
            *whole,
            *step,
            *recognised.announcements,
        ]
    )


def _recognised(path: Path, heads: int | None) -> tuple[Recognised, dict[str, Any]]:
    """What a weights file holds, with our own description where it carries one."""
    state, description = weights_file.read_state(path)
    if description is None:
        return recognise(state, path, heads), {}
    return _ours(state, description), description


def _normalisation_of(recognised: Recognised) -> dict[str, Any]:
    """ImageNet's mean and deviation and the whole picture, for weights that do not say how they were trained."""
    size = recognised.model_args["img_size"]
    return {"mean": MEAN, "std": STD, "input_size": (3, size, size), "crop_pct": 1.0, "interpolation": "bicubic"}


def recognise(state: dict[str, Any], path: Path, heads: int | None = None) -> Recognised:
    """Find the layout of a state dict by its keys. Raises UserError when none or more than one fits."""
    layouts = plugins.load_all("kamim_analysis.checkpoints")
    fitting = [name for name, layout in layouts.items() if layout.matches(state)]
    if len(fitting) != 1:
        keys = ", ".join(list(state)[:4])
        verdict = f"fits several layouts ({', '.join(fitting)})" if fitting else "fits no known layout"
        raise UserError(f"{str(path)!r} {verdict}; known are {', '.join(layouts)}; its keys begin: {keys}")
    recognised: Recognised = layouts[fitting[0]].convert(state, heads)
    return recognised


def _ours(state: dict[str, Any], description: dict[str, Any]) -> Recognised:
    """Our own files: `encoder.safetensors`, or a checkpoint's `model.safetensors` with head and mask token."""
    missing = {"architecture", "model_args"} - description.keys()
    if missing:
        raise UserError(f"the weights file's own description lacks {', '.join(sorted(missing))}; it cannot be opened")
    prefix = "encoder."
    whole = any(key.startswith(prefix) for key in state)
    encoder = {k.removeprefix(prefix): v for k, v in state.items() if not whole or k.startswith(prefix)}
    # all the rest, so that the strict load names what is not head or mask token
    decoder = {k: v for k, v in state.items() if not k.startswith(prefix)} if whole else {}
    return Recognised(
        architecture=description["architecture"],
        model_args=description["model_args"],
        encoder=encoder,
        decoder=decoder,
    )


def _load_strictly(model: nn.Module, state: dict[str, Any], path: Path, partial: str | None = None) -> None:
    """Load with every key accounted for on both sides; keys that begin with `partial` may be missing."""
    from timm.models import SwinTransformer, VisionTransformer, swin_transformer, vision_transformer

    if isinstance(model, VisionTransformer):
        state = vision_transformer.checkpoint_filter_fn(state, model)
    elif isinstance(model, SwinTransformer):
        state = swin_transformer.checkpoint_filter_fn(state, model)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{str(path)!r} does not fit: {' '.join(str(error).split())}") from error
    computed = ("relative_position_index", "attn_mask")
    missing = [k for k in missing if not (partial and k.startswith(partial)) and not k.endswith(computed)]
    if missing or unexpected:
        raise UserError(
            f"{str(path)!r} does not fit {type(model).__name__}: missing keys {missing or 'none'}, "
            f"unexpected keys {unexpected or 'none'}"
        )


def _opened(spec: ModelSpec, encoder: Any, provenance: dict[str, Any]) -> OpenedModel:
    import timm.data

    encoder = encoder.eval().requires_grad_(False)
    body = encoders.anatomy(encoder)
    config = timm.data.resolve_data_config({"input_size": (3, *body.image_size)}, model=encoder)
    provenance = {
        "architecture": encoder.architecture,
        "model_args": encoder.model_args,
        "transform": {key: config[key] for key in ("input_size", "mean", "std", "interpolation", "crop_pct")},
    } | provenance
    transform = timm.data.create_transform(**config, is_training=False)
    return OpenedModel(spec.label, spec.spec, encoder, None, MaskSettings(), transform, provenance)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
