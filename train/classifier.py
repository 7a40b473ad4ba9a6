"""A classifier on one layer of an encoder: pooling, optional norm, one linear layer."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kamim_analysis.encoders import evaluating
from kamim_analysis.errors import UserError
from kamim_analysis.extraction import pooling_class

from .layer_tokens import LayerReader
from .objectives._classification import Norm

# timm's of its vision transformers
_EPS = 1e-6


class Classifier(nn.Module):
    """Normalised images to logits: a layer's tokens, pooled to one feature, `norm`, a linear layer with bias.

    A frozen encoder stays in evaluation mode whatever mode the classifier is in: no drop path, no dropout, no running
    statistics. It gets no gradient.
    """

    def __init__(self, encoder: Any, *, layer: int, pooling: str, norm: Norm, classes: int, frozen: bool) -> None:
        super().__init__()
        self.frozen, self.layer, self.norm_name = frozen, layer, norm
        self.encoder: nn.Module = encoder.requires_grad_(not frozen)
        chosen = pooling_class(pooling)
        self.read = LayerReader(encoder, layer, final_norm=norm == "final", attention=chosen.NEEDS_ATTENTION)
        if chosen.NEEDS_CLS and not (self.read.prefix and self.read.body.has_cls):
            raise UserError(f"layer {layer} has no cls token, which {pooling!r} needs; take --pooling mean")
        if chosen.NEEDS_ATTENTION and layer == 0:
            raise UserError(f"layer 0 has no attention, which {pooling!r} needs; take another layer or pooling")
        width = self._width()
        self.pooling = chosen(width)
        self.norm = nn.LayerNorm(width, eps=_EPS) if norm == "trained" else nn.Identity()
        self.head = nn.Linear(width, classes)
        if not frozen:
            self._freeze_unreached()

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b classes"]:
        """Logits."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.read(self.encoder, images)
        logits: Tensor = self.head(self.norm(self.pooling(tokens)))
        return logits

    def train(self, mode: bool = True) -> "Classifier":
        """The mode of all parts, less a frozen encoder's, which evaluates."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def _blank(self) -> Tensor:
        weight = next(self.encoder.parameters())
        return torch.zeros(1, 3, *self.read.body.image_size, device=weight.device)

    def _width(self) -> int:
        """Channels of the layer: Swin's double from stage to stage."""
        with evaluating(self.encoder):
            return self.read(self.encoder, self._blank()).patches.shape[-1]

    def _freeze_unreached(self) -> None:
        """Parameters that no logit depends on (blocks behind the layer, an unused norm) are left as they are.

        With a gradient asked of them, distributed training would wait for it.
        """
        parameters = [weight for weight in self.encoder.parameters() if weight.is_floating_point()]
        was = self.training
        self.eval()
        gradients = torch.autograd.grad(self(self._blank()).sum(), parameters, allow_unused=True)
        self.train(was)
        for weight, gradient in zip(parameters, gradients, strict=True):
            weight.requires_grad_(gradient is not None)
