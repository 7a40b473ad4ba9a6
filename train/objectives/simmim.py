"""SimMIM: predict the pixels of hidden patches with one linear layer (arXiv 2111.09886)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import parse
from kamim_analysis.train.objectives._masked import Masked

if TYPE_CHECKING:
    from kamim_analysis.train.masked_objective import MaskedObjective
    from kamim_analysis.train.recipe import Recipe
    from kamim_analysis.train.start import Start
    from kamim_analysis.train.views import Augmentation, CropView


@dataclass(frozen=True, kw_only=True)
class SimMIM(Masked):
    """Mean absolute error over hidden pixels of normalised RGB; defaults as in KAMIM's comparison.

    Where pictures hide unequal shares, each picture's mean counts alike, and one of which nothing is hidden as 0.
    """

    attention_from: str = "ema"
    """attmask_*: whose attention in the last layer ranks the patches. ema is a copy of the encoder that follows it;
    else a MODEL of the command line, such as a run directory, a weights file or timm:NAME, which stays as it is."""
    attention_momentum: float = 0.996
    """ema: how slowly the copy follows (AttMask's teacher); it goes to 1 by half a cosine over the run."""

    def check(self, recipe: "Recipe") -> None:
        """A model that is there."""
        super().check(recipe)
        if not 0 <= self.attention_momentum <= 1:
            raise UserError(f"objective.attention_momentum is {self.attention_momentum}; it must be between 0 and 1")
        if self.attention_from != "ema":
            parse(self.attention_from)

    def view(self, augmentation: "Augmentation", encoder: Any) -> "CropView":
        """The augmented crop and its mask."""
        from kamim_analysis.encoders import anatomy
        from kamim_analysis.train.masks import draws_for
        from kamim_analysis.train.views import MaskedView

        body = anatomy(encoder)
        return MaskedView(augmentation, body.image_size.height, draws_for(self, body))

    def build(self, start: "Start") -> "MaskedObjective":
        """Mask token, encoder, linear head."""
        from kamim_analysis.train.masked_objective import MaskedObjective

        return MaskedObjective(start.encoder, self)
