"""Keypoint maps against OpenCV's own detection on the colour picture and its own drawing of the keypoints."""

import pickle
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.keypoint_maps import find_detector, keypoint_map
from kamim_analysis.keypoints._detector import KeypointDetector, MapDetector, contributed, luminance
from kamim_analysis.keypoints._drawing import draw_map
from kamim_analysis.keypoints.agast import AGAST
from kamim_analysis.keypoints.akaze import AKAZE
from kamim_analysis.keypoints.brisk import BRISK
from kamim_analysis.keypoints.fast import FAST
from kamim_analysis.keypoints.gftt import GFTT
from kamim_analysis.keypoints.harris import Harris
from kamim_analysis.keypoints.orb import ORB
from kamim_analysis.keypoints.sift import SIFT


def of_opencv(name: str, **parameters: Any) -> Any:
    """OpenCV 4 has all of its detectors in one place, OpenCV 5 some of them in another."""
    kind = getattr(cv2, name) if hasattr(cv2, name) else getattr(cv2.xfeatures2d, name)
    return kind.create(**parameters)


def build_gftt(gradient: int, block: int = 3) -> Any:
    """OpenCV knows the size of the derivative only beside all others; the defaults are its own."""
    return cv2.GFTTDetector.create(1000, 0.01, 1.0, block, gradient, useHarrisDetector=False)


OPENCV = {
    "fast": cv2.FastFeatureDetector_create,
    "sift": cv2.SIFT_create,
    "orb": cv2.ORB_create,
    "agast": lambda: of_opencv("AgastFeatureDetector"),
    "brisk": lambda: of_opencv("BRISK"),
    "akaze": lambda: of_opencv("AKAZE"),
    "gftt": cv2.GFTTDetector.create,
    "harris": lambda: cv2.GFTTDetector.create(useHarrisDetector=True),
}
# pixels that a detector keeps from the border: smaller pictures have no keypoints
BORDERS = {"orb": 31, "akaze": 32}
ALL = plugins.names("kamim_analysis.keypoints")
KEYPOINTS = [name for name in ALL if isinstance(find_detector(name), KeypointDetector)]
SHAPES = [(192, 192), (97, 131), (224, 160), (64, 64)]


def resized(picture: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    return cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA)


def drawn(keypoints: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """KAMIM's public code: cv2.drawKeypoints on a blank picture, then the sign."""
    blank = np.zeros((*shape[:2], 3), np.uint8)
    return np.sign(cv2.drawKeypoints(blank, keypoints, None, color=(255, 255, 255)).sum(2)).astype(np.uint8)


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
        expected = drawn(keypoints, shape)
        np.testing.assert_array_equal(keypoint_map(small, detector), expected)
    assert total > 20 or min(shape) <= 2 * BORDERS.get(detector, 0) + 2


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
    shape = (13, 11)  # near the border, where GFTT's keypoints may lie, OpenCV draws other rings than within
    for y in range(shape[0]):
        for x in range(shape[1]):
            keypoints = [cv2.KeyPoint(float(x), float(y), 7.0)]
            expected = {"drawn": drawn, "points": points}[style](keypoints, shape)
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
    try:
        keypoints = OPENCV[detector]().detect(noise, None)
    except cv2.error:  # BRISK's, whose pyramid comes to nothing
        assert (detector, shape) in {("brisk", (2, 3)), ("brisk", (5, 9))}
        keypoints = ()
    np.testing.assert_array_equal(keypoint_map(noise, detector), drawn(keypoints, shape))


@pytest.mark.parametrize("octaves", range(6))
def test_brisk_finds_nothing_where_opencv_refuses_to_look(octaves):
    detector = BRISK(octaves=octaves, threshold=5)
    opencv = detector.build()
    for side in (1, 2, 3, 5, 6, 11, 12, 23, 24, 29, 36):
        noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
        try:
            expected = len(opencv.detect(luminance(noise), None))
        except cv2.error:
            expected = 0
        assert len(detector.keypoints(noise)) == expected
        assert side >= 30 or not expected  # as its docstring says


def test_akaze_keeps_28_5_pixels_from_the_border():
    noise = np.random.default_rng(0).integers(0, 256, (6, 192, 192, 3), np.uint8)
    places = np.array([k.pt for one in noise for k in AKAZE().keypoints(one)])
    assert 28.5 < min(places.min(), 191 - places.max()) < 29


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
    "AGAST threshold": (AGAST(threshold=60), lambda: of_opencv("AgastFeatureDetector", threshold=60)),
    "AGAST all corners": (
        AGAST(nonmax_suppression=False),
        lambda: of_opencv("AgastFeatureDetector", nonmaxSuppression=False),
    ),
    "AGAST 5 of 8": (AGAST(arc="agast_5_8"), lambda: of_opencv("AgastFeatureDetector", type=0)),
    "AGAST 7 of 12, diamond": (AGAST(arc="agast_7_12d"), lambda: of_opencv("AgastFeatureDetector", type=1)),
    "AGAST 7 of 12, square": (AGAST(arc="agast_7_12s"), lambda: of_opencv("AgastFeatureDetector", type=2)),
    "BRISK threshold": (BRISK(threshold=50), lambda: of_opencv("BRISK", thresh=50)),
    "BRISK octaves": (BRISK(octaves=1), lambda: of_opencv("BRISK", octaves=1)),
    "AKAZE threshold": (AKAZE(threshold=0.01), lambda: of_opencv("AKAZE", threshold=0.01)),
    "AKAZE octaves": (AKAZE(octaves=1), lambda: of_opencv("AKAZE", nOctaves=1)),
    "AKAZE layers": (AKAZE(octave_layers=2), lambda: of_opencv("AKAZE", nOctaveLayers=2)),
    "AKAZE diffusivity 1": (AKAZE(diffusivity="perona_malik_1"), lambda: of_opencv("AKAZE", diffusivity=0)),
    "AKAZE diffusivity 3": (AKAZE(diffusivity="weickert"), lambda: of_opencv("AKAZE", diffusivity=2)),
    "AKAZE diffusivity 4": (AKAZE(diffusivity="charbonnier"), lambda: of_opencv("AKAZE", diffusivity=3)),
    "GFTT corners": (GFTT(corners=40), lambda: cv2.GFTTDetector.create(maxCorners=40)),
    "GFTT quality": (GFTT(quality=0.2), lambda: cv2.GFTTDetector.create(qualityLevel=0.2)),
    "GFTT distance": (GFTT(distance=9.0), lambda: cv2.GFTTDetector.create(minDistance=9)),
    "GFTT block": (GFTT(block=7), lambda: cv2.GFTTDetector.create(blockSize=7)),
    "GFTT gradient": (GFTT(gradient=7), lambda: build_gftt(7)),
    "Harris corners": (Harris(corners=40), lambda: cv2.GFTTDetector.create(maxCorners=40, useHarrisDetector=True)),
    "Harris quality": (Harris(quality=0.2), lambda: cv2.GFTTDetector.create(qualityLevel=0.2, useHarrisDetector=True)),
    "Harris distance": (Harris(distance=9.0), lambda: cv2.GFTTDetector.create(minDistance=9, useHarrisDetector=True)),
    "Harris block": (Harris(block=7), lambda: cv2.GFTTDetector.create(blockSize=7, useHarrisDetector=True)),
    "Harris gradient": (
        Harris(gradient=7),
        lambda: cv2.GFTTDetector.create(1000, 0.01, 1.0, 3, 7, useHarrisDetector=True),
    ),
    "Harris k": (Harris(k=0.15), lambda: cv2.GFTTDetector.create(useHarrisDetector=True, k=0.15)),
}


