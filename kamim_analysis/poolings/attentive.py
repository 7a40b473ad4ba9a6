"""Attentive pooling: several learned queries, each of which gathers a share of the channels."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from ._pooling import LayerTokens, Pooling

_MOST_QUERIES = 8


class Attentive(Pooling):
    """Cross-attention of M learned queries to the patch tokens; query m gathers the m-th of M groups of channels.

    softmax over patches of q_m . token / sqrt(C), applied to a learned projection of the tokens, the groups
    concatenated: [B, C]. Without key projection, which a learned query can take in.
    """

    LEARNED: ClassVar[bool] = True

    def __init__(self, width: int, queries: int | None = None) -> None:
        super().__init__(width)
        queries = queries or max(m for m in range(1, _MOST_QUERIES + 1) if width % m == 0)
        if width % queries:
            raise UserError(f"{queries} queries do not divide the {width} channels of a token; choose a divisor")
        self.queries = nn.Parameter(torch.zeros(queries, width))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.value = nn.Linear(width, width)

    def weights(self, layer: LayerTokens) -> Float[Tensor, "b q n"]:
        """softmax(q . token / sqrt(C)) over the patches, one row for each query."""
        scores: Tensor = self.queries @ layer.patches.mT / self.width**0.5
        return scores.softmax(-1)

    def forward(self, layer: LayerTokens) -> Float[Tensor, "b d"]:
        """The groups that the queries gather, side by side."""
        groups = self.value(layer.patches).unflatten(2, (len(self.queries), -1))
        return torch.einsum("bqn,bnqd->bqd", self.weights(layer), groups).flatten(1)
