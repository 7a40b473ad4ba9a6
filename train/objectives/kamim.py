"""KAMIM: SimMIM's loss weighted by keypoint density (arXiv 2407.13873)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kamim_analysis.train.objectives._masked import Weighted
from kamim_analysis.train.objectives.simmim import SimMIM

if TYPE_CHECKING:
    from kamim_analysis.train.masked_objective import MaskedObjective
    from kamim_analysis.train.start import Start
    from kamim_analysis.train.views import Augmentation, CropView


@dataclass(frozen=True, kw_only=True)
class KAMIM(Weighted, SimMIM):
    """Each hidden pixel's error is multiplied by the weight of its weight patch; defaults as in the paper."""

    def view(self, augmentation: "Augmentation", encoder: Any) -> "CropView":
        """SimMIM's view with the keypoint density of the crop."""
        from kamim_analysis.train.views import KeypointView

        masked = super().view(augmentation, encoder)
        return KeypointView(masked, self.detector, self.map_style, self.weight_patch)

    def build(self, start: "Start") -> "MaskedObjective":
        """SimMIM's module with weights."""
        from kamim_analysis.train.masked_objective import MaskedObjective

        return MaskedObjective(start.encoder, self, self.weight_patch, self.weight_temperature)
