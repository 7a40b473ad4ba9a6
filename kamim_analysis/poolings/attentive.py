"""Attentive pooling: several learned queries, each of which gathers a share of the channels."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from ._pooling import QueryPooling

_MOST_QUERIES = 8


class Attentive(QueryPooling):
    """Cross-attention of M learned queries to the patch tokens; query m gathers the m-th of M groups of channels.

    softmax over patches of q_m . token / sqrt(C), applied to a learned projection of the tokens, the groups
    concatenated: [B, C]. Without key projection, which a learned query can take in.
    """

    def __init__(self, width: int, queries: int | None = None) -> None:
        super().__init__(width)
        queries = queries or max(m for m in range(1, _MOST_QUERIES + 1) if width % m == 0)
        if width % queries:
            raise UserError(f"{queries} queries do not divide the {width} channels of a token; choose a divisor")
        self.queries = nn.Parameter(torch.zeros(queries, width))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.value = nn.Linear(width, width)

    def query_rows(self) -> Float[Tensor, "q d"]:
        """q / sqrt(C)."""
        rows: Tensor = self.queries / self.width**0.5
        return rows

    def combined(self, gathered: Float[Tensor, "b q d"]) -> Float[Tensor, "b d"]:
        """Each query's group of channels of the projection, side by side.

        Weights sum to one, so projecting what was gathered is the same as gathering projections of every patch.
        """
        queries = len(self.queries)
        weight, bias = (values.unflatten(0, (queries, -1)) for values in (self.value.weight, self.value.bias))
        groups: Tensor = torch.einsum("bqd,qed->bqe", gathered, weight) + bias
        return groups.flatten(1)
