"""The cls token itself (DINO, iBOT, AttMask)."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ._pooling import LayerTokens, Pooling


class Cls(Pooling):
    """No pooling of patches at all."""

    NEEDS_CLS: ClassVar[bool] = True

    def weights(self, layer: LayerTokens) -> None:
        """No patch has a share."""

    def forward(self, layer: LayerTokens) -> Float[Tensor, "b d"]:
        """The token."""
        assert layer.cls is not None
        return layer.cls
