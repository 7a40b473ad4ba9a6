"""Disks that take no more: every command that writes says which file in one line, and goes on once there is room.

A process whose files may not grow beyond a limit stands for the full disk (it works anywhere), with a limit that rises
until the command succeeds, so that every file it writes is the first that does not fit; a small tmpfs is a real one.
"""

import gc
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from kamim_analysis.cli import main
from kamim_analysis.results import Results

TINY = (
    "--encoder.image_size 32 --encoder.width 16 --encoder.depth 2 --encoder.heads 2 --optim.batch_size 8 "
    "--optim.epochs 2 --optim.warmup_epochs 0.5 --efficiency.workers 0 --monitor.every_epochs 0 --checkpoint_every 3"
).split()
SHOWN = "--analyses=knn"
FIGURES = "--figures=knn"


def commands(run: str, pictures: str, results: str) -> dict[str, list[str]]:
    """What writes, by what it is called here; {out} is where."""
    data = ["--data", pictures, "--workers", "0"]
    return {
        "train": ["train", "--recipe", "kamim_photographs", "--out", "{out}", "--data.source", pictures, *TINY],
        "analyze": ["analyze", run, *data, "--images", "12", SHOWN, "--out", "{out}"],
        "knn": ["knn", run, *data, "--out", "{out}"],
        "features": ["features", run, *data, "--shard_pictures", "8", "--batch_size", "8", "--out", "{out}"],
        "pack": ["pack", pictures, "--workers", "0", "--shard_pictures", "10", "--out", "{out}"],
        "export": ["export", run, "--format", "timm", "--out", "{out}"],
        "keypoints": ["keypoints", f"{pictures}/red/0.png", "--image_size", "32", "--out", "{out}"],
        "table": ["table", results, "--out", "{out}/table.txt", "--overwrite"],
        "figures": ["figures", "{out}", FIGURES],
    }  # fmt: skip


def outcome(arguments: list[str]) -> tuple[int, list[str]]:
    """Exit code, and the lines on standard error that are no progress."""
    said, code = io.StringIO(), 0
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        try:
            main(arguments)
        except SystemExit as left:
            code = int(left.code or 0)
    return code, [line for line in said.getvalue().splitlines() if line.startswith("kamim: error")]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill_up(run: str, pictures: str, results: str, place: str) -> None:
    """Print, for each command, each failure: the limit in bytes, its line, what it left and what was lost."""
    import torch.distributed.nn  # torch 2.8 writes a file of its own when it is first imported  # noqa: F401

    told = {}
    for name, command in commands(run, pictures, results).items():
        out, limit, failures = Path(place) / name / "out", 64.0, []
        if name == "figures":
            shutil.copytree(results, out)
        else:
            out.parent.mkdir()
        while True:
            before = contents(out) if name == "figures" else {}
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
            code, lines = outcome([part.format(out=out) for part in command])
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            if code == 0:
                break
            left = contents(out.parent)
            half = [one for one in left if "partial" in one or ".lock" in one]
            changed = [one for one in before if left.get(f"out/{one}") != before[one]]
            failures.append({"code": code, "lines": lines, "half": half, "changed": changed, "left": sorted(left)})
            limit *= 12
        told[name] = {"failures": failures, "left": sorted(contents(out))}
    print(json.dumps(told))


