"""Keypoint maps: 1 where a keypoint lies, or where its drawing does; 0 elsewhere."""

from functools import lru_cache

from jaxtyping import UInt8
from numpy import ndarray

from . import plugins
from .errors import UserError
from .keypoints._detector import Detector, MapDetector
from .keypoints._drawing import Style


def keypoint_map(
    image: UInt8[ndarray, "y x 3"], detector: str | Detector = "fast", style: Style = "drawn"
) -> UInt8[ndarray, "y x"]:
    """The keypoint map F of an RGB picture: uint8 [H, W, 3] -> uint8 0/1 [H, W].

    `points` sets the pixel of each keypoint, as the KAMIM paper says (arXiv 2407.13873, section 3.2); one between
    pixels is rounded to the nearest. `drawn` sets every pixel of the ring that `cv2.drawKeypoints` draws for it, as
    KAMIM's public code does, which produced the paper's tables; at the same temperature the two differ thirty-fold
    in effect. Bit-identical with OpenCV's drawing. Of `edges`, the pixels on edges in either style.

    Raises UserError for an unknown detector, and for `variance`, `entropy` and `uniform`, which mark no pixels.

    >>> import numpy as np
    >>> int(keypoint_map(np.zeros((32, 32, 3), np.uint8)).sum())
    0
    """
    if isinstance(detector, str):
        detector = find_detector(detector)
    if not isinstance(detector, MapDetector):
        raise UserError(
            f"{type(detector).__name__} marks no pixels, so it has no map; "
            "its density(image, style, cell) gives that of each cell"
        )
    return detector.map(image, style)


@lru_cache(maxsize=32)
def find_detector(name: str) -> Detector:
    """The detector of this name with its default parameters, e.g. "fast". Raises UserError for an unknown one."""
    module = plugins.load("kamim_analysis.keypoints", name, "detector")
    (kind,) = (
        value for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Detector) and value.__module__ == module.__name__
    )  # fmt: skip
    detector: Detector = kind()
    return detector
