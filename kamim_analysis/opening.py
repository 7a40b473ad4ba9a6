"""From a model's SPEC on the command line to a frozen encoder, ready to be hooked."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import encoders
from .checkpoints._layout import Recognised
from .errors import UserError, some
from .hub import fetch, find_weights
from .masked_autoencoder import MaskedAutoencoder, fix_sincos_positions
from .model_spec import ModelSpec, Reading, parse
from .reconstruction import MaskedImageModel, MaskSettings, Reconstructs
from .source import read_source
from .swin_merging import at_stage_end
from .timm_names import SHORT_NAMES

log = logging.getLogger(__name__)

#: norms that keep torch's own epsilon, whatever the blocks have
OWN_EPS = ("patch_embed.norm", "downsample.norm")


@dataclass
class OpenedModel:
    """A model of the command line."""

    label: str
    spec: str
    encoder: Any
    """The timm model, in evaluation mode."""
    masked_model: Reconstructs | None
    """The encoder with its head and mask token, where the weights hold them."""
    masking: MaskSettings
    transform: Callable[[Any], torch.Tensor]
    """timm's evaluation transform for the model: Pillow image -> normalised float [3, H, W]."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """For the manifest: where the weights come from, their hash, what was guessed or resized."""

    @property
    def shown(self) -> dict[str, object]:
        """How pictures are shown to it, as protocols tell: resolution in pixels, crop, interpolation."""
        transform = self.provenance["transform"]
        return {
            "resolution": transform["input_size"][-1],
            "crop": transform["crop_pct"],
            "interpolation": transform["interpolation"],
        }


def load_encoder(spec: str, image_size: int | None = None, *, heads: int | None = None) -> nn.Module:
    """The encoder of a SPEC, an unmodified timm model in evaluation mode.

    SPEC is a run directory, a weights file (`FILE@teacher` for one of its encoders), a directory of the hub's layout,
    `timm:NAME`, `hf:OWNER/NAME` or `random:NAME`, as on the command line. `image_size` resizes the position embedding
    by timm's own function; None keeps the size of the weights. `heads` is the head count where the file does not tell.

    It takes normalised pictures [B, 3, H, W]; without a classifier, calling it gives pooled features [B, C].

    Raises UserError for whatever cannot be opened, in one line.

    >>> encoder = load_encoder("random:vit_tiny", image_size=32)
    >>> encoder.forward_features(torch.zeros(2, 3, 32, 32)).shape  # [batch, tokens, channels]: cls and 2 x 2 patches
    torch.Size([2, 5, 192])
    """
    encoder: nn.Module = open_model(parse(spec, Reading(heads=heads)), image_size).encoder
    return encoder


def open_model(spec: ModelSpec, image_size: int | None = None, *, seed: int = 0) -> OpenedModel:
    """Open a parsed SPEC. Raises UserError for whatever cannot be opened, in one line."""
    if spec.kind == "random":
        return _open_random(spec, image_size, seed)
    if spec.kind == "timm":
        return _open_timm(spec, image_size)
    return _open_weights(spec, image_size)


def _open_random(spec: ModelSpec, image_size: int | None, seed: int) -> OpenedModel:
    """The architecture with seeded random weights: the same that training with this seed starts from."""
    path = Path(spec.target)
    config: dict[str, Any] = {}
    fixed = False
    if path.is_file():
        source = read_source(path, Reading())
        fixed = source.description.get("positions") == "sincos"
        arguments = source.recognised.model_args | ({} if image_size is None else {"img_size": image_size})
        make = partial(encoders.build, source.recognised.architecture, arguments)
        config = source.pretrained_cfg
    else:
        make = partial(encoders.create, spec.target, image_size or _default_size(spec.target))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = make()
    if fixed:  # no argument of timm's
        fix_sincos_positions(encoder)
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


