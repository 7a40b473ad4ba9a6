"""FAST in tensor operations against OpenCV, bit for bit: photographs, noise, edges, and what hypothesis finds.

OpenCV's side is the path that data workers take, which other tests compare with OpenCV's detection and drawing.
"""

import subprocess
import sys
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kamim_analysis import photographs, plugins
from kamim_analysis.decode import read_rgb
from kamim_analysis.errors import UserError
from kamim_analysis.keypoint_maps import find_detector
from kamim_analysis.keypoints._batched import Arc, corner_maps
from kamim_analysis.keypoints._detector import luminance
from kamim_analysis.keypoints.fast import FAST

Style = Literal["drawn", "points"]
ARCS: tuple[Arc, ...] = ("5_8", "7_12", "9_16")
STYLES: tuple[Style, ...] = ("drawn", "points")
#: prints how many pixels the photographs' maps mark, after both ways agreed on each
COMPILED = """
import cv2, numpy as np, torch
from kamim_analysis import photographs
from kamim_analysis.decode import read_rgb
from kamim_analysis.keypoints._batched import corner_maps
from kamim_analysis.keypoints.fast import FAST
pictures = [cv2.resize(read_rgb(path), (56, 40)) for path in photographs.paths()]
images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
settings = dict(threshold=10, nonmax_suppression=True, arc="9_16", style="drawn")
found = corner_maps(images, **settings, compiled=True).numpy()
assert (found == [FAST().map(picture, "drawn") > 0 for picture in pictures]).all()
print(found.sum())
"""
SIZES = [(192, 192), (97, 131), (64, 50), (8, 33), (7, 7)]


