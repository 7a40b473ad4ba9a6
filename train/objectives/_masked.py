"""What objectives that hide patches share: which are hidden, and what the hidden ones weigh. Imports no torch."""

import math
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
#: strategies that hide a given number of patches of every picture before any network has seen it, for encoders of
#: visible patches alone
EQUALLY_MANY = ("random", "keypoint_high", "keypoint_low", "keypoint_hint")


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
        if self.masking == "random_blocks" and (self.mask_ratio_variation or self.mask_probability != 1):
            raise UserError(
                "objective.mask_ratio_variation and objective.mask_probability have no part in masking random_blocks, "
                "which hides as many units of every picture; leave them at 0 and 1, or choose another masking"
            )
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

    def workers_work(self) -> str:
        """Keypoints of a detector that is OpenCV's alone."""
        used = self.masking.startswith("keypoint_") or self.weighs_by_keypoints
        name = type(self.detector).__name__
        return f"objective.detector {name} (FAST runs on the device)" if used and not self.detector.batched else ""

    @property
    def weighs_by_keypoints(self) -> bool:
        """Whether keypoints weight the loss."""
        return False

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
    temperature: float | Literal["auto"] = 0.25
    """T of equation 2; the lower, the more the keypoints count. auto: from the run's first pictures, so that the 95th
    percentile of their weights is target_p95_weight."""
    target_p95_weight: float = 10.0
    """temperature auto: what that percentile shall be, above 1."""
    found_temperature: float | None = None
    """temperature auto: what came out. A run writes it into its own config.yaml, and resumes with it."""

    def check(self, recipe: "Recipe") -> None:
        """A target that weights can have, and no temperature beside the one that was set."""
        super().check(recipe)
        if not 1 < self.target_p95_weight < math.inf:
            raise UserError(
                f"objective.target_p95_weight is {self.target_p95_weight}; it must be above 1, the weight of a patch "
                "without keypoints"
            )
        if self.temperature != "auto" and self.found_temperature is not None:
            raise UserError(
                f"objective.found_temperature is {self.found_temperature}, but objective.temperature is "
                f"{self.temperature}; found_temperature belongs to temperature auto, so set it to null"
            )

    @property
    def weighs_by_keypoints(self) -> bool:
        """Whether keypoints weight the loss: KAMIM's whole idea, and a setting of other objectives."""
        return bool(getattr(self, "keypoint_weights", True))

    @property
    def weight_temperature(self) -> float:
        """T as a number; of `auto`, only once the run has found it."""
        temperature = self.found_temperature if self.temperature == "auto" else self.temperature
        if temperature is None:
            raise ValueError("temperature auto is not found yet")
        return temperature