def _open_weights(spec: ModelSpec, image_size: int | None) -> OpenedModel:
    path = local_weights(spec)
    source = read_source(path, spec.reading)
    recognised, notes = source.recognised, [*source.notes]
    arguments = dict(recognised.model_args)
    if image_size not in (None, arguments.get("img_size")):
        notes += _resized(recognised, arguments.get("img_size"), image_size)
        arguments["img_size"] = image_size
    for note in notes:
        log.warning("%s: %s", spec.label, note)
    encoder = encoders.build_empty(recognised.architecture, arguments)
    _load_strictly(encoder, recognised.encoder, path)
    encoders.compute_buffers(encoder)
    for name, values in recognised.buffers.items():
        encoder.get_buffer(name).copy_(values)
    _set_eps(encoder, recognised.layer_norm_eps)
    encoder.pretrained_cfg.update(source.pretrained_cfg)
    provenance = {"source": str(path), "sha256": source.sha256, "format": source.layout, "notes": notes}
    if source.branch:
        provenance["branch"] = source.branch
    opened = _opened(spec, encoder, provenance | source.description)
    if recognised.decoder:
        opened.masked_model = _with_head(encoder, recognised, path)
        opened.masking = MaskSettings(**source.masking)
    return opened


def local_weights(spec: ModelSpec) -> Path:
    """The weights file of a SPEC, fetched from the hub if need be."""
    if spec.kind != "hub":
        return Path(spec.target)
    weights = find_weights(fetch(spec.target))
    assert weights is not None
    return weights


def _resized(recognised: Recognised, stored: object, asked: int | None) -> list[str]:
    """What another image size does to the positions."""
    if "pos_embed" in recognised.encoder:
        return [f"position embedding resized from {stored} px to {asked} px"]
    if recognised.architecture.startswith("beit"):
        return [f"relative position bias resized from {stored} px to {asked} px"]
    return []


def _set_eps(encoder: nn.Module, eps: float | None) -> None:
    """The LayerNorms' epsilon, which belongs to the weights' function but is no argument of every timm model.

    Those of Swin's embedding and of its merged patches have torch's own, as in transformers, whatever the blocks have.
    """
    for path, module in encoder.named_modules():
        if eps is not None and isinstance(module, nn.LayerNorm) and not path.endswith(OWN_EPS):
            module.eps = eps


def _with_head(encoder: nn.Module, recognised: Recognised, path: Path) -> Reconstructs:
    """The model of pretraining around the encoder; MAE's decoder has positions of its own, which timm resizes too."""
    from timm.layers import resample_abs_pos_embed

    state = dict(recognised.decoder)
    model: MaskedImageModel | MaskedAutoencoder
    if recognised.head == "mae":
        model = MaskedAutoencoder(encoder, **recognised.head_args)
        grid, prefix = list(model.anatomy.blocks[0].grid), model.anatomy.prefix_tokens
        positions = resample_abs_pos_embed(state["decoder_pos_embed"], grid, num_prefix_tokens=prefix)
        state["decoder_pos_embed"] = positions
    else:
        model = MaskedImageModel(encoder)
    _load_strictly(model, state, path, partial="encoder.")
    _set_eps(model, recognised.layer_norm_eps)
    return model.eval().requires_grad_(False)


def _load_strictly(model: nn.Module, state: dict[str, Any], path: Path, partial: str | None = None) -> None:
    """Load with every key accounted for on both sides; keys that begin with `partial` may be missing.

    timm's own function for the model's class resizes positions and patches. The tensors become the model's weights
    without a copy, in single precision.
    """
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    try:
        if adapt is not None:
            state = adapt(at_stage_end(state), model)
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except (RuntimeError, ValueError, AssertionError, AttributeError) as error:  # timm's function meets odd shapes
        mismatches = [line.strip() for line in str(error).splitlines()[1:] or [str(error)]]
        raise UserError(f"{str(path)!r} does not fit: {some(mismatches)}") from error
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