@pytest.mark.parametrize(("ours", "opencv"), PARAMETERS.values(), ids=PARAMETERS.keys())
def test_every_parameter_reaches_opencv(pictures, ours, opencv):
    small = resized(pictures[0], (320, 320))  # in smaller ones AKAZE hardly looks beyond its first octave
    gray = luminance(small)
    found = coordinates(ours.build(), gray)
    assert found == coordinates(opencv(), gray)
    assert found != coordinates(type(ours)().build(), gray)
    expected = drawn(opencv().detect(small, None), small.shape)
    np.testing.assert_array_equal(keypoint_map(small, ours), expected)


def test_a_higher_threshold_finds_fewer_corners(pictures):
    counts = [keypoint_map(pictures[0], FAST(threshold=t), "points").sum() for t in (5, 10, 20, 40, 80)]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 5


@pytest.mark.parametrize("name", ALL)
def test_every_detector_travels_to_a_worker(name, pictures):
    detector = find_detector(name)
    sent = pickle.loads(pickle.dumps(detector))
    assert sent == detector
    small = resized(pictures[1], (64, 96))
    np.testing.assert_array_equal(sent.density(small, "drawn", 8), detector.density(small, "drawn", 8))


@pytest.mark.parametrize("name", KEYPOINTS)
def test_keypoints_of_a_detector_that_claims_whole_pixels_lie_on_them(name, pictures):
    detector = find_detector(name)
    places = [k.pt for picture in pictures for k in detector.keypoints(picture)]
    assert places
    assert detector.whole_pixels == all(value == int(value) for place in places for value in place)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("style", ["drawn", "points"])
def test_density_is_on_a_scale_from_0_to_1_and_of_a_map_its_share(name, style, pictures):
    detector = find_detector(name)
    for picture in pictures:
        small = resized(picture, (96, 64))
        density = detector.density(small, style, 16)
        assert (density.shape, density.dtype) == ((6, 4), np.float32)
        assert density.min() >= 0
        assert density.max() <= 1
        if isinstance(detector, MapDetector):
            marked = keypoint_map(small, name, style)
            for y, x in np.ndindex(6, 4):
                share = marked[16 * y : 16 * (y + 1), 16 * x : 16 * (x + 1)].mean()
                np.testing.assert_allclose(density[y, x], share, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_cells_that_do_not_tile_the_picture_are_refused(name, pictures):
    with pytest.raises(UserError, match="weight patch size 7 does not divide 64x96"):
        find_detector(name).density(resized(pictures[0], (64, 96)), "drawn", 7)


def test_an_unknown_detector_is_refused_with_those_there_are():
    with pytest.raises(
        UserError,
        match=r"unknown detector 'fats' \(did you mean 'fast'\?\); there are: agast, akaze, .*orb, random, sift",
    ):
        keypoint_map(np.zeros((8, 8, 3), np.uint8), "fats")


@pytest.mark.parametrize("name", sorted({*ALL} - {*KEYPOINTS, "edges"}))
def test_what_marks_no_pixels_has_no_map(name):
    with pytest.raises(
        UserError, match=rf"(?i){name} marks no pixels, so it has no map; its density\(image, style, cell\)"
    ):
        keypoint_map(np.zeros((8, 8, 3), np.uint8), name)


def test_an_opencv_without_its_contributed_modules_is_told_of():
    with pytest.raises(
        UserError, match=r"OpenCV \S+ as installed has no FREAKY; .* install opencv-contrib-python-headless"
    ):
        contributed("FREAKY")
