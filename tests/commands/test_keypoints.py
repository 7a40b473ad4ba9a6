"""`kamim keypoints`: figures of pictures, and what detectors cost."""

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from kamim_analysis import plugins
from kamim_analysis.cli import main
from kamim_analysis.data import open_pictures
from kamim_analysis.keypoint_survey import choices, survey, weight_statistics
from kamim_analysis.photographs import paths
from kamim_analysis.train.samples import first_crops

Refused = Callable[..., str]
EVERY = plugins.names("kamim_analysis.keypoints")


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """Of 96 x 130 pixels, so that the square in its middle needs no resizing to 96."""
    chosen = next(path for path in paths() if path.stem == "coffee")
    assert cv2.imwrite(str(tmp_path / "coffee.png"), cv2.imread(str(chosen))[200:296, 100:230])
    return tmp_path / "coffee.png"


def fast_weights(path: Path, style: str, weight_patch: int, temperature: float) -> NDArray[np.float64]:
    """Equations 1 and 2 in a loop, from OpenCV's keypoints on the square middle of the photograph."""
    square = np.ascontiguousarray(cv2.imread(str(path))[:, 17:113, ::-1])
    found = cv2.FastFeatureDetector_create().detect(square, None)
    assert len(found) > 20
    marked = np.zeros((96, 96), np.uint8)
    if style == "drawn":
        marked = np.sign(cv2.drawKeypoints(marked, found, None, color=(255, 255, 255)).sum(2))
    else:
        for keypoint in found:
            marked[int(keypoint.pt[1]), int(keypoint.pt[0])] = 1
    cells = 96 // weight_patch
    density = np.array([np.mean(part) for row in np.split(marked, cells) for part in np.split(row, cells, axis=1)])
    return np.exp(density / temperature) / np.exp(density.min() / temperature)


def test_figures_with_numbers_and_caption(photograph: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["keypoints", str(photograph), "--detector", "fast,variance", "--image_size", "96", "--weight_patch", "8,16",
          "--temperature", "0.25,1", "--out", str(out)])  # fmt: skip
    assert {path.name for path in out.iterdir()} == {
        "keypoints.csv",
        *(f"coffee.{s}" for s in "png pdf csv txt".split()),
    }
    table = pd.read_csv(out / "keypoints.csv", keep_default_na=False)
    assert len(table) == (2 + 1) * 2 * 2  # variance knows no styles
    assert table.to_csv() == pd.read_csv(out / "coffee.csv", keep_default_na=False).to_csv()
    for row in table[table.detector == "fast"].itertuples():
        weights = np.sort(fast_weights(photograph, str(row.style), int(row.weight_patch), float(row.temperature)))
        np.testing.assert_allclose(row.mean, weights.mean(), rtol=1e-5)
        np.testing.assert_allclose(row.max, weights[-1], rtol=1e-5)
        np.testing.assert_allclose(row.share_at_1, (weights == 1).mean(), rtol=1e-5)
    caption = (out / "coffee.txt").read_text()
    assert caption.startswith("Keypoints and KAMIM's weights of coffee.png, 96 px. Columns: the picture as")
    assert caption.count("\n") == 1


def test_every_detector_is_drawn(photograph: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["keypoints", str(photograph), "--detector", "all", "--temperature", "0.25", "--image_size", "32",
          "--map_style", "points", "--style", "notebook", "--out", str(out)])  # fmt: skip
    assert set(pd.read_csv(out / "keypoints.csv").detector) == set(EVERY)
    with Image.open(out / "coffee.png") as figure:
        assert figure.width == 8.5 * 120