def photographs_of(shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of every bundled photograph, resized."""
    pictures = [read_rgb(path) for path in photographs.paths()]
    crops = [picture[picture.shape[0] // 4 :, picture.shape[1] // 5 :] for picture in pictures]
    return np.stack([cv2.resize(crop, shape[::-1], interpolation=cv2.INTER_AREA) for crop in crops])


def on_device(pictures: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def batched(pictures: NDArray[np.uint8], detector: FAST, style: Style) -> NDArray[np.bool_]:
    return corner_maps(
        on_device(pictures),
        threshold=detector.threshold,
        nonmax_suppression=detector.nonmax_suppression,
        arc=detector.arc,
        style=style,
    ).numpy()


def one_by_one(pictures: NDArray[np.uint8], detector: FAST, style: Style) -> NDArray[np.bool_]:
    return np.stack([detector.map(picture, style) for picture in pictures]) > 0


@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("nonmax", [True, False])
@pytest.mark.parametrize("arc", ARCS)
def test_photographs(shape: tuple[int, int], style: Style, nonmax: bool, arc: Arc) -> None:
    detector = FAST(nonmax_suppression=nonmax, arc=arc)
    pictures = photographs_of(shape)
    expected = one_by_one(pictures, detector, style)
    np.testing.assert_array_equal(batched(pictures, detector, style), expected)
    assert expected.sum() > 100 or min(shape) < 50


@pytest.mark.parametrize("arc", ARCS)
def test_every_threshold(arc: Arc) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    pictures = np.concatenate([photographs_of((40, 40))[:3], noise])
    found = []
    for threshold in [*range(101), 127, 128, 200, 254, 255]:
        for nonmax in (True, False):
            detector = FAST(threshold=threshold, nonmax_suppression=nonmax, arc=arc)
            expected = one_by_one(pictures, detector, "points")
            np.testing.assert_array_equal(batched(pictures, detector, "points"), expected)
            found.append(expected.sum())
    assert len(set(found)) > 20
    assert found[-1] == 0


def steps(shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Squares, stripes and lone pixels of the strongest contrast, where scores tie and bytes are at their ends."""
    rows, columns = np.indices(shape)
    patterns = [
        (rows // 5 + columns // 5) % 2,
        columns >= 8,
        (rows >= 9) & (columns >= 9),
        (rows % 8 == 4) & (columns % 8 == 4),
        rows == columns,
    ]
    on = np.stack([*patterns, *(1 - np.asarray(pattern, int) for pattern in patterns)]).astype(np.uint8)
    return np.repeat(255 * on[..., None], 3, axis=3)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("nonmax", [True, False])
@pytest.mark.parametrize("arc", ARCS)
def test_edges_and_ties(style: Style, nonmax: bool, arc: Arc) -> None:
    pictures = steps((33, 30))
    for threshold in (0, 10, 254):
        detector = FAST(threshold=threshold, nonmax_suppression=nonmax, arc=arc)
        expected = one_by_one(pictures, detector, style)
        np.testing.assert_array_equal(batched(pictures, detector, style), expected)
        assert expected.any()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    # few gray levels make many ties of scores
    levels=st.sampled_from([2, 3, 8, 256]),
    threshold=st.integers(0, 255),
    nonmax=st.booleans(),
    arc=st.sampled_from(ARCS),
    style=st.sampled_from(STYLES),
)
def test_random_pictures(
    seed: int, shape: tuple[int, int], levels: int, threshold: int, nonmax: bool, arc: Arc, style: Style
) -> None:
    drawn = np.random.default_rng(seed).integers(0, levels, (3, *shape, 3))
    pictures = (drawn * (255 // (levels - 1))).astype(np.uint8)
    # of two levels hardly an arc is whole: let some rows be one colour
    pictures[:, :, shape[1] // 3 : shape[1] // 2] = pictures[:, :1, :1]
    detector = FAST(threshold=threshold, nonmax_suppression=nonmax, arc=arc)
    np.testing.assert_array_equal(batched(pictures, detector, style), one_by_one(pictures, detector, style))


def test_pictures_too_small_for_a_circle_and_of_one_colour_have_no_corners() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 30, 30, 3), np.uint8)
    for pictures in (noise[:, :6], noise[:, :, :2], noise[:, :5, :5], np.full_like(noise, 255), np.zeros_like(noise)):
        found = batched(pictures, FAST(threshold=0, nonmax_suppression=False), "drawn")
        assert found.shape == pictures.shape[:3]
        assert not found.any()


@pytest.mark.parametrize("cell", [3, 8, 16])
@pytest.mark.parametrize("style", STYLES)
def test_densities_are_those_of_each_picture(style: Style, cell: int) -> None:
    pictures, detector = photographs_of((96, 144)), FAST(threshold=7)
    found = detector.densities(on_device(pictures), style, cell)
    assert found.dtype == torch.float32
    assert found.any()
    expected = np.stack([detector.density(picture, style, cell) for picture in pictures])
    np.testing.assert_array_equal(found.numpy(), expected)


def test_cells_that_do_not_tile_the_pictures_are_refused() -> None:
    with pytest.raises(UserError, match="weight patch size 7 does not divide 96x96"):
        FAST().densities(torch.zeros(1, 3, 96, 96, dtype=torch.uint8), "drawn", 7)


@pytest.mark.parametrize("threshold", [-1, 256])
def test_thresholds_that_bytes_cannot_have_are_refused(threshold: int) -> None:
    with pytest.raises(UserError, match=rf"FAST threshold of {threshold} gray levels.* from 0 to 255"):
        FAST(threshold=threshold).densities(torch.zeros(1, 3, 96, 96, dtype=torch.uint8), "drawn", 8)


@pytest.mark.parametrize("name", plugins.names("kamim_analysis.keypoints"))
def test_all_other_detectors_say_that_they_are_for_data_workers(name: str) -> None:
    detector: Any = find_detector(name)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    if detector.batched:
        assert detector.densities(images, "drawn", 8).shape == (2, 4, 4)
        return
    with pytest.raises(UserError, match=rf"(?i){name} cannot .* FAST alone .* set data.device_augment false"):
        detector.densities(images, "drawn", 8)


def test_fast_can_be_had_on_the_device() -> None:
    assert FAST.batched


def test_its_gray_is_opencv_s() -> None:
    from kamim_analysis.keypoints._batched import luminances

    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    pictures[1, :2, :2] = 255
    np.testing.assert_array_equal(luminances(on_device(pictures)).numpy(), np.stack([*map(luminance, pictures)]))


def test_compiled_it_gives_the_same_bits() -> None:
    # in a process of its own: what checks shapes while tests run does not go through torch.compile
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 100
