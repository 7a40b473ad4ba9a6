"""SimMIM: predict the pixels of hidden patches with one linear layer (arXiv 2111.09886)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kamim_analysis.train.objectives._masked import Masked

if TYPE_CHECKING:
    from kamim_analysis.train.masked_objective import MaskedObjective
    from kamim_analysis.train.start import Start
    from kamim_analysis.train.views import Augmentation, View


@dataclass(frozen=True, kw_only=True)
class SimMIM(Masked):
    """Mean absolute error over hidden pixels of normalised RGB; defaults as in KAMIM's comparison."""

    def view(self, augmentation: "Augmentation", encoder: Any) -> "View":
        """The augmented crop and its mask."""
        from kamim_analysis.encoders import anatomy
        from kamim_analysis.train.views import MaskedView

        body = anatomy(encoder)
        return MaskedView(augmentation, body.image_size.height, body.mask_patch, self.mask_unit, self.mask_ratio)

    def build(self, start: "Start") -> "MaskedObjective":
        """Mask token, encoder, linear head."""
        from kamim_analysis.train.masked_objective import MaskedObjective

        return MaskedObjective(start.encoder, self.mask_unit, self.mask_ratio)
