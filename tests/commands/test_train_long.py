"""`kamim train` as a cluster treats it: signals and kills from outside, two writers, changed settings, a full disk."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from kamim_analysis.cli import main

Command = Callable[..., list[str]]
#: 36 steps, three an epoch; two micro-batches each
LONG = (
    "--encoder.image_size 32 --encoder.width 16 --encoder.depth 2 --encoder.heads 2 --encoder.drop_path 0.2 "
    "--optim.batch_size 8 --optim.epochs 12 --optim.warmup_epochs 1 --efficiency.accumulate 2 "
    "--monitor.every_epochs 0 --log_every 1 --checkpoint_every 4"
).split()
#: several commands in one launch
BOTH = """
import json, sys
from kamim_analysis.cli import main
for arguments in json.loads(sys.argv[1]):
    main(arguments)
"""
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def command(pictures: Path) -> Command:
    """The arguments of `kamim` that train in a directory."""

    def arguments(out: Path, *overrides: object) -> list[str]:
        settings = ["--data.source", str(pictures), *LONG, *map(str, overrides)]
        return ["train", "--recipe", "kamim_photographs", "--out", str(out), *settings]

    return arguments


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """The run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    main(command(out, "--efficiency.workers", 0))
    return out


@pytest.fixture
def started() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts `kamim` in a group of its own, under a launcher or not; what is left of the group is killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def start(arguments: list[str], *launcher: str, limit: int | None = None) -> "subprocess.Popen[str]":
        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job would ignore it
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "kamim_analysis", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=prepare,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        for one in [*children(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        process.communicate()


def children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def until(done: Callable[[], Any], process: "subprocess.Popen[str] | None" = None) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended with {process.returncode}: {process.communicate()[1]}")
        time.sleep(0.005)


def steps_told(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def saved(run: Path) -> int:
    return int((run / "last").read_text().strip().removeprefix("step-"))


def logged(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, less their speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def assert_same(first: Path, second: Path) -> None:
    found = [load_file(run / "checkpoints" / f"step-{saved(run):08d}" / "model.safetensors") for run in (first, second)]
    assert found[0].keys() == found[1].keys()
    for name, weight in found[0].items():
        assert torch.equal(weight, found[1][name]), name
    assert logged(first) == logged(second)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_all_processes_loses_nothing(
    number: signal.Signals, command: Command, whole: Path, started: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = started(command(run, "--efficiency.workers", 2))
    until(lambda: steps_told(run) >= 3, process)
    seen = steps_told(run)
    os.killpg(process.pid, number)  # its data workers too, as a terminal and a cluster do
    _out, error = process.communicate(timeout=120)
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error
    assert saved(run) == steps_told(run) < 36
    assert saved(run) >= seen
    assert f"step {saved(run)} saved after {'Ctrl-C' if number == signal.SIGINT else number.name}" in error
    assert not (run / ".lock").exists()
    main(command(run, "--efficiency.workers", 0))
    assert_same(run, whole)


def test_a_killed_run_frees_its_directory_and_leaves_no_workers(
    command: Command, whole: Path, started: Callable[..., Any], refused: Callable[..., str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = started(command(run, "--efficiency.workers", 2))
    until(lambda: (run / "last").is_file(), process)
    assert f"is being written by pid {process.pid} on " in refused(*command(run))
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    main(command(run, "--efficiency.workers", 0))  # at once, whether they live or not
    assert_same(run, whole)
    until(lambda: not any(psutil.pid_exists(pid) for pid in workers))


def test_a_signal_to_one_of_two_processes(command: Command, started: Callable[..., Any], tmp_path: Path) -> None:
    run, together = tmp_path / "run", tmp_path / "whole"
    process = started(command(run, "--efficiency.workers", 1), *TWO)
    until(lambda: steps_told(run) >= 3, process)
    (second,) = [one.pid for one in psutil.Process(process.pid).children() if one.environ().get("RANK") == "1"]
    os.kill(second, signal.SIGTERM)
    _out, error = process.communicate(timeout=120)
    assert process.returncode
    assert f"step {saved(run)} saved after SIGTERM" in error
    assert saved(run) == steps_told(run) < 36
    both = tmp_path / "both.py"
    both.write_text(BOTH, encoding="utf-8")
    arguments = [command(out, "--efficiency.workers", 0) for out in (run, together)]
    subprocess.run(
        [sys.executable, *TWO, str(both), json.dumps(arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert_same(run, together)


def test_other_settings_are_refused_without_force(
    command: Command,
    refused: Callable[..., str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    main(command(run, "--max_steps", 5))
    before = (run / "config.yaml").read_text()
    changed = command(run, "--max_steps", 7, "--optim.learning_rate", "0.003")
    capsys.readouterr()
    message = refused(*changed)
    assert "optim.learning_rate: 0.002 -> 0.003" in message
    assert "--force" in message
    main([*changed, "--force"])
    assert saved(run) == 7
    assert "goes on from step 5 with other settings: optim.learning_rate: 0.002 -> 0.003" in caplog.text
    assert (run / "config-before-step-6.yaml").read_text() == before
    assert "learning_rate: 0.003" in (run / "config.yaml").read_text()
    main(changed)  # they are the run's now
    capsys.readouterr()
    message = refused(*changed, "--force", "--encoder.width", 32)
    assert "does not fit" in message
    assert "width: 32" not in (run / "config.yaml").read_text()


def test_a_full_disk_is_one_line(command: Command, started: Callable[..., Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    limit = 6_000  # bytes of a file: some steps
    arguments = command(run, "--efficiency.workers", 0, "--checkpoint_every", 1000)
    process = started(arguments, limit=limit)
    _out, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in error
    files = rf"{re.escape(str(run))}/(metrics\.jsonl|tensorboard)"
    assert re.search(f"kamim: error: cannot write '{files}': File too large; .*there is no checkpoint yet", error), (
        error
    )
    assert steps_told(run) > 2


def test_a_place_that_cannot_be_written_is_one_line_before_training(
    command: Command, refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    message = refused(*command(tmp_path / "file" / "run"))
    assert "cannot write" in message
