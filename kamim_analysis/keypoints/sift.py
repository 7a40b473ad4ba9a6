"""SIFT keypoints (Lowe, 2004)."""

from dataclasses import dataclass
from typing import Any

from ._detector import KeypointDetector


@dataclass(frozen=True, kw_only=True)
class SIFT(KeypointDetector):
    """OpenCV's SIFT with OpenCV's defaults, as in KAMIM's public code."""

    features: int = 0
    """Keep this many of the strongest keypoints; 0 keeps all."""
    octave_layers: int = 3
    """Layers of each octave of the scale space."""
    contrast_threshold: float = 0.04
    """Weaker extrema are dropped."""
    edge_threshold: float = 10.0
    """Extrema whose ratio of principal curvatures exceeds this are dropped."""
    sigma: float = 1.6
    """Blur of the first octave, in pixels."""

    def build(self) -> Any:
        """`cv2.SIFT` with these parameters."""
        import cv2

        return cv2.SIFT.create(
            self.features, self.octave_layers, self.contrast_threshold, self.edge_threshold, self.sigma
        )
