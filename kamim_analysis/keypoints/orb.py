"""ORB keypoints (Rublee et al., 2011): FAST corners over an image pyramid, ranked by Harris's measure."""

from dataclasses import dataclass
from typing import Any

from ._detector import KeypointDetector


@dataclass(frozen=True, kw_only=True)
class ORB(KeypointDetector):
    """OpenCV's ORB with OpenCV's defaults, as in KAMIM's public code."""

    features: int = 500
    """Keep at most this many keypoints."""
    scale_factor: float = 1.2
    """Ratio of the sizes of neighbouring levels of the pyramid."""
    levels: int = 8
    """Levels of the pyramid."""
    edge_threshold: int = 31
    """Width in pixels of the border without keypoints: a picture of 62 px or less has none with the default."""
    fast_threshold: int = 20
    """Threshold of the FAST detector inside."""

    def build(self) -> Any:
        """`cv2.ORB` with these parameters."""
        import cv2

        return cv2.ORB.create(
            nfeatures=self.features,
            scaleFactor=self.scale_factor,
            nlevels=self.levels,
            edgeThreshold=self.edge_threshold,
            fastThreshold=self.fast_threshold,
        )