@pytest.fixture(scope="module")
def results(tiny_run: Path, class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analysis with two figures, to be read only."""
    out = tmp_path_factory.mktemp("results") / "results"
    data = ["--data", str(class_folders), "--images", "12", "--workers", "0"]
    main(["analyze", str(tiny_run), *data, SHOWN, "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def filled(
    tiny_run: Path, class_folders: Path, results: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, list[dict[str, list[str]]]]]:
    """What every command said and left while there was too little room, by command."""
    place = tmp_path_factory.mktemp("filled")
    code = "import runpy, sys; runpy.run_path(sys.argv[1])[sys.argv[2]](*sys.argv[3:])"
    arguments = [__file__, "fill_up", str(tiny_run), str(class_folders), str(results), str(place)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, dict[str, list[dict[str, list[str]]]]] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("name", commands("", "", ""))
def test_a_full_disk_is_one_line_that_names_the_file_and_the_same_command_goes_on(
    filled: dict[str, dict[str, list[dict[str, list[str]]]]], name: str
) -> None:
    failures = filled[name]["failures"]
    assert failures, "the limit was never met"
    for failure in failures:
        assert failure["code"] == 2, failure
        (line,) = failure["lines"]
        assert "File too large" in line
        assert f"/{name}/out" in line, line
        assert ".partial" not in line
        assert failure["half"] == [], failure
        assert failure["changed"] == [], failure


def test_what_was_complete_before_the_disk_was_full_stays(
    filled: dict[str, dict[str, list[dict[str, list[str]]]]],
) -> None:
    """Unlike results, which appear whole: nothing is left of them."""
    for name in ("analyze", "knn", "export", "keypoints", "table"):
        assert all(failure["left"] == [] for failure in filled[name]["failures"]), name
    named = " ".join(line for failure in filled["train"]["failures"] for line in failure["lines"])
    for file in ("config.yaml", "step-00000003"):
        assert file in named


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with options, or mounts it anew; skips where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("may not mount")
        mounted = True
        return place

    yield mount
    if mounted:
        gc.collect()  # NumPy 1.26 leaves the archive that did not fit open until it is collected
        subprocess.run(["umount", str(place)], check=True)


def test_a_real_full_disk(
    small_disk: Callable[[str], Path], tiny_run: Path, class_folders: Path, results: Path,
    refused: Callable[..., str], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    disk = small_disk("size=1m")
    shutil.copytree(results, disk / "results")
    before = contents(disk / "results")
    every = commands(str(tiny_run), str(class_folders), str(results))
    for name in ("figures", "features", "pack", "analyze"):
        out = disk / "results" if name == "figures" else disk / name
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 8192))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([part.format(out=out) for part in every[name]])
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kamim: error")]
        assert left.value.code == 2
        assert len(said) == 1
        assert "No space left on device" in said[0] or " free; take fewer layers" in said[0]
        assert f"'{out}" in said[0] or name == "features"
        assert contents(disk / "results") == before
        (disk / "filler").unlink()
        if name != "figures":
            main([part.format(out=out) for part in every[name]])
            shutil.rmtree(out)
    assert Results.open(disk / "results").models == ["kamim"]


def test_a_training_on_a_real_full_disk_tells_the_file_and_keeps_its_checkpoint(
    small_disk: Callable[[str], Path], class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard writes from a thread of its own, whose failure is no traceback."""
    disk, told = small_disk("size=2m"), []
    command = commands("", str(class_folders), "")["train"]
    for free in (200, 9_000, 60_000, 220_000):
        shutil.rmtree(disk / "run", ignore_errors=True)
        (disk / "filler").unlink(missing_ok=True)
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - free))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([part.format(out=disk / "run") for part in command])
        said = capsys.readouterr().err
        assert left.value.code == 2
        assert "Traceback" not in said
        assert said.count("No space left on device") == 1
        told.append(next(line for line in said.splitlines() if line.startswith("kamim: error: cannot write")))
    for line, named in zip(told, ("run'", "run/tensorboard'", "step-00000003'", "step-00000006'"), strict=True):
        assert f"{disk}/run"[:-3] in line
        assert f"{named}: " in line
    assert "the last complete checkpoint is" in told[-1]
    (disk / "filler").unlink()
    main([part.format(out=disk / "run") for part in command])
    assert (disk / "run" / "last").read_text() == "step-00000006\n"


def test_a_full_standard_output_is_told(kamim: Callable[..., subprocess.CompletedProcess[str]], results: Path) -> None:
    code = "import sys; from kamim_analysis.cli import main; main(sys.argv[1:])"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "recipes"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300
        )
    assert done.returncode == 2
    assert done.stderr == "kamim: error: cannot write standard output: No space left on device\n"


@pytest.fixture
def read_only(small_disk: Callable[[str], Path], tmp_path: Path, tiny_run: Path, results: Path) -> Iterator[Path]:
    """A directory with a run and results that nothing can be written to: a mount for root, who ignores permissions."""
    root = os.geteuid() == 0
    place = small_disk("size=8m") if root else tmp_path / "place"
    shutil.copytree(tiny_run, place / "run")
    shutil.copytree(results, place / "results")
    if root:
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    else:
        for folder in (place, *place.rglob("*")):
            folder.chmod(0o555 if folder.is_dir() else 0o444)
    with pytest.raises(OSError, match=r"Read-only file system|Permission denied"):
        (place / "results" / "probe").touch()
    yield place
    if not root:
        for folder in (place, *place.rglob("*")):
            folder.chmod(0o755)


def test_a_read_only_output_is_one_line_of_every_command_that_writes(
    read_only: Path, class_folders: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, results = str(read_only / "run"), str(read_only / "results")
    every = commands(run, str(class_folders), results) | {
        "demo": ["demo", "--out", "{out}", "--max_steps", "1"],
        "sweep": ["sweep", "kamim_table_4", "--out", "{out}"],
        "resume": ["train", "--recipe", "kamim_photographs", "--out", run, "--data.source", str(class_folders),
                   *TINY, "--force"],
    }  # fmt: skip
    for name, command in every.items():
        out = Path(results) if name == "figures" else read_only / name
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([part.format(out=out) for part in command])
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kamim: error")]
        assert left.value.code == 2, name
        assert len(said) == 1, name
        assert "Read-only file system" in said[0] or "Permission denied" in said[0], said
        assert str(read_only) in said[0]


def test_a_read_only_run_and_results_are_read_as_others(
    read_only: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(class_folders), "--workers", "0"]
    main(["knn", str(read_only / "run"), *data, "--out", str(tmp_path / "knn")])
    main(["table", str(read_only / "results")])
    assert "k-NN" in capsys.readouterr().out
