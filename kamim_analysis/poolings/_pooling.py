"""What a pooling is given and what it returns."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from ..shapes import Grid


class LayerTokens(NamedTuple):
    """What one layer gives of each image."""

    patches: Float[Tensor, "b n d"]
    grid: Grid
    cls: Float[Tensor, "b d"] | None = None
    cls_attention: Float[Tensor, "b n"] | None = None
    """Attention of cls to the patches in the block that ends in this layer: mean over heads, rows summing to one."""


class Pooling(nn.Module, ABC):
    """[B, N, C] tokens to one [B, C] feature; `width` is C. Those without weights of their own are not `LEARNED`."""

    LEARNED: ClassVar[bool] = False
    NEEDS_CLS: ClassVar[bool] = False
    """Whether encoders without a cls token cannot be pooled so."""
    NEEDS_ATTENTION: ClassVar[bool] = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    @abstractmethod
    def weights(self, layer: LayerTokens) -> Float[Tensor, "b q n"] | None:
        """The share of each patch in the feature, for each of the pooling's queries; rows sum to one.

        None where no patch has a share.
        """

    @abstractmethod
    def forward(self, layer: LayerTokens) -> Float[Tensor, "b d"]:
        """One feature for each image."""


class WeightedSum(Pooling):
    """A pooling whose feature is the sum of the patch tokens by weights of a single query."""

    @abstractmethod
    def weights(self, layer: LayerTokens) -> Float[Tensor, "b 1 n"]:
        """The share of each patch."""

    def forward(self, layer: LayerTokens) -> Float[Tensor, "b d"]:
        """The weighted sum of the patch tokens."""
        return (self.weights(layer) @ layer.patches)[:, 0]


class QueryPooling(Pooling):
    """A learned pooling: each of its queries gathers the patch tokens, weighted by softmax of a linear score.

    In parts, so that many of them, of several learning rates and seeds, can share one product with the tokens.
    """

    LEARNED: ClassVar[bool] = True

    @abstractmethod
    def query_rows(self) -> Float[Tensor, "q d"]:
        """What tokens are multiplied with for the scores, a row for each query."""

    @abstractmethod
    def combined(self, gathered: Float[Tensor, "b q d"]) -> Float[Tensor, "b d"]:
        """The feature, of what each query has gathered."""

    def weights(self, layer: LayerTokens) -> Float[Tensor, "b q n"]:
        """softmax over patches of row . token, one row for each query."""
        scores: Tensor = self.query_rows() @ layer.patches.mT
        return scores.softmax(-1)

    def forward(self, layer: LayerTokens) -> Float[Tensor, "b d"]:
        """Gathered, then combined."""
        return self.combined(self.weights(layer) @ layer.patches)
