"""Harris corners (Harris and Stephens, 1988)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ._detector import KeypointDetector


@dataclass(frozen=True, kw_only=True)
class Harris(KeypointDetector):
    """OpenCV's GFTT by Harris's measure, det - k trace^2 of the structure tensor, with OpenCV's defaults.

    That is OpenCV's way from the measure to keypoints; `cv2.cornerHarris` gives the measure of each pixel alone. The
    threshold is relative, as GFTT's.
    """

    corners: int = 1000
    """Keep at most this many of the strongest corners."""
    quality: float = 0.01
    """Least measure of a corner, as a share of that of the picture's strongest."""
    distance: float = 1.0
    """Least distance between two corners in pixels."""
    block: int = 3
    """Side of the window in pixels over which gradients are summed."""
    gradient: int = 3
    """Size of Sobel's derivative in pixels."""
    k: float = 0.04
    """How much edges are held against a corner."""

    whole_pixels: ClassVar[bool] = True

    def build(self) -> Any:
        """`cv2.GFTTDetector` with Harris's measure and these parameters."""
        import cv2

        return cv2.GFTTDetector.create(
            self.corners, self.quality, self.distance, self.block, self.gradient, useHarrisDetector=True, k=self.k
        )
