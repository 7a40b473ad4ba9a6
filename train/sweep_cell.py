"""Running one cell of a sweep: its training and its evaluations, each a process of its own. Imports no torch.

What has ended well is written beside it, so that it is not run again; everything else resumes by itself.
"""

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

from kamim_analysis.output import MANIFEST, write_file
from kamim_analysis.plain_data import json_of

from .recipe import Data
from .sweep import TRAINED, Cell, Evaluation

#: in a cell's directory: the commands that ended well there, by name
ENDED = "sweep.json"
_TRAIN, _ENCODER = "train", "encoder.safetensors"
_CELL = "CELL"


class Step(NamedTuple):
    """A command of a cell."""

    name: str
    arguments: tuple[str, ...]
    """Of `kamim`."""
    leaves: Path
    """A file that is there once it has ended well."""


class Outcome(NamedTuple):
    """How a cell came out."""

    state: Literal["done", "complete", "failed", "busy"]
    """`complete`: it was before; `busy`: another process is at it."""
    reason: str = ""


@dataclass(frozen=True)
class CellRun:
    """A cell in its directory; pickles, for a job on a cluster."""

    name: str
    directory: Path
    steps: tuple[Step, ...]
    processes: int = 1
    """Of each command, started by torchrun where there are several."""

    @property
    def log(self) -> Path:
        """What all its commands print."""
        return self.directory.with_name(f"{self.name}.log")

    def unfinished(self) -> list[Step]:
        """Steps that have not ended well as they are now asked for."""
        ended = _ended(self.directory)
        return [step for step in self.steps if ended.get(step.name) != self._asked(step) or not step.leaves.is_file()]

    def run(self, report: Callable[[str], None] = lambda _text: None) -> Outcome:
        """Run what is unfinished up to the first failure; `report` is told of each step as it begins and ends.

        The log is locked while the cell or a command of it lives, so that no other sweep takes the cell up.
        """
        with self.log.open("ab") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Outcome("busy", "another process is at it")
            steps = self.unfinished()
            for step in steps:
                report(f"{step.name} ")
                since = time.monotonic()
                code = run_logged(self._command(step), log)
                report(f"{duration(time.monotonic() - since)}, ")
                if code or not step.leaves.is_file():
                    what = f"ended with code {code}" if code else f"left no {step.leaves.name}"
                    return Outcome("failed", f"{step.name} {what}: {last_line(self.log)}")
                self._note(step)
        return Outcome("done" if steps else "complete")

    def commands(self) -> list[str]:
        """Every step as a user would type it."""
        return [shlex.join(["kamim", *step.arguments]) for step in self.steps]

    def _command(self, step: Step) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
        return [sys.executable, *(launcher if self.processes > 1 else []), "-m", "kamim_analysis", *step.arguments]

    def _asked(self, step: Step) -> list[str]:
        """A step's command and the training's that it rests on, wherever the sweep lies."""
        commands = [self.steps[0].arguments, step.arguments] if step.name != _TRAIN else [step.arguments]
        return [shlex.join(command).replace(str(self.directory), _CELL) for command in commands]

    def _note(self, step: Step) -> None:
        """Write down that a step ended well; whole or not at all."""
        ended = _ended(self.directory) | {step.name: self._asked(step)}
        write_file(self.directory / ENDED, (json.dumps(ended, indent=2) + "\n").encode())


def cell_run(cell: Cell, evaluations: Sequence[Evaluation], data: Data, out: Path, processes: int = 1) -> CellRun:
    """The cell's training in `out`/NAME and its evaluations within; they judge on the training's `data` by default."""
    directory = out / cell.name
    steps = [Step(_TRAIN, (_TRAIN, *cell.options, "--out", str(directory)), directory / _ENCODER)]
    for one in evaluations:
        inside = directory / one.name
        options = [one.command, f"{cell.name}={directory}"]
        if "data" not in one.given:
            options += ["--data", data.source, *(["--data_root", data.root] if data.root else [])]
        options += [*one.options, "--out", str(inside)]
        if one.command in TRAINED:
            steps.append(Step(one.name, tuple(options), inside / "results" / MANIFEST))
        else:
            steps.append(Step(one.name, (*options, "--overwrite"), inside / MANIFEST))
    return CellRun(cell.name, directory, tuple(steps), processes)


def run_logged(command: Sequence[str], log: IO[bytes]) -> int:
    """Run a command that prints to the log; its exit code. It is asked to end where this process is."""
    log.write(f"\n$ {shlex.join(command)}\n".encode())
    log.flush()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            raise


def last_line(log: Path) -> str:
    """What a failed command said last, of the end of its log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096), os.SEEK_SET)
        lines = file.read().decode(errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("kamim: error: ") if said else "it said nothing"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(7.4), duration(187.0), duration(7320.0)
    ('7 s', '3 min 7 s', '2 h 2 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _ended(directory: Path) -> dict[str, list[str]]:
    """Nothing where the file is missing or damaged: every command then runs again, and finds what it did."""
    try:
        found = json_of((directory / ENDED).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
