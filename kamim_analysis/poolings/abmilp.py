"""Attention-based multiple-instance pooling, depth 1, of patch tokens: selective aggregation (arXiv 2412.03215)."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from ._pooling import LayerTokens, WeightedSum


class AbMILP(WeightedSum):
    """softmax over patches of a learned linear score of the token; the scores start at zero, so as the mean."""

    LEARNED: ClassVar[bool] = True

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.score = nn.Linear(width, 1, bias=False)  # a bias would move all scores alike
        nn.init.zeros_(self.score.weight)

    def weights(self, layer: LayerTokens) -> Float[Tensor, "b 1 n"]:
        """softmax(w . token) over the patches."""
        scores: Tensor = self.score(layer.patches)
        return scores.softmax(1).mT
