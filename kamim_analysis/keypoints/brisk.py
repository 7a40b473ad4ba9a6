"""BRISK keypoints (Leutenegger et al., 2011): AGAST corners that are maxima over a pyramid of scales too."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from ._detector import KeypointDetector, contributed
from ._drawing import Keypoints


@dataclass(frozen=True, kw_only=True)
class BRISK(KeypointDetector):
    """OpenCV's BRISK with OpenCV's defaults.

    Keypoints need room around them that grows with their scale: pictures below 30 px have none, and those of 64 px half
    as many for their area as those of 192 px, or fewer.
    """

    threshold: int = 30
    """Threshold of the AGAST detector inside."""
    octaves: int = 3
    """Octaves of the pyramid; 0 looks at a single scale."""

    def build(self) -> Any:
        """`cv2.BRISK` with these parameters."""
        return contributed("BRISK").create(self.threshold, self.octaves)

    def keypoints(self, image: UInt8[ndarray, "y x 3"]) -> Keypoints:
        """OpenCV's; none in a picture of which no pixel would be left at the top of the pyramid, which it refuses."""
        # the last octave's intermediate layer is smaller by 1.5 times 2^(octaves - 1)
        if min(image.shape[:2]) < 1.5 * 2 ** max(self.octaves - 1, 1):
            return ()
        return super().keypoints(image)
