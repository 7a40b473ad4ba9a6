"""Latent MIM's networks: encoders that see some of the patches, projectors, a decoder of latents (arXiv 2407.15837)."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from kamim_analysis.encoders import anatomy
from kamim_analysis.errors import UserError
from kamim_analysis.masked_autoencoder import check_drops_patches, mae_sincos_positions, visible_only
from kamim_analysis.shapes import Grid

from .ema import follow, frozen_copy

_norm = partial(nn.LayerNorm, eps=1e-6)


def projector(width: int, hidden: int, layers: int) -> nn.Module:
    """Linear layers without bias, each with a LayerNorm, GELU between them; none: the latents themselves."""
    parts: list[nn.Module] = []
    for layer in range(layers):
        last = layer == layers - 1
        outputs = width if last else hidden
        parts += [nn.Linear(hidden if layer else width, outputs, bias=False), nn.LayerNorm(outputs)]
        parts += [] if last else [nn.GELU()]
    made = nn.Sequential(*parts)
    _initialise(made)
    return made


def _initialise(module: nn.Module) -> None:
    """Xavier-uniform weights and no bias, as in the public code."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class _CrossAttention(nn.Module):
    """Queries ask the context; timm's own attention does so of one sequence only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Float[Tensor, "b q d"], context: Float[Tensor, "b k d"]) -> Float[Tensor, "b q d"]:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.q(queries), *self.kv(context).chunk(2, dim=2))
        )
        return cast(Tensor, self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class _DecoderBlock(nn.Module):
    """Self-attention among the queries, where there is any, cross-attention to the context, MLP; norms before each."""

    def __init__(self, width: int, heads: int, self_attention: bool) -> None:
        super().__init__()
        if self_attention:
            self.norm1, self.self_attn = _norm(width), Attention(width, heads, qkv_bias=True)
        self.has_self_attention = self_attention
        self.norm2q, self.norm2kv, self.cross_attn = _norm(width), _norm(width), _CrossAttention(width, heads)
        self.norm3, self.mlp = _norm(width), Mlp(width, 4 * width)

    def forward(self, queries: Float[Tensor, "b q d"], context: Float[Tensor, "b k d"]) -> Float[Tensor, "b q d"]:
        if self.has_self_attention:
            queries = queries + self.self_attn(self.norm1(queries))
        queries = queries + self.cross_attn(self.norm2q(queries), self.norm2kv(context))
        return cast(Tensor, queries + self.mlp(self.norm3(queries)))


class LatentDecoder(nn.Module):
    """Predicts latents of hidden patches from those of visible ones (section 3, "cross-attention decoder").

    A hidden patch's query is a learned vector, its position and, with `visual_cue`, the visible patches' embedded
    latents, averaged with weights softmax(PE_hidden . PE_visible / sqrt(width)). Prefix tokens, such as cls, are
    context with no position. A query of cls takes part in the queries' self-attention, as in the public code.
    """

    positions: Tensor
    nearness: Tensor

    def __init__(
        self, latent_width: int, grid: Grid, *, width: int, depth: int, heads: int, self_attention: bool, cue: bool
    ) -> None:
        super().__init__()
        if width % 4 or width % heads:
            raise UserError(f"objective.decoder_width {width} must be a multiple of 4 and of decoder_heads, {heads}")
        self.embed = nn.Linear(latent_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        # without self-attention nothing would hear of it
        self.cls_query = nn.Parameter(0.02 * torch.randn(1, 1, width)) if self_attention else None
        self.blocks = nn.ModuleList(_DecoderBlock(width, heads, self_attention) for _ in range(depth))
        self.norm, self.head = _norm(width), nn.Linear(width, latent_width)
        self.cue = cue
        positions = mae_sincos_positions(width, grid, 0)[0]
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("nearness", positions @ positions.T / width**0.5, persistent=False)
        _initialise(self)

    def forward(
        self, latents: Float[Tensor, "b t d"], visible: Int[Tensor, "b v"], hidden: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m d"]:
        """Predictions for the hidden patches, of latents of the prefix and the visible ones (t = prefix + v)."""
        embedded = self.embed(latents)
        prefix, patches = embedded.tensor_split((embedded.shape[1] - visible.shape[1],), dim=1)
        queries = self.mask_token + self.positions[hidden]
        if self.cue:
            queries = queries + self.cue_weights(visible, hidden) @ patches
        if self.cls_query is not None:
            queries = torch.cat([self.cls_query.expand(len(queries), -1, -1), queries], dim=1)
        context = torch.cat([prefix, patches + self.positions[visible]], dim=1)
        for block in self.blocks:
            queries = block(queries, context)
        return cast(Tensor, self.head(self.norm(queries[:, -hidden.shape[1] :])))

    def cue_weights(self, visible: Int[Tensor, "b v"], hidden: Int[Tensor, "b m"]) -> Float[Tensor, "b m v"]:
        """Of each hidden patch, the weights of the visible ones in its visual cue; they sum to one."""
        return self.nearness[hidden[:, :, None], visible[:, None, :]].softmax(-1)


class LatentModel(nn.Module):
    """Online encoder and projector, decoder, and with `momentum_target` copies of the first two that follow slowly."""

    def __init__(
        self, encoder: nn.Module, projector: nn.Module, decoder: LatentDecoder, *, momentum_target: bool
    ) -> None:
        super().__init__()
        check_drops_patches(encoder)
        self.prefix_tokens = anatomy(encoder).prefix_tokens
        self.encoder, self.projector, self.decoder = encoder, projector, decoder
        self.target_encoder = frozen_copy(encoder) if momentum_target else None
        self.target_projector = frozen_copy(projector) if momentum_target else None

    def follow(self, momentum: float) -> None:
        """Move the target a little towards the online weights."""
        if self.target_encoder is not None and self.target_projector is not None:
            follow(self.target_encoder, self.encoder, momentum)
            follow(self.target_projector, self.projector, momentum)

    def visible_latents(self, images: Float[Tensor, "b 3 y x"], visible: Int[Tensor, "b v"]) -> Float[Tensor, "b t d"]:
        """Projected latents of the prefix and of the visible patches, of which alone the encoder knows."""
        return cast(Tensor, self.projector(_tokens(self.encoder, images, visible, self.prefix_tokens)))

    def target_latents(
        self, images: Float[Tensor, "b 3 y x"], hidden: Int[Tensor, "b m"], *, sees_all: bool, gradient: bool
    ) -> Float[Tensor, "b m d"]:
        """Projected latents of the hidden patches, seen alone or (`sees_all`) in the whole picture.

        Of the copies where there are any, which give no gradient, else of the online weights.
        """
        encoder, project = self.target_encoder or self.encoder, self.target_projector or self.projector
        with nullcontext() if gradient else torch.no_grad():
            tokens = _tokens(encoder, images, None if sees_all else hidden, self.prefix_tokens)
            patches = tokens[:, self.prefix_tokens :]
            if sees_all:
                patches = patches.take_along_dim(hidden[:, :, None], dim=1)
            return cast(Tensor, project(patches))


def _tokens(
    encoder: nn.Module, images: Float[Tensor, "b 3 y x"], patches: Int[Tensor, "b v"] | None, prefix_tokens: int
) -> Float[Tensor, "b t d"]:
    """Tokens after the final norm, of an encoder that sees these patches alone, or all."""
    seeing: AbstractContextManager[None] = nullcontext()
    if patches is not None:
        seeing = visible_only(encoder.get_submodule("patch_drop"), patches, prefix_tokens)
    with seeing:
        return cast(Tensor, cast(Any, encoder).forward_features(images))