def test_pictures_of_a_directory_that_are_called_alike(pictures: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "some", tmp_path / "out"
    for place in ("red", "green"):
        (folder / place).mkdir(parents=True)
        (folder / place / "0.png").write_bytes((pictures / place / "0.png").read_bytes())
    arguments = ["keypoints", str(folder), "--detector", "uniform", "--image_size", "16", "--out", str(out)]
    main(arguments)
    assert list(pd.read_csv(out / "keypoints.csv").picture.unique()) == ["green/0.png", "red/0.png"]
    assert {path.name for path in out.glob("*.png")} == {"0.png", "0_2.png"}
    main([*arguments, "--overwrite", "--temperature", "0.5"])
    assert set(pd.read_csv(out / "keypoints.csv").temperature) == {0.5}


def test_cost_as_text_with_tabs(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["keypoints", "--cost", str(pictures), "--images", "5", "--detector", "fast,uniform", "--image_size", "48",
          "--weight_patch", "8,16", "--temperature", "0.1,0.5", "--seed", "3"])  # fmt: skip
    table = pd.read_csv(io.StringIO(capsys.readouterr().out), sep="\t")
    assert len(table) == (2 + 1) * 2 * 2
    crops = first_crops(open_pictures(str(pictures), "train"), 5, 48, seed=3)
    (fast,) = choices(["fast"], ["points"])
    expected = pd.DataFrame(survey(crops, fast, weight_patches=[8, 16], temperatures=[0.1, 0.5], target_p95=10.0))
    found = table[(table.detector == "fast") & (table["style"] == "points")].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        found.drop(columns="milliseconds"), expected.drop(columns="milliseconds"), rtol=1e-5, check_dtype=False
    )
    uniform = table[table.detector == "uniform"]
    assert (uniform[["mean", "median", "p95", "max", "share_at_1"]] == 1).all(axis=None)
    assert uniform["temperature_for_p95"].isna().all()
    assert (table.milliseconds > 0).all()


def test_the_temperature_told_gives_the_target(pictures: Path) -> None:
    crops = first_crops(open_pictures("photographs", "train"), 6, 64, seed=0)
    (choice,) = choices(["fast"], ["drawn"])
    numbers = {"weight_patches": [8], "target_p95": 20.0}
    (first,) = survey(crops, choice, temperatures=[0.25], **numbers)
    (again,) = survey(crops, choice, temperatures=[first["temperature_for_p95"]], **numbers)
    np.testing.assert_allclose(again["p95"], 20, rtol=1e-5)
    assert abs(first["p95"] - 20) > 1


def test_the_distribution_of_a_hundred_known_weights() -> None:
    import torch

    weights = torch.arange(1.0, 101.0).reshape(4, 5, 5)
    assert weight_statistics(weights) == {"mean": 50.5, "median": 50.0, "p95": 95.0, "max": 100.0, "share_at_1": 0.01}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give pictures to be drawn"),
        (["{picture}", "--cost", "photographs"], "give pictures to be drawn"),
        (["{picture}"], "give --out DIR, for figures"),
        (["--cost", "photographs", "--out", "{out}"], "--cost prints, and takes no --out"),
        (["{picture}", "--detector", "fats", "--out", "{out}"], "unknown detector 'fats' (did you mean 'fast'?)"),
        (["{picture}", "--weight_patch", "7", "--out", "{out}"], "--weight_patch 7 does not divide --image_size 192"),
        (["{picture}", "--temperature", "0", "--out", "{out}"], "'0' is not numbers above 0"),
        (["--cost", "photographs", "--target_p95_weight", "1"], "'1' is not a number above 1"),
        (["nowhere.png", "--out", "{out}"], "no picture at 'nowhere.png'"),
        (["{text}", "--out", "{out}"], "cannot read picture"),
        (["{empty}", "--out", "{out}"], "holds no images"),
        (["--cost", "nowhere"], "no data at 'nowhere'"),
        (["{picture}", "--out", "{full}"], "holds other files"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, refused: Refused, photograph: Path, tmp_path: Path
) -> None:
    places = {name: tmp_path / name for name in ("out", "empty", "full")}
    places["empty"].mkdir()
    places["full"].mkdir()
    (places["full"] / "mine.txt").write_text("keep")
    (tmp_path / "text.png").write_text("no picture")
    places |= {"picture": photograph, "text": tmp_path / "text.png"}
    given = [argument.format(**places) for argument in arguments]
    assert message in refused("keypoints", *given)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in places["full"].iterdir()] == ["mine.txt"]
