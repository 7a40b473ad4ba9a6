"""`kamim sweep`: killed and repeated, with a cell that fails, as a job that is interrupted, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kamim_analysis.cli import main
from kamim_analysis.results import Results
from kamim_analysis.train.recipe import Data
from kamim_analysis.train.sweep import Cell
from kamim_analysis.train.sweep_cell import cell_run
from kamim_analysis.train.sweep_jobs import Queue

Refused = Callable[..., str]
TINY = {
    "encoder.image_size": 32, "encoder.width": 16, "encoder.depth": 2, "encoder.heads": 2, "optim.batch_size": 8,
    "optim.epochs": 10, "optim.warmup_epochs": 0.5, "efficiency.workers": 0, "monitor.every_epochs": 0,
    "log_every": 1, "checkpoint_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def settings(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run, the same again by another name, SimMIM's, and one whose pictures are broken."""
    broken = tmp_path_factory.mktemp("broken")
    for name in "abcdefgh":
        (broken / f"{name}.png").write_text("no picture")
    return {
        "recipe": "kamim_photographs",
        "overrides": {**TINY, "data.source": str(pictures)},
        "grid": {"objective.detector": ["FAST"]},
        "also": [
            {"name": "broken", "overrides": {"data.source": str(broken)}},
            {"name": "twin"},
            {"recipe": "simmim_photographs", "name": "simmim"},
        ],
        "evaluate": [{"command": "knn", "k": [1], "workers": 0}],
        "table": ["kamim_4", "latent_mim"],
    }


@pytest.fixture(scope="module")
def sweep(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "mine.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return ["sweep", str(folder / "mine.yaml"), "--out", str(folder / "out")]


@pytest.fixture(scope="module")
def killed(sweep: list[str]) -> Path:
    """Its directory, killed without warning while the first cell trained: the sweep and its training alike."""
    out = Path(sweep[-1])
    command = [sys.executable, "-m", "kamim_analysis", *sweep]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    _await((out / "detector_FAST" / "last").is_file)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return out


@pytest.fixture(scope="module")
def repeated(killed: Path, sweep: list[str]) -> subprocess.CompletedProcess[str]:
    """The same command again."""
    return subprocess.run([sys.executable, "-m", "kamim_analysis", *sweep], capture_output=True, text=True, check=False)


def _await(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps_logged(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def test_killed_it_resumes_and_comes_to_the_same_weights(
    killed: Path, repeated: subprocess.CompletedProcess[str]
) -> None:
    resumed, twin = killed / "detector_FAST", killed / "twin"
    assert (resumed / "encoder.safetensors").read_bytes() == (twin / "encoder.safetensors").read_bytes()
    assert steps_logged(resumed) == steps_logged(twin) == list(range(1, 31))
    assert (killed / "detector_FAST.log").read_text().count("kamim_analysis train") == 2


def test_a_cell_that_fails_is_told_and_the_others_run(killed: Path, repeated: subprocess.CompletedProcess[str]) -> None:
    assert repeated.returncode == 1
    lines = repeated.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == [
        "[1/4] detector_FAST", "[2/4] broken", "[3/4] twin", "[4/4] simmim"
    ]  # fmt: skip
    assert [line.rsplit(", ", 1)[-1] for line in lines[:4]] == ["done", "failed", "done", "done"]
    assert lines[4] == "3 of 4 cells complete"
    assert repeated.stderr.startswith("broken failed: train ended with code 2: ")
    assert repeated.stderr.endswith(f"({killed / 'broken.log'})\n")


def test_the_table_is_laid_out(killed: Path, repeated: subprocess.CompletedProcess[str]) -> None:
    text = (killed / "tables.txt").read_text()
    rows = text[text.index("kamim_4: ") :].splitlines()
    simmim = next(i for i, row in enumerate(rows) if row.startswith("none (SimMIM)"))
    assert "1.00x" in rows[simmim + 1]
    fast = next(i for i, row in enumerate(rows) if row.startswith("FAST"))
    assert "x ≠(" in rows[fast + 1]
    assert "kamim table " in repeated.stdout
    results = Results.open(killed / "detector_FAST" / "knn")
    assert results.models == ["detector_FAST"]
    assert "KAMIM" in text[text.index("latent_mim: ") :]


def test_again_what_is_complete_is_left_alone(
    repeated: object, killed: Path, sweep: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in killed.glob("*/*")}
    main([*sweep, "--only", "detector_*,simmim"])
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == ["[1/2] detector_FAST: complete before", "[2/2] simmim: complete before",
                       "2 of 2 cells complete"]  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in killed.glob("*/*")} == before


def test_a_dry_run_tells_commands_and_amounts(
    repeated: object, killed: Path, sweep: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*sweep, "--dry_run"])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "detector_FAST: 10 epochs, 240 images; complete"
    assert out[1].startswith("  kamim train --recipe kamim_photographs --encoder.image_size 32 ")
    assert out[2].startswith(f"  kamim knn detector_FAST={killed}/detector_FAST --data ")
    assert out[3] == "broken: 10 epochs, 80 images; train, knn to run"
    assert out[-1] == "4 cells, pre-training: 40 epochs, 800 images"


def test_an_interrupted_job_goes_back_to_the_queue_and_resumes(pictures: Path, tmp_path: Path) -> None:
    """As SLURM interrupts a job at its time limit, by submitit's own processes in SLURM's place."""
    pytest.importorskip("submitit")
    overrides = {**TINY, "data.source": str(pictures), "optim.epochs": 20}
    cell = Cell(name="kamim", recipe="kamim_photographs", overrides=overrides)
    queue = Queue(tmp_path / "jobs", "local", {"timeout_min": 10})
    job = queue.submit(cell_run(cell, [], Data(source=str(pictures)), tmp_path))
    run = tmp_path / "kamim"
    _await((run / "last").is_file)
    # the signal that SLURM sends goes to the task, the child of what submitit started here
    (task,) = subprocess.run(["pgrep", "-P", job.job_id], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(task), signal.SIGUSR2)
    _await(job.paths.result_pickle.exists)
    assert job.result() == "done"
    assert steps_logged(run) == list(range(1, 61))
    assert (tmp_path / "kamim.log").read_text().count("kamim_analysis train") == 2
    _await(lambda: job.state != "RUNNING")


@pytest.fixture
def mine(settings: dict[str, Any], tmp_path: Path) -> Callable[..., str]:
    """A sweep file with changes."""

    def write(**change: Any) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(settings | change))
        return str(path)

    return write


