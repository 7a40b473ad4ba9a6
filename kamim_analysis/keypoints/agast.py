"""AGAST corners (Mair et al., 2010): FAST's test of a circle of pixels, by decision trees that suit any picture."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ._detector import KeypointDetector, contributed

_ARCS = ("agast_5_8", "agast_7_12d", "agast_7_12s", "oast_9_16")


@dataclass(frozen=True, kw_only=True)
class AGAST(KeypointDetector):
    """OpenCV's AGAST with OpenCV's defaults. It leaves a border of three pixels."""

    threshold: int = 10
    """Least difference in gray level between the centre and the arc."""
    nonmax_suppression: bool = True
    """Keep a corner only where its score exceeds those around it."""
    arc: Literal["agast_5_8", "agast_7_12d", "agast_7_12s", "oast_9_16"] = "oast_9_16"
    """Length of the arc, of how many pixels on the circle (7_12: d is a diamond, s a square)."""

    whole_pixels: ClassVar[bool] = True

    def build(self) -> Any:
        """`cv2.AgastFeatureDetector` with these parameters; the order of the arcs is that of OpenCV's numbers."""
        detector = contributed("AgastFeatureDetector")
        return detector.create(self.threshold, self.nonmax_suppression, _ARCS.index(self.arc))
