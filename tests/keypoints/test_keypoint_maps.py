"""Keypoint maps against OpenCV's own detection on the colour picture and its own drawing, one keypoint at a time."""

import pickle
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.keypoint_maps import draw_map, find_detector, keypoint_map
from kamim_analysis.keypoints._detector import luminance
from kamim_analysis.keypoints.fast import FAST
from kamim_analysis.keypoints.orb import ORB
from kamim_analysis.keypoints.sift import SIFT

OPENCV = {"fast": cv2.FastFeatureDetector_create, "sift": cv2.SIFT_create, "orb": cv2.ORB_create}
SHAPES = [(192, 192), (97, 131), (224, 160), (64, 64)]


def resized(picture: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    return cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA)


def drawn_one_at_a_time(keypoints: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """KAMIM's public code: cv2.drawKeypoints on a blank picture, then the sign."""
    marked = np.zeros(shape[:2], np.uint8)
    for keypoint in keypoints:
        blank = np.zeros((*shape[:2], 3), np.uint8)
        marked |= np.sign(cv2.drawKeypoints(blank, [keypoint], None, color=(255, 255, 255)).sum(2)).astype(np.uint8)
    return marked


def points(keypoints: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    marked = np.zeros(shape[:2], np.uint8)
    for keypoint in keypoints:
        x, y = (round(value) for value in keypoint.pt)  # Python rounds halves to even
        marked[min(max(y, 0), shape[0] - 1), min(max(x, 0), shape[1] - 1)] = 1
    return marked


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("detector", OPENCV)
def test_drawn_map_is_opencv_s_drawing_of_each_keypoint(pictures, detector, shape):
    total = 0
    for picture in pictures:
        small = resized(picture, shape)
        keypoints = OPENCV[detector]().detect(small, None)  # RGB given to a detector that expects BGR, as KAMIM does
        total += len(keypoints)
        expected = drawn_one_at_a_time(keypoints, shape)
        np.testing.assert_array_equal(keypoint_map(small, detector), expected)
    assert total > 20 or (detector == "orb" and min(shape) < 66)  # ORB leaves a border of 31 pixels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("detector", OPENCV)
def test_points_map_marks_the_nearest_pixel_of_each_keypoint(pictures, detector, shape):
    for picture in pictures:
        small = resized(picture, shape)
        keypoints = OPENCV[detector]().detect(small, None)
        marked = keypoint_map(small, detector, "points")
        np.testing.assert_array_equal(marked, points(keypoints, shape))
        assert (marked.dtype, marked.shape) == (np.uint8, shape)
        assert marked.sum() <= len(keypoints)


@pytest.mark.parametrize("style", ["drawn", "points"])
@pytest.mark.parametrize("whole_pixels", [True, False])
def test_one_keypoint_anywhere(style, whole_pixels):
    shape = (13, 11)
    border = 3 if whole_pixels else 0  # FAST needs its circle of radius 3 inside the picture
    for y in range(border, shape[0] - border):
        for x in range(border, shape[1] - border):
            keypoints = [cv2.KeyPoint(float(x), float(y), 7.0)]
            expected = {"drawn": drawn_one_at_a_time, "points": points}[style](keypoints, shape)
            np.testing.assert_array_equal(draw_map(keypoints, shape, style, whole_pixels=whole_pixels), expected)


def test_fast_keeps_three_pixels_from_the_border():
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    marked = np.argwhere(keypoint_map(noise, FAST(threshold=1, nonmax_suppression=False, arc="5_8"), "points"))
    assert marked.min() >= 3
    assert (marked.max(0) <= np.array([36, 46])).all()


def test_keypoints_between_pixels_round_halves_to_even_and_stay_inside():
    keypoints = [cv2.KeyPoint(x, y, 3.0) for x, y in [(0.5, 1.5), (2.5, 3.5), (8.9, 9.4), (4.49, 4.51)]]
    marked = draw_map(keypoints, (10, 9), "points", whole_pixels=False)
    assert {(int(y), int(x)) for y, x in np.argwhere(marked)} == {(2, 0), (4, 2), (9, 8), (5, 4)}


def test_one_keypoint_is_drawn_as_48_pixels_at_distance_3():
    marked = draw_map([cv2.KeyPoint(10.0, 10.0, 7.0)], (21, 21), "drawn", whole_pixels=True)
    assert marked.sum() == 48
    radius = np.hypot(*(np.argwhere(marked) - 10).T)
    assert radius.min() > 1.9
    assert radius.max() < 4.5


@pytest.mark.parametrize("style", ["drawn", "points"])
@pytest.mark.parametrize("detector", OPENCV)
def test_a_blank_picture_has_an_empty_map(detector, style):
    for value in (0, 255):
        assert not keypoint_map(np.full((40, 50, 3), value, np.uint8), detector, style).any()


@pytest.mark.parametrize("shape", [(2, 3), (5, 9), (8, 8), (16, 33)])
@pytest.mark.parametrize("detector", OPENCV)
def test_tiny_pictures(detector, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected = drawn_one_at_a_time(OPENCV[detector]().detect(noise, None), shape)
    np.testing.assert_array_equal(keypoint_map(noise, detector), expected)


@pytest.mark.parametrize("detector", OPENCV)
def test_views_of_a_picture_serve_as_well_as_copies(pictures, detector):
    for view in (pictures[0][100:221, 37:160], pictures[0][::-1, ::-1], pictures[0].transpose(1, 0, 2)):
        np.testing.assert_array_equal(keypoint_map(view, detector), keypoint_map(np.ascontiguousarray(view), detector))


def test_red_has_blue_s_weight_in_luminance():
    channels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.int64)
    red, green, blue = channels[..., 0], channels[..., 1], channels[..., 2]
    # OpenCV's fixed-point 0.114, 0.587, 0.299, for blue, green and red as it supposes them
    expected = (3735 * red + 19235 * green + 9798 * blue + 2**14) >> 15
    np.testing.assert_array_equal(luminance(channels.astype(np.uint8)), expected)


def coordinates(detector: Any, picture: NDArray[np.uint8]) -> list[tuple[float, ...]]:
    return sorted((*k.pt, k.size, k.response) for k in detector.detect(picture, None))


PARAMETERS = {
    "FAST threshold": (FAST(threshold=60), lambda: cv2.FastFeatureDetector_create(threshold=60)),
    "FAST all corners": (
        FAST(nonmax_suppression=False),
        lambda: cv2.FastFeatureDetector_create(nonmaxSuppression=False),
    ),
    "FAST 5 of 8": (FAST(arc="5_8"), lambda: cv2.FastFeatureDetector_create(type=0)),
    "FAST 7 of 12": (FAST(arc="7_12"), lambda: cv2.FastFeatureDetector_create(type=1)),
    "SIFT features": (SIFT(features=7), lambda: cv2.SIFT_create(nfeatures=7)),
    "SIFT layers": (SIFT(octave_layers=5), lambda: cv2.SIFT_create(nOctaveLayers=5)),
    "SIFT contrast": (SIFT(contrast_threshold=0.1), lambda: cv2.SIFT_create(contrastThreshold=0.1)),
    "SIFT edge": (SIFT(edge_threshold=3.0), lambda: cv2.SIFT_create(edgeThreshold=3)),
    "SIFT sigma": (SIFT(sigma=2.2), lambda: cv2.SIFT_create(sigma=2.2)),
    "ORB features": (ORB(features=23), lambda: cv2.ORB_create(nfeatures=23)),
    "ORB scale": (ORB(scale_factor=1.5), lambda: cv2.ORB_create(scaleFactor=1.5)),
    "ORB levels": (ORB(levels=2), lambda: cv2.ORB_create(nlevels=2)),
    "ORB edge": (ORB(edge_threshold=70), lambda: cv2.ORB_create(edgeThreshold=70)),
    "ORB FAST threshold": (ORB(fast_threshold=80), lambda: cv2.ORB_create(fastThreshold=80)),
}


@pytest.mark.parametrize(("ours", "opencv"), PARAMETERS.values(), ids=PARAMETERS.keys())
def test_every_parameter_reaches_opencv(pictures, ours, opencv):
    small = resized(pictures[0], (192, 192))
    gray = luminance(small)
    found = coordinates(ours.build(), gray)
    assert found == coordinates(opencv(), gray)
    assert found != coordinates(type(ours)().build(), gray)
    expected = drawn_one_at_a_time(opencv().detect(small, None), small.shape)
    np.testing.assert_array_equal(keypoint_map(small, ours), expected)


def test_a_higher_threshold_finds_fewer_corners(pictures):
    counts = [keypoint_map(pictures[0], FAST(threshold=t), "points").sum() for t in (5, 10, 20, 40, 80)]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 5


@pytest.mark.parametrize("name", plugins.names("kamim_analysis.keypoints"))
def test_every_detector_travels_to_a_worker(name, pictures):
    detector = find_detector(name)
    sent = pickle.loads(pickle.dumps(detector))
    assert sent == detector
    np.testing.assert_array_equal(keypoint_map(pictures[1], sent), keypoint_map(pictures[1], detector))


@pytest.mark.parametrize("name", plugins.names("kamim_analysis.keypoints"))
def test_keypoints_of_a_detector_that_claims_whole_pixels_lie_on_them(name, pictures):
    detector = find_detector(name)
    places = [k.pt for picture in pictures for k in detector.build().detect(luminance(picture), None)]
    assert detector.whole_pixels == all(value == int(value) for place in places for value in place)


def test_an_unknown_detector_is_refused_with_those_there_are():
    with pytest.raises(
        UserError, match=r"unknown detector 'fats' \(did you mean 'fast'\?\); there are: fast, orb, sift"
    ):
        keypoint_map(np.zeros((8, 8, 3), np.uint8), "fats")
