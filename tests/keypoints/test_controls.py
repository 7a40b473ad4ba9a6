"""Controls that are no keypoints, against loops, scikit-image and what their names say."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from skimage.measure import shannon_entropy

from kamim_analysis.density import density_weights
from kamim_analysis.errors import UserError
from kamim_analysis.keypoint_maps import keypoint_map
from kamim_analysis.keypoints.edges import Edges
from kamim_analysis.keypoints.entropy import Entropy
from kamim_analysis.keypoints.random import Random
from kamim_analysis.keypoints.uniform import Uniform
from kamim_analysis.keypoints.variance import Variance

Picture = NDArray[np.uint8]


def gray_of(picture: Picture) -> Picture:
    """As OpenCV sees a picture whose red and blue are exchanged."""
    return cv2.cvtColor(np.ascontiguousarray(picture[..., ::-1]), cv2.COLOR_RGB2GRAY)


def by_cell(measure: Callable[[Picture], float], picture: Picture, cell: int) -> NDArray[np.float64]:
    gray = gray_of(picture)
    rows, columns = (side // cell for side in gray.shape)
    values = [measure(gray[y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]) for y, x in np.ndindex(rows, columns)]
    return np.array(values).reshape(rows, columns)


def slow_variance(pixels: Picture) -> float:
    levels = [int(level) for level in pixels.flat]
    mean = sum(levels) / len(levels)
    return sum((level - mean) ** 2 for level in levels) / len(levels) / 127.5**2


def slow_entropy(pixels: Picture) -> float:
    return shannon_entropy(pixels, base=2) / 8


@pytest.mark.parametrize("cell", [4, 8, 16])
@pytest.mark.parametrize(("detector", "measure"), [(Variance(), slow_variance), (Entropy(), slow_entropy)])
def test_variance_and_entropy_cell_by_cell(pictures: Any, detector: Any, measure: Any, cell: int) -> None:
    for picture in pictures[:2]:
        small = cv2.resize(picture, (48, 64))
        np.testing.assert_allclose(
            detector.density(small, "drawn", cell), by_cell(measure, small, cell), rtol=1e-6, atol=1e-7
        )


def test_the_ends_of_the_scales() -> None:
    flat = np.full((16, 16, 3), 77, np.uint8)
    halves = np.repeat(np.where(np.arange(256).reshape(16, 16) % 2, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    found = {
        name: [float(detector.density(one, "drawn", 16)[0, 0]) for one in (flat, halves, levels)]
        for name, detector in (("variance", Variance()), ("entropy", Entropy()))
    }
    assert found["variance"][:2] == [0, 1]
    np.testing.assert_allclose(found["variance"][2], (256**2 - 1) / 12 / 127.5**2, rtol=1e-6)  # of a discrete uniform
    assert found["entropy"] == [0, 1 / 8, 1]


@pytest.mark.parametrize(
    ("edges", "arguments"),
    [
        (Edges(), {"threshold1": 100, "threshold2": 200}),
        (Edges(low=30.0), {"threshold1": 30, "threshold2": 200}),
        (Edges(high=600.0), {"threshold1": 100, "threshold2": 600}),
        (Edges(aperture=5), {"threshold1": 100, "threshold2": 200, "apertureSize": 5}),
        (Edges(euclidean=True), {"threshold1": 100, "threshold2": 200, "L2gradient": True}),
    ],
)
def test_edges_are_canny_s_in_either_style(pictures: Any, edges: Edges, arguments: Any) -> None:
    small = cv2.resize(pictures[0], (96, 96))
    expected = cv2.Canny(gray_of(small), **arguments) // 255
    assert 0 < expected.sum() < expected.size / 2
    assert edges == Edges() or (expected != keypoint_map(small, Edges())).any()
    for style in ("drawn", "points"):
        np.testing.assert_array_equal(keypoint_map(small, edges, style), expected)


def test_an_edge_has_no_corners_and_all_its_pixels() -> None:
    step = np.zeros((32, 32, 3), np.uint8)
    step[:, 16:] = 255
    marked = np.argwhere(keypoint_map(step, "edges"))
    assert set(marked[:, 1]) <= {15, 16}
    assert set(marked[:, 0]) == set(range(32))
    assert not keypoint_map(step, "fast").any()


@pytest.mark.parametrize("temperature", [0.01, 0.25, 100.0])
def test_uniform_weighs_everything_exactly_1(pictures: Any, temperature: float) -> None:
    density = Uniform().density(pictures[0][:96, :64], "points", 8)
    assert density.shape == (12, 8)
    assert (density_weights(torch.from_numpy(density)[None], temperature) == 1).all()


def test_random_points_are_as_many_as_asked_for_and_the_same_for_the_same_pixels(pictures: Any) -> None:
    small = cv2.resize(pictures[0], (64, 50))
    first = keypoint_map(small, Random(share=0.03), "points")
    assert first.sum() == 96
    torch.manual_seed(1)  # whatever else is drawn
    np.random.default_rng().random()
    np.testing.assert_array_equal(keypoint_map(np.asfortranarray(small), Random(share=0.03), "points"), first)
    for other in (small[::-1], small ^ 1):
        assert (keypoint_map(other, Random(share=0.03), "points") != first).any()
    assert keypoint_map(small, Random(share=1.0), "points").all()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_of_random_points_that_cannot_be(share: float) -> None:
    with pytest.raises(UserError, match="of random points is not between 0 and 1"):
        Random(share=share)


def test_random_points_fall_anywhere_alike() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 16, 24, 3), np.uint8)
    counts = sum(keypoint_map(one, Random(share=30 / 384), "points").astype(int) for one in noise)
    # 12,000 points on 384 pixels; drawing without repetition makes the counts a little more even than chi-square
    statistic = ((counts - 31.25) ** 2 / (31.25 * (1 - 30 / 384))).sum()
    assert 0.001 < stats.chi2.sf(statistic, 383) < 0.999
