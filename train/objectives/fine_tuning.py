"""Fine-tuning: the whole encoder learns to classify, with one linear layer (KAMIM, arXiv 2407.13873, section 4.1)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kamim_analysis.train.objectives._classification import Classification, Norm

if TYPE_CHECKING:
    from kamim_analysis.train.recipe import Recipe
    from kamim_analysis.train.start import LabelledStart


@dataclass(frozen=True, kw_only=True)
class FineTuning(Classification):
    """Encoder, pooling, norm and linear layer are trained together; `encoder.drop_path` is its stochastic depth.

    Defaults as in the paper, the final norm as in its code, which takes the last layer behind it. The code configures
    stochastic depth and layer-wise decay (0.1, 0.65) and uses neither.
    """

    ANALYSIS: ClassVar[str] = "fine_tuning"
    FROZEN: ClassVar[bool] = False

    norm: Norm = "final"
    """What normalises before the linear layer: `none`, `final` (the encoder's own, on tokens; nothing where it has
    none) or `trained`."""
    layer_decay: float = 1.0
    """Learning rate of block i of L: layer_decay^(L + 1 - i) times that of the head; 1 for the same rate throughout."""

    def shares(self) -> dict[str, float]:
        """The greatest value of settings that begin at 0."""
        return super().shares() | {"layer_decay": 1.0}

    def start(self, recipe: "Recipe") -> "LabelledStart":
        """Labelled pictures and the model's encoder, with stochastic depth."""
        from kamim_analysis.train.layer_rates import set_drop_path

        start = super().start(recipe)
        set_drop_path(start.encoder, recipe.encoder.drop_path)
        return start
