"""Runs and pictures for the tests of the command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kamim_analysis.cli import main

TINY_RUN = (
    "--encoder.image_size 32 --encoder.width 16 --encoder.depth 2 --encoder.heads 2 --optim.batch_size 8 "
    "--optim.epochs 2 --optim.warmup_epochs 0.5 --efficiency.workers 0 --monitor.every_epochs 1 --monitor.images 12"
).split()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four pictures of three classes that differ in colour."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    draw = np.random.default_rng(0)
    for label, tint in (("red", (200, 60, 60)), ("green", (60, 200, 60)), ("blue", (60, 60, 200))):
        (root / label).mkdir(parents=True)
        for i in range(8):
            pixels = draw.normal(tint, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((48, 40)).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A KAMIM run of six steps."""
    out = tmp_path_factory.mktemp("runs") / "kamim"
    main(["train", "--recipe", "kamim_photographs", "--out", str(out), "--data.source", str(pictures), *TINY_RUN])
    return out


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused: the one line it prints, exit code 2 checked."""

    def run_refused(*arguments: object) -> str:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        assert left.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("kamim: error: ")
        assert error.count("\n") == 1
        return error

    return run_refused
