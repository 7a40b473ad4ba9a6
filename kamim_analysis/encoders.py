"""Encoders: always unmodified timm models, known to the rest of the code by their anatomy."""

import warnings
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from . import plugins
from .errors import UserError
from .models._anatomy import Anatomy, Block
from .timm_names import SHORT_NAMES, check_architecture

_FAMILIES = "kamim_analysis.models"


def anatomy(encoder: nn.Module) -> Anatomy:
    """What the encoder is made of. Raises UserError for a model of no known family."""
    families = plugins.load_all(_FAMILIES)
    for family in families.values():
        if family.matches(encoder):
            described: Anatomy = family.describe(encoder)
            return described
    raise UserError(
        f"{type(encoder).__name__} is of no known family ({', '.join(families)}): its attention cannot be located"
    )


def is_encoder(module: nn.Module) -> bool:
    """Whether the module is a model of a known family, whose `anatomy` can be told."""
    return any(family.matches(module) for family in plugins.load_all(_FAMILIES).values())


def create(name: str, image_size: int, *, sizes: dict[str, int] | None = None, **options: Any) -> Any:
    """A timm encoder without classifier, random weights, for square images.

    `name` is one of `SHORT_NAMES` or any timm ViT or Swin. `sizes` changes width, depth, heads or patch_size; `options`
    go to timm. The model carries `architecture` and `model_args`, enough for timm to build it again.
    """
    architecture = SHORT_NAMES.get(name) or check_architecture(name)
    family = _family_of(architecture)
    arguments = (family.arguments(image_size, sizes or {}) if family else {"img_size": image_size}) | options
    encoder = build(architecture, arguments)
    if hasattr(encoder, "fc_norm"):  # a classifier's norm: without classifier nothing trains it
        encoder.fc_norm.requires_grad_(False)
    return encoder


def _family_of(architecture: str) -> Any:
    families = plugins.load_all(_FAMILIES)
    return families["swin"] if architecture.startswith("swin_") else families["vit"]


def build(architecture: str, arguments: dict[str, Any], *, pretrained: bool = False, empty: bool = False) -> Any:
    """`timm.create_model` without classifier; what timm refuses becomes one line.

    With `empty`, parameters take no memory and no time to initialise: weights must be assigned to all of them, and
    then `compute_buffers` called.
    """
    import timm
    from accelerate import init_empty_weights

    try:
        with warnings.catch_warnings(), init_empty_weights(include_buffers=False) if empty else nullcontext():
            warnings.simplefilter("ignore")
            model = timm.create_model(architecture, pretrained=pretrained, num_classes=0, **arguments)
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"timm cannot build {architecture} with {arguments}: {reason}") from error
    model.architecture, model.model_args = architecture, arguments
    return model


def build_empty(architecture: str, arguments: dict[str, Any]) -> Any:
    """`build` with `empty`, or without for a model that computes with its weights while it is made (Swin V2)."""
    try:
        return build(architecture, arguments, empty=True)
    except UserError:
        return build(architecture, arguments)


def compute_buffers(model: nn.Module) -> None:
    """Make timm compute the buffers that it could not compute while the parameters were empty (Swin's masks)."""
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            cast(Any, module)._init_buffers()


def patch_tokens(tokens: Float[Tensor, "b ..."], prefix_tokens: int) -> Float[Tensor, "b n d"]:
    """Patch tokens of a layer as [B, N, C]: the prefix dropped, Swin's [B, H, W, C] flattened."""
    return tokens.flatten(1, -2)[:, prefix_tokens:]


def pool(tokens: Float[Tensor, "b ..."], body: Anatomy, pooling: str) -> Float[Tensor, "b d"]:
    """One feature for each image: the mean of its patch tokens, or its cls token.

    Raises UserError where cls is asked of an encoder without one.
    """
    if pooling == "mean":
        return patch_tokens(tokens, body.prefix_tokens).mean(1)
    if not body.has_cls:
        raise UserError("this encoder has no cls token; use --pooling mean")
    return tokens[:, 0]


@contextmanager
def evaluating(model: nn.Module) -> Any:
    """Evaluation mode without gradients; the mode is restored on leaving."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


__all__ = [
    "Anatomy",
    "Block",
    "anatomy",
    "build",
    "build_empty",
    "compute_buffers",
    "create",
    "evaluating",
    "is_encoder",
    "patch_tokens",
    "pool",
]
