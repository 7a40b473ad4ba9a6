"""Encoders: always unmodified timm models, known to the rest of the code by their anatomy."""

import inspect
import os
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
    _check_memory(architecture, arguments)
    encoder = build(architecture, arguments)
    if hasattr(encoder, "fc_norm"):  # a classifier's norm: without classifier nothing trains it
        encoder.fc_norm.requires_grad_(False)
    return encoder


def _check_memory(architecture: str, arguments: dict[str, Any]) -> None:
    """Raise UserError where the weights alone would not fit into this machine, before any is taken.

    Counted are the matrices of the blocks, 12 x width^2 each, and a learned position for each patch. A size that is
    not given counts as that of the smallest published encoder, so that the sum is never too large.
    """
    from timm.layers import to_2tuple

    width = arguments.get("embed_dim", 192)
    depth = arguments.get("depth", sum(arguments.get("depths", (12,))))
    image, patch = to_2tuple(arguments.get("img_size", 0)), to_2tuple(arguments.get("patch_size", 32))
    positions = image[0] / patch[0] * image[1] / patch[1]
    needed = 4 * width * (12 * depth * width + positions)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"{architecture} with {arguments} needs {needed / 1e9:,.0f} GB for its weights, and this machine has "
            f"{there / 1e9:,.0f} GB; take fewer blocks, a smaller width or image size, or larger patches"
        )


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
    except (AssertionError, ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        # of torch's errors the first line: its own stack follows
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        raise UserError(f"timm cannot build {architecture} with {arguments}: {reason}") from error
    model.architecture, model.model_args = architecture, arguments
    return model


def check_arguments(arguments: object, source: str) -> None:
    """Raise UserError for what a file may not ask of timm: anything but arguments of a model's own constructor.

    `timm.create_model` takes options of its own by the same way, among them the paths of files to load.
    """
    import timm
    from timm.models import build_model_with_cfg

    if not isinstance(arguments, dict):
        raise UserError(f"{source!r}: its model_args are no arguments by name")
    taken = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
    for name in arguments:
        if name in {*taken, "features_only", "out_indices"}:
            raise UserError(f"{source!r}: its model_args have {name!r}, which is no size of an encoder; refused")


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
