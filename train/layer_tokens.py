"""The tokens of one layer, with gradients where they are wanted, and no more computed than it takes."""

from inspect import signature
from types import NoneType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kamim_analysis.encoders import anatomy, patch_tokens
from kamim_analysis.errors import UserError
from kamim_analysis.models._anatomy import Anatomy
from kamim_analysis.poolings._pooling import LayerTokens
from kamim_analysis.recorder import Kind, record


class LayerReader:
    """Callable on an encoder and normalised images: what layer `layer` gives of each.

    The tokens are raw, or with `final_norm` after the encoder's own final norm. `attention`: of cls too, which takes a
    complete pass, as does a Swin; of other encoders the blocks behind the layer are not computed.

    Raises UserError for a layer that does not exist and a final norm that is missing or does not fit.
    """

    def __init__(self, encoder: Any, layer: int, *, final_norm: bool, attention: bool) -> None:
        self.body: Anatomy = anatomy(encoder)
        self.layer, self.final_norm, self.attention = layer, final_norm, attention
        last = len(self.body.blocks)
        if not 0 <= layer <= last:
            raise UserError(f"layer {layer} does not exist: this encoder has layers 0 (the embedding) to {last}")
        if final_norm and not has_final_norm(encoder):
            raise UserError("this encoder has no final norm; take --norm none or --norm trained")
        block = self.body.blocks[max(layer - 1, 0)]
        self.grid, self.prefix = block.grid, block.prefix_tokens
        self.stops_early = not attention and layer > 0 and _can_stop_early(encoder, self.body)

    def __call__(self, encoder: Any, images: Float[Tensor, "b 3 y x"]) -> LayerTokens:
        """One forward pass."""
        tokens, weights = self._stopped_early(encoder, images) if self.stops_early else self._recorded(encoder, images)
        if self.final_norm:
            if tokens.shape[-1] != self.body.width:
                raise UserError(f"layer {self.layer} is narrower than the final norm; take --norm none or trained")
            tokens = encoder.norm(tokens)
        cls = tokens[:, 0].float() if self.prefix and self.body.has_cls else None
        return LayerTokens(patch_tokens(tokens, self.prefix).float(), self.grid, cls, weights)

    def _stopped_early(self, encoder: Any, images: Tensor) -> tuple[Tensor, None]:
        (found,) = encoder.forward_intermediates(
            images,
            indices=[self.layer - 1],
            return_prefix_tokens=self.prefix > 0,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if not self.prefix:
            return found, None
        patches, prefix = found
        return torch.cat([prefix, patches], dim=1), None

    def _recorded(self, encoder: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
        heard: dict[Kind, Tensor] = {}

        def hear(kind: Kind, _layer: int, values: Tensor) -> None:
            heard[kind] = values

        with record(encoder, attention=[self.layer] if self.attention else (), tokens=[self.layer], sink=hear):
            encoder.forward_features(images)
        if not self.attention:
            return heard["tokens"], None
        of_patches = heard["attention"][:, :, 0, self.prefix :].float().mean(1)
        return heard["tokens"], of_patches / of_patches.sum(1, keepdim=True)


def has_final_norm(encoder: Any) -> bool:
    """Whether the encoder normalises its last layer's tokens; timm's ViTs that pool by averaging may not."""
    return not isinstance(getattr(encoder, "norm", None), nn.Identity | NoneType)


def _can_stop_early(encoder: Any, body: Anatomy) -> bool:
    """Whether timm's own way of stopping at a block gives the block's output as it is."""
    known = getattr(encoder, "forward_intermediates", None)
    if body.family != "vit" or known is None or "stop_early" not in signature(known).parameters:
        return False
    return all(block.prefix_tokens == body.prefix_tokens for block in body.blocks)
