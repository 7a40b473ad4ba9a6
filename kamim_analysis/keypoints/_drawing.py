"""Keypoints as pixels of a map: the pixel of each, or the ring that OpenCV draws for it."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

Style = Literal["drawn", "points"]
# cv2.KeyPoint objects; OpenCV ships no type for what its detectors return
Keypoints = Sequence[Any]
# nearer to the border than this, OpenCV draws some pixels of a ring otherwise than within
_RING_RADIUS = 3


def draw_map(
    keypoints: Keypoints, shape: tuple[int, ...], style: Style, *, whole_pixels: bool
) -> UInt8[ndarray, "y x"]:
    """The map, 0 or 1, of OpenCV keypoints on an image of `shape` (H, W).

    `whole_pixels`: whether all of them lie on whole pixels, so that dilation gives their rings; bit for bit those of
    `cv2.drawKeypoints`, at a fraction of the time.
    """
    if style == "points":
        return _point_map(coordinates(keypoints), shape)
    if not whole_pixels:
        return _drawn(keypoints, shape)
    import cv2

    places = coordinates(keypoints)
    far: ndarray = (places >= _RING_RADIUS) & (places < np.array(shape[::-1]) - _RING_RADIUS)
    inner: ndarray = np.all(far, axis=1)
    rings: ndarray = cv2.dilate(_point_map(places[inner], shape), _ring())
    if not inner.all():
        rings |= _drawn([keypoints[int(i)] for i in np.flatnonzero(~inner)], shape)
    return rings


def coordinates(keypoints: Keypoints) -> Float32[ndarray, "k 2"]:
    """Column and row of each keypoint in pixels, 0 the middle of the first."""
    import cv2

    places: ndarray = np.zeros((0, 2), np.float32)
    if keypoints:
        places = np.asarray(cv2.KeyPoint.convert(keypoints))
    return places


def _point_map(places: Float32[ndarray, "k 2"], shape: tuple[int, ...]) -> UInt8[ndarray, "y x"]:
    points = np.zeros(shape, np.uint8)
    # rint rounds halves to even, as OpenCV's own rounding of coordinates does
    nearest = np.rint(places).astype(np.intp)
    np.minimum(nearest, (shape[1] - 1, shape[0] - 1), out=nearest)
    points[nearest[:, 1], nearest[:, 0]] = 1
    return points


def _drawn(keypoints: Keypoints, shape: tuple[int, ...]) -> UInt8[ndarray, "y x"]:
    import cv2

    drawing: ndarray = cv2.drawKeypoints(np.zeros(shape, np.uint8), keypoints, None, color=(255, 255, 255))
    # white is the same in all three channels
    return (drawing[..., 0] > 0).view(np.uint8)


@lru_cache(maxsize=1)
def _ring() -> UInt8[ndarray, "9 9"]:
    """The pixels that drawing one keypoint sets: an anti-aliased circle of radius 3, taken from OpenCV itself."""
    import cv2

    return _drawn([cv2.KeyPoint(4.0, 4.0, 7.0)], (9, 9))


@lru_cache(maxsize=1)
def ring_rows() -> tuple[tuple[int, ...], ...]:
    """Of each row of a drawn ring's 9 x 9 pixels, the columns that it sets."""
    return tuple(tuple(int(column) for column in np.flatnonzero(row)) for row in _ring())
