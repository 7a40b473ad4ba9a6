"""What a keypoint detector offers, and the drawing of its keypoints."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

# cv2.KeyPoint objects; OpenCV ships no type for what its detectors return
Keypoints = Any


@dataclass(frozen=True, kw_only=True)
class Detector(ABC):
    """A keypoint detector of OpenCV with its parameters.

    Calling `build()` makes OpenCV's object, which cannot be pickled: a data worker makes its own, once.
    """

    #: whether keypoints lie on whole pixels, so that their drawing can be had by dilation
    whole_pixels: ClassVar[bool] = False

    @abstractmethod
    def build(self) -> Any:
        """OpenCV's detector; has `detect(image, mask)`."""


def luminance(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """OpenCV's gray of an RGB image [H, W, 3] as KAMIM's public code sees it.

    It hands RGB to a detector that expects BGR, so red gets blue's weight (0.114) and blue gets red's (0.299).
    The papers' tables were made with this, so we keep it.
    """
    import cv2

    gray: NDArray[np.uint8] = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return gray
