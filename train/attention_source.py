"""How much attention each patch receives, by which AttMask ranks patches: of an encoder, or of any opened model."""

from typing import Any, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kamim_analysis.encoders import anatomy, evaluating
from kamim_analysis.fingerprints import weights_fingerprint
from kamim_analysis.model_spec import parse
from kamim_analysis.models._anatomy import Anatomy
from kamim_analysis.opening import OpenedModel, open_model
from kamim_analysis.recorder import record
from kamim_analysis.shapes import Grid, Size


def attention_received(attention: Float[Tensor, "b h t t"], body: Anatomy) -> Float[Tensor, "b n"]:
    """Attention that each patch receives in the last layer, mean over heads: from 0, summing to 1 at most.

    From cls, as AttMask has it (arXiv 2203.12719, section 3.3); where the last layer has no cls, from all patches in
    the mean. It ranks patches within an image, so what cls and registers receive is left out without normalising again.
    """
    prefix = body.blocks[-1].prefix_tokens
    if body.has_cls and prefix:
        return attention[:, :, 0, prefix:].mean(1)
    return attention[:, :, prefix:, prefix:].mean((1, 2))


def attention_scores(encoder: nn.Module, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b n"]:
    """`attention_received` of normalised images, from a pass in evaluation mode without gradients."""
    with evaluating(encoder), record(encoder, attention=[-1], tokens=(), check_rows="once") as recording:
        cast(Any, encoder).forward_features(images)
    (attention,) = recording.attention.values()
    return attention_received(attention, recording.anatomy)


class OpenedAttention(nn.Module):
    """The scores of a frozen model that was opened for them, on the patch grid of the encoder that is trained.

    It is shown each crop with its own normalisation, at the crop's size where its patches tile that, else resized to
    the nearest size that they tile; its score map is then interpolated.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: str, trained: Anatomy) -> None:
        super().__init__()
        opened = _open(spec, trained.image_size.height)
        self.encoder: nn.Module = opened.encoder
        self.trained_grid = trained.blocks[-1].grid
        body = anatomy(self.encoder)
        self.image_size, self.grid = body.image_size, body.blocks[-1].grid
        transform = opened.provenance["transform"]
        self.register_buffer("mean", 255 * torch.tensor(transform["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(transform["std"])[:, None, None], persistent=False)
        self.description = {
            "attention_from": {"spec": opened.spec, **opened.provenance},
            "attention_weights": weights_fingerprint(self.encoder),
        }
        """For a checkpoint: which model it is, and the SHA-256 of its weights."""

    def forward(self, images: UInt8[Tensor, "b 3 y x"]) -> Float[Tensor, "b n"]:
        """A score of each patch of the trained encoder's last layer."""
        pixels = _resized(images.float(), self.image_size)
        scores = attention_scores(self.encoder, (pixels - self.mean) / self.std)
        return _resized(scores.unflatten(1, self.grid)[:, None], self.trained_grid).flatten(1)


def _open(spec: str, image_size: int) -> OpenedModel:
    """The model at this image size, or at the nearest multiple of its own patch."""
    parsed = parse(spec)
    opened = open_model(parsed)
    body = anatomy(opened.encoder)
    size = max(1, round(image_size / body.stride)) * body.stride
    return opened if size == body.image_size.height else open_model(parsed, size)


def _resized(maps: Float[Tensor, "b c y x"], size: Grid | Size) -> Float[Tensor, "b c gy gx"]:
    """Bilinear, antialiased."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return interpolate(maps, size=tuple(size), mode="bilinear", antialias=True)
