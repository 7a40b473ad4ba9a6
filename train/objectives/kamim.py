"""KAMIM: SimMIM's loss weighted by keypoint density (arXiv 2407.13873)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kamim_analysis.keypoints._detector import Detector
from kamim_analysis.keypoints.fast import FAST
from kamim_analysis.train.objectives.simmim import SimMIM

if TYPE_CHECKING:
    from kamim_analysis.train.masked_objective import MaskedObjective
    from kamim_analysis.train.start import Start
    from kamim_analysis.train.views import Augmentation, View


@dataclass(frozen=True, kw_only=True)
class KAMIM(SimMIM):
    """Each hidden pixel's error is multiplied by the weight of its weight patch; defaults as in the paper."""

    detector: Detector = field(default_factory=FAST)
    """Keypoint detector: FAST, SIFT or ORB, with its parameters."""
    map_style: Literal["drawn", "points"] = "drawn"
    """`drawn` is what the public code does and the tables rest on; `points` is what the paper's text says."""
    weight_patch: int = 8
    """Side of a weight patch in pixels (w_ps)."""
    temperature: float = 0.25
    """T of equation 2; the lower, the more the keypoints count."""

    def view(self, augmentation: "Augmentation", encoder: Any) -> "View":
        """SimMIM's view with the keypoint density of the crop."""
        from kamim_analysis.train.views import KeypointView

        masked = super().view(augmentation, encoder)
        return KeypointView(masked, self.detector, self.map_style, self.weight_patch)

    def build(self, start: "Start") -> "MaskedObjective":
        """SimMIM's module with weights."""
        from kamim_analysis.train.masked_objective import MaskedObjective

        return MaskedObjective(start.encoder, self.mask_unit, self.mask_ratio, self.weight_patch, self.temperature)
