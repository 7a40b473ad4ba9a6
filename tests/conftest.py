"""What the tests share: tiny random encoders, seeded pictures, and the photographs that scikit-image brings along."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# tiny tensors gain nothing from threads, and beside other processes they lose a hundredfold waiting for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

torch.set_num_threads(1)

TINY_RUN = (
    "--encoder.image_size 32 --encoder.width 16 --encoder.depth 2 --encoder.heads 2 --optim.batch_size 8 "
    "--optim.epochs 2 --optim.warmup_epochs 0.5 --efficiency.workers 0 --monitor.every_epochs 1 --monitor.images 12"
).split()

_BROWSER_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking "
    "--window-size=1280,1400"
).split()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same global random state."""
    torch.manual_seed(0)


@pytest.fixture
def tiny_vit() -> Callable[..., Any]:
    """A factory of ViTs for 32-px images: 4 x 4 patches of 8 px, 32 channels, 2 heads, 3 blocks, a cls token."""

    def make(image_size: int = 32, width: int = 32, depth: int = 3, heads: int = 2, **options: Any) -> Any:
        from kamim_analysis.encoders import create

        sizes = {"width": width, "depth": depth, "heads": heads, "patch_size": 8}
        return create("vit_tiny", image_size, sizes=sizes, **options).eval()

    return make


@pytest.fixture
def tiny_swin() -> Callable[..., Any]:
    """A factory of two-stage Swins with patches of 4 px, 16 and 32 channels, windows of 4 x 4."""

    def make(image_size: int = 32, window: int = 4, **options: Any) -> Any:
        from kamim_analysis.encoders import build

        arguments = {"img_size": image_size, "window_size": window, "embed_dim": 16, "depths": (2, 2)}
        return build("swin_tiny_patch4_window7_224", arguments | {"num_heads": (2, 4)} | options).eval()

    return make


@pytest.fixture
def pictures() -> list[NDArray[np.uint8]]:
    """Four real photographs, RGB uint8, of several sizes."""
    from kamim_analysis.decode import read_rgb
    from kamim_analysis.photographs import paths

    chosen = {path.stem: path for path in paths()}
    return [read_rgb(chosen[name]) for name in ("astronaut", "coffee", "china", "coins")]


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four pictures of three classes that differ in colour; tests read them only."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    draw = np.random.default_rng(0)
    for label, tint in (("red", (200, 60, 60)), ("green", (60, 200, 60)), ("blue", (60, 60, 200))):
        (root / label).mkdir(parents=True)
        for i in range(8):
            pixels = draw.normal(tint, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((48, 40)).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, class_folders: Path) -> Path:
    """A KAMIM run of six steps on `class_folders`; tests read it only."""
    from kamim_analysis.cli import main

    out = tmp_path_factory.mktemp("runs") / "kamim"
    main(["train", "--recipe", "kamim_photographs", "--out", str(out), "--data.source", str(class_folders), *TINY_RUN])
    return out


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in this process that must be refused: the one line it prints, exit code 2 checked."""
    from kamim_analysis.cli import main

    def run_refused(*arguments: object) -> str:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        assert left.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("kamim: error: ")
        assert error.count("\n") == 1
        return error

    return run_refused


@pytest.fixture(scope="session")
def kamim() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command as a user does, in a process of its own; keywords are those of `subprocess.run`."""

    def run_apart(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kamim_analysis", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)

    return run_apart


def _program(*names: str) -> str:
    """Path of a program by its first name that is there; no test without it, but in CI a failure."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        reason = f"no {names[0]}: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of a file; paths are given, so that nothing is downloaded."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = _program("chromium", "chromium-browser", "google-chrome")
    for flag in _BROWSER_FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(executable_path=_program("chromedriver")))
    yield driver
    driver.quit()
