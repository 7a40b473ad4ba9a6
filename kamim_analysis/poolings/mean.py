"""Average pooling: the mean of the patch tokens, prefix tokens left out (SimMIM, KAMIM)."""

from jaxtyping import Float
from torch import Tensor

from ._pooling import LayerTokens, WeightedSum


class Mean(WeightedSum):
    """Every patch has the same share."""

    def weights(self, layer: LayerTokens) -> Float[Tensor, "b 1 n"]:
        """1 / N each."""
        count = layer.patches.shape[1]
        return layer.patches.new_full((len(layer.patches), 1, count), 1 / count)

    def forward(self, layer: LayerTokens) -> Float[Tensor, "b d"]:
        """The mean over patches."""
        return layer.patches.mean(1)
