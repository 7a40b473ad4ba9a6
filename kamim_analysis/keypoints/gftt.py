"""Good features to track (Shi and Tomasi, 1994): corners by the lesser eigenvalue of the structure tensor."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ._detector import KeypointDetector


@dataclass(frozen=True, kw_only=True)
class GFTT(KeypointDetector):
    """OpenCV's GFTT with OpenCV's defaults. Its threshold is relative: a faint picture has as many corners as any."""

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

    whole_pixels: ClassVar[bool] = True

    def build(self) -> Any:
        """`cv2.GFTTDetector` with these parameters."""
        import cv2

        # without the last, OpenCV takes the fifth number for it
        return cv2.GFTTDetector.create(
            self.corners, self.quality, self.distance, self.block, self.gradient, useHarrisDetector=False
        )
