"""A control: points at random, which are as uneven as keypoints but do not depend on what the picture shows."""

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from ..errors import UserError
from ._detector import KeypointDetector
from ._drawing import Keypoints


@dataclass(frozen=True, kw_only=True)
class Random(KeypointDetector):
    """Points drawn evenly over the pixels of a picture, none twice.

    The draw is seeded by the crop's own pixels, so that one crop has the same points wherever it is asked for them, in
    mask and weights alike, and the crops and masks of a run are those of every other detector.
    """

    share: float = 0.015
    """Of the pixels, from 0 to 1, that are points. FAST finds about 0.01 in photographs of 192 px, and 0.025 of 64."""

    whole_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"share {self.share} of random points is not between 0 and 1")

    def build(self) -> Any:
        """Draws as OpenCV's detectors detect."""
        return _Draw(self.share)


@dataclass(frozen=True)
class _Draw:
    share: float

    def detect(self, gray: UInt8[ndarray, "y x"], _mask: None) -> Keypoints:
        import cv2

        drawn = np.random.default_rng(zlib.crc32(gray.tobytes()))
        places = drawn.permutation(gray.size)[: round(self.share * gray.size)]
        rows, columns = np.unravel_index(places, gray.shape)
        # OpenCV's size of a FAST corner, which no drawing depends on
        return [cv2.KeyPoint(float(x), float(y), 7.0) for x, y in zip(columns, rows, strict=True)]
