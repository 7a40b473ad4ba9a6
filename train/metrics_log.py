"""What a run says while it goes: metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kamim_analysis.errors import UserError
from kamim_analysis.output import unwritable, write_file
from kamim_analysis.plain_data import json_of
from kamim_analysis.runtime import progress_console

log = logging.getLogger(__name__)


class MetricsLog:
    """Writes numbers of a step to `metrics.jsonl` and TensorBoard, and shows the latest in the progress bar.

    On resume, lines and events past `first_step` (written after the checkpoint that is resumed from) are dropped.
    Only the main process (`active`) writes. Raises UserError where that fails, as on a full disk; it names `newest`,
    the last complete checkpoint.
    """

    def __init__(
        self, run: Path, first_step: int, last_step: int, newest: Callable[[], str] = str, *, active: bool
    ) -> None:
        self.active, self.newest = active, newest
        self.path, self.events = run / "metrics.jsonl", run / "tensorboard"
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        drop_after(self.path, first_step)
        self.excepthook, threading.excepthook = threading.excepthook, self._quiet
        before = set(threading.enumerate())
        try:
            with self._writing(self.events):
                self.tensorboard = SummaryWriter(str(self.events), purge_step=first_step or None)
        except BaseException:
            self._end_quiet(before)
            raise
        self.others = before
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]} · lr {task.fields[rate]} · {task.fields[speed]} images/s"),
            TextColumn("[bold red]{task.fields[problem]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            speed_estimate_period=120,
            console=progress_console(),
        )
        self.task = self.progress.add_task(
            run.name, total=last_step, completed=first_step, loss="-", rate="-", speed="-", problem=""
        )
        self.problem = ""

    def __enter__(self) -> MetricsLog:
        if self.active:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if not self.active:
            return
        self.progress.stop()
        try:
            with self._writing(self.events):
                self.tensorboard.close()
        except UserError:
            if kind is None:  # else that is what is told
                raise
        finally:
            self._end_quiet(self.others)

    def _end_quiet(self, others: set[threading.Thread]) -> None:
        """Once TensorBoard's thread has ended, which may still be at failing."""
        for thread in set(threading.enumerate()) - others:
            if type(thread).__module__.startswith("tensorboard"):
                thread.join(1.0)
        threading.excepthook = self.excepthook

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Append the numbers of optimizer step `step` (1 for the first); null is one that is not finite."""
        if not self.active:
            return
        line = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with self._writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | line) + "\n")
        with self._writing(self.events):
            for name, value in numbers.items():
                self.tensorboard.add_scalar(name, value, step)

    def picture(self, name: str, pixels: Any, step: int) -> None:
        """A picture, uint8 [H, W, 3], to TensorBoard."""
        if self.active:
            with self._writing(self.events):
                self.tensorboard.add_image(name, pixels, step, dataformats="HWC")

    def show(self, step: int, numbers: dict[str, float], problem: str = "") -> None:
        """Move the progress bar: loss, learning rate, speed, and in a word what is wrong, logged when it begins."""
        if self.active:
            if problem and not self.problem:
                log.warning("step %d: %s", step, problem)
            self.problem = problem
            self.progress.update(
                self.task,
                completed=step,
                loss=f"{numbers['loss']:.4f}",
                rate=f"{numbers['learning_rate']:.1e}",
                speed=f"{numbers['images_per_second']:.0f}",
                problem=problem.partition(":")[0],
            )

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            newest = self.newest()
            told = f"; the last complete checkpoint is {newest}" if newest else "; there is no checkpoint yet"
            raise UserError(f"{unwritable(path, error)}{told}") from error

    def _quiet(self, raised: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread fails in print what the next call raises here; say it once."""
        if not isinstance(raised.exc_value, OSError):
            self.excepthook(raised)


def drop_after(path: Path, step: int) -> None:
    """Leave of a file of JSON lines, if there is one, those of steps up to `step`. Raises UserError."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            entry = json_of(line)
        except ValueError:  # the line that a kill cut short
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry["step"] <= step:
            kept.append(line + b"\n")
    write_file(path, b"".join(kept))
