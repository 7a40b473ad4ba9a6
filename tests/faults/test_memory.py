"""Memory that does not suffice: one line that says what takes less, whoever notices the shortage."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kamim_analysis.cli import main
from kamim_analysis.errors import UserError
from kamim_analysis.memory import shortage

TINY = (
    "--encoder.image_size 256 --encoder.width 16 --encoder.depth 2 --encoder.heads 2 --optim.batch_size 24 "
    "--monitor.every_epochs 0 --max_steps 1"
).split()
ROOM = 100_000_000


def commands(run: str, pictures: str, out: str) -> dict[str, list[str]]:
    frozen = ["random:vit_tiny", "--data", pictures, "--workers", "0", "--batch_size", "24", "--image_size", "512"]
    train = ["train", "--recipe", "simmim_photographs", "--data.source", pictures, *TINY]
    return {
        "train": [*train, "--efficiency.workers", "0", "--out", f"{out}/train"],
        "a worker of train": [*train, "--encoder.image_size", "1024", "--encoder.patch_size", "256",
                              "--objective.mask_unit", "256", "--efficiency.workers", "1", "--out", f"{out}/worker"],
        "analyze": ["analyze", *frozen, "--out", f"{out}/analyze"],
        "knn": ["knn", *frozen, "--out", f"{out}/knn"],
        "features": ["features", *frozen, "--out", f"{out}/features"],
    }  # fmt: skip


def run_short(run: str, pictures: str, out: str) -> None:
    """Print the exit code and error lines of each command where little more memory is to be had than now."""
    import io
    from contextlib import redirect_stderr

    import sklearn.metrics
    import timm  # noqa: F401

    torch.set_num_threads(1)
    assert sklearn.metrics is not None
    told = {}
    for name, command in commands(run, pictures, out).items():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
        said, code = io.StringIO(), 0
        with redirect_stderr(said):
            try:
                main(command)
            except SystemExit as left:
                code = int(left.code or 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        told[name] = [code, [line for line in said.getvalue().splitlines() if line.startswith("kamim: error")]]
    print(json.dumps(told))


@pytest.fixture(scope="module")
def short(
    tiny_run: Path, class_folders: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, list[str]]]:
    code = "import runpy, sys; runpy.run_path(sys.argv[1])[sys.argv[2]](*sys.argv[3:])"
    arguments = [__file__, "run_short", str(tiny_run), str(class_folders), str(tmp_path_factory.mktemp("short"))]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, tuple[int, list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("name", commands("", "", ""))
def test_a_batch_too_large_is_one_line_with_the_commands_own_options(
    short: dict[str, tuple[int, list[str]]], name: str
) -> None:
    code, lines = short[name]
    assert code == 2
    (line,) = lines
    assert line.startswith("kamim: error: this does not fit into memory (")
    assert "allocate" in line or "(MemoryError)" in line
    own = "--efficiency.micro_batch" if "train" in name else "--batch_size"
    assert own in line


def exhausted(ask: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as error:  # noqa: PT011  each library raises its own
        ask()
    return error.value


def in_a_worker() -> None:
    from torch.utils.data import DataLoader

    class Huge(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, _index: int) -> int:
            return len(np.empty(2**60, np.uint8))

    list(DataLoader(Huge(), num_workers=1))


ASKED: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.empty(2**55),
    "torch, beyond any address": lambda: torch.empty(2**40, 2**40),
    "NumPy": lambda: np.empty(2**60, np.uint8),
    "NumPy in a data worker": in_a_worker,
    "OpenCV": lambda: cv2.copyMakeBorder(np.zeros((2, 2), np.uint8), 0, 2**30, 0, 2**30, cv2.BORDER_CONSTANT),
    "Python": lambda: bytearray(2**60),
}


@pytest.mark.parametrize("library", ASKED)
def test_each_librarys_own_error_is_known(library: str) -> None:
    said = shortage(exhausted(ASKED[library]))
    assert said
    assert "\n" not in said


def test_cudas_error_is_known_and_other_errors_are_not() -> None:
    cuda = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 1.2 GiB"
    assert shortage(torch.OutOfMemoryError(cuda)) == cuda
    wrapped = UserError("timm cannot build it")
    wrapped.__cause__ = MemoryError()
    assert shortage(wrapped) == "MemoryError"
    for other in (RuntimeError("shapes differ"), ValueError("out of memory of youth"), OSError(28, "No space left")):
        assert shortage(other) is None
