"""Masked image modelling around an unmodified encoder: mask token, linear head, reconstruction (SimMIM)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .encoders import anatomy, patch_tokens
from .patches import enlarge

# ImageNet's mean and standard deviation of RGB in [0, 1], with which both papers normalise
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How images were masked in pretraining."""

    unit: int = 32
    """Side of a mask unit in pixels."""
    ratio: float = 0.6
    """Share of the units that are hidden."""


@contextmanager
def masked_input(patch_embed: nn.Module, mask: Bool[Tensor, "b gy gx"], token: Float[Tensor, " d"]) -> Iterator[None]:
    """Inside `with`, hidden patches leave `patch_embed` as `token`, whatever the layout of its output."""

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        hidden = mask.reshape(*output.shape[:-1], 1)
        return torch.where(hidden, token.to(output.dtype), output)

    handle = patch_embed.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@runtime_checkable
class Reconstructs(Protocol):
    """A model that predicts hidden pixels: SimMIM's `MaskedImageModel` or MAE's `MaskedAutoencoder`."""

    def __call__(self, images: Float[Tensor, "b 3 y x"], mask: Bool[Tensor, "b gy gx"]) -> Float[Tensor, "b 3 y x"]:
        """Predicted pixels, in the normalised units of `images`, of every patch, hidden (mask True) or not."""
        ...

    def to(self, device: torch.device) -> "Reconstructs":
        """The model, moved to a device."""
        ...


class MaskedImageModel(nn.Module):
    """An encoder with SimMIM's learned mask token and one-layer head.

    The head is a linear map from a token to its pixels, written as a 1 x 1 convolution and pixel shuffle so that
    its weights have the layout of SimMIM's and Hugging Face's checkpoints.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        body = anatomy(encoder)
        self.anatomy = body
        self.encoder = encoder
        self.decoder = nn.Sequential(nn.Conv2d(body.width, body.stride**2 * 3, 1), nn.PixelShuffle(body.stride))
        embedded = cast(int, getattr(encoder, "embed_dim", body.width))
        self.mask_token = nn.Parameter(torch.zeros(embedded))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, images: Float[Tensor, "b 3 y x"], mask: Bool[Tensor, "b gy gx"]) -> Float[Tensor, "b 3 y x"]:
        """Predicted pixels, in the normalised units of `images`, of every patch, hidden (mask True) or not."""
        with masked_input(self.encoder.get_submodule(self.anatomy.patch_embed), mask, self.mask_token):
            tokens = cast(Any, self.encoder).forward_features(images)
        patches = patch_tokens(tokens, self.anatomy.prefix_tokens)
        height, width = self.anatomy.image_size
        stride = self.anatomy.stride
        channels_first = patches.transpose(1, 2).unflatten(2, (height // stride, width // stride))
        return cast(Tensor, self.decoder(channels_first))


def pixel_mask(mask: Bool[Tensor, "b gy gx"], patch_size: int) -> Bool[Tensor, "b y x"]:
    """A mask over patches as a mask over pixels."""
    return enlarge(mask, patch_size)


def masked_l1(
    prediction: Float[Tensor, "b 3 y x"],
    target: Float[Tensor, "b 3 y x"],
    mask: Bool[Tensor, "b y x"],
    weight: Float[Tensor, "b y x"] | None = None,
) -> Float[Tensor, ""]:
    """Mean absolute error over hidden pixels and colours, each pixel's error multiplied by its weight.

    Sum of |prediction - target| x weight over hidden pixels / (hidden pixels x 3). Without weight this is SimMIM's
    loss (arXiv 2111.09886); with KAMIM's weights, equation 3 of arXiv 2407.13873. The weights are not normalised:
    they raise the loss, as in the paper. Weights of one give the unweighted loss bit for bit. Where nothing is hidden
    the loss is 0.
    """
    error = (prediction - target).abs().float()
    if weight is not None:
        error = error * weight.unsqueeze(1)
    hidden = mask.unsqueeze(1)
    return (error * hidden).sum() / (hidden.sum() * 3).clamp(min=1)


def mean_colour_l1(target: Float[Tensor, "b 3 y x"], mask: Bool[Tensor, "b y x"]) -> Float[Tensor, ""]:
    """The loss of predicting each image's own mean colour everywhere: what a model that learned something must beat."""
    mean = target.mean((-2, -1), keepdim=True)
    return masked_l1(mean.expand_as(target), target, mask)
