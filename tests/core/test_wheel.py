"""The wheel holds every module, recipe and file of the page: an editable install would not notice a missing one."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"kamim_analysis": "kamim_analysis", "train": "kamim_analysis/train", "analyses": "kamim_analysis/analyses",
           "figures": "kamim_analysis/figures"}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Names of the files in a wheel built from a copy of the tree, without network and without leaving a trace."""
    copy = tmp_path_factory.mktemp("wheel") / "tree"
    copy.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def tree(pattern: str) -> set[str]:
    return {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob(pattern)
        if "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("pattern", ["*.py", "*.yaml", "*.js", "*.css", "py.typed"])
def test_the_wheel_holds_the_tree(wheel, pattern):
    suffix = pattern.lstrip("*")
    assert {name for name in wheel if name.endswith(suffix)} == tree(pattern)


def test_nothing_lands_outside_the_package(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kamim_analysis"}


def test_the_command_is_declared(wheel):
    assert any(name.endswith("entry_points.txt") for name in wheel)
