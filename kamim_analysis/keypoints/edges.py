"""A control: pixels on edges (Canny, 1986), of which corners are few."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import UInt8
from numpy import ndarray

from ._detector import MapDetector, luminance
from ._drawing import Style


@dataclass(frozen=True, kw_only=True)
class Edges(MapDetector):
    """OpenCV's Canny. OpenCV has no default thresholds; these are the ones of its tutorial."""

    low: float = 100.0
    """Gradient from which an edge goes on."""
    high: float = 200.0
    """Gradient from which an edge begins."""
    aperture: Literal[3, 5, 7] = 3
    """Size of Sobel's derivative in pixels."""
    euclidean: bool = False
    """The gradient's length, or the sum of its two parts as by OpenCV's default."""

    def map(self, image: UInt8[ndarray, "y x 3"], style: Style) -> UInt8[ndarray, "y x"]:
        """1 on edges, in either style."""
        import cv2

        edges: ndarray = cv2.Canny(
            luminance(image), self.low, self.high, apertureSize=self.aperture, L2gradient=self.euclidean
        )
        return (edges > 0).view("uint8")
