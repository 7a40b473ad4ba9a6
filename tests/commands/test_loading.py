"""`kamim loading`: its table adds up and follows the recipe, and mistakes are one line; the GPU benchmark, tried."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kamim_analysis.commands.loading import run
from kamim_analysis.errors import UserError
from kamim_analysis.keypoints.fast import FAST
from kamim_analysis.train.masks import MaskDraws

SIZES = "--encoder.name vit_tiny --images 20 --workers 0".split()
BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
Table = dict[str, dict[str, float]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Twenty-four JPEGs of noise in two folders."""
    draw = np.random.default_rng(0)
    for i in range(24):
        folder = tmp_path / "tree" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (120, 160, 3), dtype=np.uint8)).save(folder / f"{i}.jpg", quality=90)
    return tmp_path / "tree"


@pytest.fixture
def table(capsys: pytest.CaptureFixture[str]) -> Callable[..., Table]:
    """What the command prints, by stage and column."""

    def read(*arguments: str) -> Table:
        run([*arguments, *SIZES])
        titles, *rows = (line.split("\t") for line in capsys.readouterr().out.splitlines())
        return {
            row[0]: {name: float(cell or "nan") for name, cell in zip(titles[1:], row[1:], strict=True)} for row in rows
        }

    return read


def test_stages_add_up_to_the_whole(table: Callable[..., Table], tree: Path) -> None:
    stages = table(str(tree), "--rate", "500")
    whole, waiting = stages.pop("whole"), stages.pop("waiting")
    assert list(stages) == ["read", "decode", "crop, flip", "masks", "keypoints", "seeds", "collate"]
    assert sum(stage["ms_per_image"] for stage in stages.values()) == pytest.approx(whole["ms_per_image"], abs=0.005)
    assert waiting["ms_per_image"] >= 0
    for stage in [*stages.values(), whole]:
        assert 0 < stage["ci_low"] <= stage["ms_per_image"] <= stage["ci_high"]
        assert stage["cores_for_500_per_second"] == pytest.approx(0.5 * stage["ms_per_image"], abs=0.006)
    assert whole["images_per_second"] == pytest.approx(1000 / whole["ms_per_image"], rel=0.01)


def test_stages_are_those_of_the_recipe(table: Callable[..., Table], tree: Path) -> None:
    assert "keypoints" not in table(str(tree), "--recipe", "simmim_photographs")
    assert "read, decode" in table("photographs")
    on_device = table(str(tree), "--data.device_augment", "true")
    assert "squeeze" in on_device
    assert not {"keypoints", "crop, flip"} & on_device.keys()


def test_nothing_stays_clocked(table: Callable[..., Table], tree: Path) -> None:
    before = MaskDraws.__call__, FAST.density, "density" in vars(FAST)
    table(str(tree))
    assert (MaskDraws.__call__, FAST.density, "density" in vars(FAST)) == before


def test_what_a_slow_detector_costs_is_told_as_keypoints(
    table: Callable[..., Table], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    density = FAST.density

    def slow(self: FAST, *arguments: object) -> object:
        sum(range(300_000))
        return density(self, *arguments)  # type: ignore[arg-type]

    quick = table(str(tree))
    monkeypatch.setattr(FAST, "density", slow)
    slowed = table(str(tree))
    more = {name: slowed[name]["ms_per_image"] - quick[name]["ms_per_image"] for name in quick}
    assert more["keypoints"] > 0.5 * more["whole"] > 0.5


def test_the_rate_of_workers_is_told(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kamim_analysis")
    run([str(tree), *SIZES[:-1], "1"])
    said = [record.getMessage() for record in caplog.records]
    assert any("1,000 images/s take" in line and "the dearest stage is" in line for line in said)
    assert any(line.startswith("--workers 1 load") for line in said)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "no data at 'nowhere'"),
        (["photographs", "--recipe", "simmim_photographs", "--config", "x.yaml"], "not both"),
        (["photographs", "--config", "x.yaml"], "no recipe file at 'x.yaml'"),
        (["photographs", "--rate", "0"], "is not a number above 0"),
        (["photographs", "--encoder.widht", "3"], "widht"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        run(arguments)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_gpu_benchmark_runs_in_toy_size() -> None:
    parts = ["matrix", "simmim", "kamim", "checkpoints"]
    # nothing is compiled, which takes a minute
    environment = os.environ | {"TORCHDYNAMO_DISABLE": "1"}
    command = [sys.executable, str(BENCHMARK), "--cpu", "--only", ",".join(parts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")][1:]
    assert {row["part"] for row in rows} == set(parts)
    assert all(isinstance(row["value"], float) and row["value"] > 0 for row in rows)
    assert done.stdout.count("\n| ") == len(rows) + 2


def test_the_gpu_benchmark_without_a_gpu_is_one_line() -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(BENCHMARK)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--cpu" in done.stderr
