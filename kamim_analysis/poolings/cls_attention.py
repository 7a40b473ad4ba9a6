"""The patches as cls attends to them (Beyond [cls], arXiv 2412.03215)."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ._pooling import LayerTokens, WeightedSum


class ClsAttention(WeightedSum):
    """The share of a patch is the attention of cls to it in the layer's block, mean over heads, prefix left out."""

    NEEDS_CLS: ClassVar[bool] = True
    NEEDS_ATTENTION: ClassVar[bool] = True

    def weights(self, layer: LayerTokens) -> Float[Tensor, "b 1 n"]:
        """The attention, rows summing to one."""
        assert layer.cls_attention is not None
        return layer.cls_attention[:, None].to(layer.patches.dtype)