def test_mistakes_are_one_line_before_anything_runs(mine: Callable[..., str], refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def ask(*arguments: str, **change: Any) -> str:
        return refused("sweep", mine(**change), "--out", out, *arguments)

    assert "unknown sweep 'kamim_table_3'" in refused("sweep", "kamim_table_3", "--out", out)
    assert "required: --out" in refused("sweep", "kamim_table_2")
    assert "cell detector_FAST: " in ask("--optim.epohs", "3")
    assert "cell detector_FIST: unknown detector 'FIST'" in ask(grid={"objective.detector": ["FIST"]})
    assert "--objective.detector is varied by 'grid'" in ask("--objective.detector", "ORB")
    assert "unknown table 'kamim_9'" in ask(table=["kamim_9"])
    assert "--only chooses none of the cells detector_FAST, broken, twin, simmim" in ask("--only", "w8*")
    assert "evaluation knn: argument --k: 'many' is not a whole number" in ask(
        evaluate=[{"command": "knn", "k": "many"}]
    )
    assert "evaluation knn: unrecognized arguments: --kk 1" in ask(evaluate=[{"command": "knn", "kk": 1}])
    assert "evaluation probe: " in ask(evaluate=[{"command": "probe", "optim.epochs": -1}])
    assert "evaluation probe: " in ask(evaluate=[{"command": "probe", "recipe": "fine_tuning"}])
    assert "'gpu' is not KEY=VALUE" in ask("--slurm", "gpu")
    assert "cell detector_FAST: " in ask("--data.source", "/nowhere")
    assert not out.exists()


def test_other_files_and_other_runs_are_not_touched(
    mine: Callable[..., str], refused: Refused, tmp_path: Path, repeated: object, killed: Path, sweep: list[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    assert "holds other files" in refused("sweep", mine(), "--out", tmp_path / "full")
    line = refused(*sweep, "--objective.temperature", "1")
    assert "cell detector_FAST: output directory" in line
    assert "already holds another run (objective.temperature: 0.25 -> 1.0)" in line
    assert "submitit: " in refused(*sweep, "--backend", "slurm", "--slurm", "partition=gpu", "timeout_min=60")
