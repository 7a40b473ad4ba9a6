"""FAST corners (Rosten and Drummond, 2006): KAMIM's default."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ._detector import KeypointDetector


@dataclass(frozen=True, kw_only=True)
class FAST(KeypointDetector):
    """OpenCV's FAST. The KAMIM paper says 12 of 16 pixels; its public code takes OpenCV's default, 9 of 16."""

    threshold: int = 10
    """Least difference in gray level between the centre and the arc."""
    nonmax_suppression: bool = True
    """Keep a corner only where its score exceeds that of its eight neighbours."""
    arc: Literal["5_8", "7_12", "9_16"] = "9_16"
    """Length of the arc, of how many pixels on the circle."""

    whole_pixels: ClassVar[bool] = True

    def build(self) -> Any:
        """`cv2.FastFeatureDetector` with these parameters."""
        import cv2

        kind = getattr(cv2, f"FAST_FEATURE_DETECTOR_TYPE_{self.arc}")
        return cv2.FastFeatureDetector.create(self.threshold, self.nonmax_suppression, kind)
