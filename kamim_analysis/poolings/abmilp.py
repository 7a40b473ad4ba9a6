"""Attention-based multiple-instance pooling, depth 1, of patch tokens: selective aggregation (arXiv 2412.03215)."""

from jaxtyping import Float
from torch import Tensor, nn

from ._pooling import QueryPooling


class AbMILP(QueryPooling):
    """softmax over patches of a learned linear score of the token; the scores start at zero, so as the mean."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.score = nn.Linear(width, 1, bias=False)  # a bias would move all scores alike
        nn.init.zeros_(self.score.weight)

    def query_rows(self) -> Float[Tensor, "1 d"]:
        """The score's weight."""
        return self.score.weight

    def combined(self, gathered: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b d"]:
        """What the one query gathers."""
        return gathered[:, 0]
