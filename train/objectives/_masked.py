"""What objectives that hide patches share: which are hidden, and what the hidden ones weigh. Imports no torch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.keypoints._detector import Detector
from kamim_analysis.keypoints.fast import FAST
from kamim_analysis.train.objectives._objective import Objective

if TYPE_CHECKING:
    from kamim_analysis.masking._masking import Amount, Masking
    from kamim_analysis.train.recipe import Recipe

_MASKING = "kamim_analysis.masking"


@dataclass(frozen=True, kw_only=True)
class Masked(Objective):
    """Which patches are hidden."""

    masking: str = "random_blocks"
    """A file of kamim_analysis/masking: random_blocks (SimMIM's square units), random, block (BEiT's), attmask_high,
    attmask_low, attmask_hint, or keypoint_high, keypoint_low, keypoint_hint, which rank patches by keypoint density."""
    mask_unit: int = 32
    """random_blocks: side of the square units that are hidden, in pixels."""
    mask_ratio: float = 0.6
    """Share of the patches (random_blocks: of the units, their number rounded up) that are hidden."""
    mask_ratio_variation: float = 0.0
    """The share is drawn for each picture from mask_ratio less to mask_ratio plus this; not random_blocks."""
    mask_probability: float = 1.0
    """Chance that a picture is masked at all; not random_blocks."""
    show_max: float = 0.1
    """attmask_hint, keypoint_hint: share of the patches, those that rank highest, among which some are revealed."""
    detector: Detector = field(default_factory=FAST)
    """Keypoint detector with its parameters, where keypoints rank patches or weight the loss."""
    map_style: Literal["drawn", "points"] = "drawn"
    """`drawn` is what the public code does and the tables rest on; `points` is what the paper's text says."""

    def check(self, recipe: "Recipe") -> None:
        """A strategy that there is, and shares in their ranges."""
        super().check(recipe)
        plugins.check(self.masking, plugins.names(_MASKING), "masking strategy")
        for name, value in (("mask_ratio_variation", self.mask_ratio_variation), ("show_max", self.show_max)):
            if not 0 <= value <= 1:
                raise UserError(f"objective.{name} is {value}; it must be between 0 and 1")
        if not 0 < self.mask_probability <= 1:
            raise UserError(f"objective.mask_probability is {self.mask_probability}; it must be above 0 and at most 1")
        low, high = self.mask_ratio - self.mask_ratio_variation, self.mask_ratio + self.mask_ratio_variation
        if low < 0 or high > 1:
            raise UserError(
                f"objective.mask_ratio {self.mask_ratio} varies from {low:g} to {high:g}, not within 0 to 1"
            )

    def strategy(self) -> "Masking":
        """The strategy of this name."""
        chosen: Any = plugins.load(_MASKING, self.masking, "masking strategy")
        masking: Masking = chosen.MASKING
        return masking

    def amount(self) -> "Amount":
        """How much is hidden."""
        from kamim_analysis.masking._masking import Amount

        return Amount(
            ratio=self.mask_ratio,
            variation=self.mask_ratio_variation,
            probability=self.mask_probability,
            unit=self.mask_unit,
            show_max=self.show_max,
        )


@dataclass(frozen=True, kw_only=True)
class Weighted(Masked):
    """What hidden patches weigh: KAMIM's weights (arXiv 2407.13873, section 3.2)."""

    weight_patch: int = 8
    """Side of a weight patch in pixels (w_ps)."""
    temperature: float = 0.25
    """T of equation 2; the lower, the more the keypoints count."""
