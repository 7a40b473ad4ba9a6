"""What a run says while it goes: metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kamim_analysis.runtime import progress_console

log = logging.getLogger(__name__)


class MetricsLog:
    """Writes numbers of a step to `metrics.jsonl` and TensorBoard, and shows the latest in the progress bar.

    On resume, lines and events past `first_step` (written after the checkpoint that is resumed from) are dropped.
    Only the main process (`active`) writes.
    """

    def __init__(self, run: Path, first_step: int, last_step: int, *, active: bool) -> None:
        self.active = active
        self.path = run / "metrics.jsonl"
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._drop_after(first_step)
        self.tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=first_step or None)
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
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self.active:
            self.progress.stop()
            self.tensorboard.close()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Append the numbers of optimizer step `step` (1 for the first)."""
        if not self.active:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | numbers) + "\n")
        for name, value in numbers.items():
            self.tensorboard.add_scalar(name, value, step)

    def picture(self, name: str, pixels: Any, step: int) -> None:
        """A picture, uint8 [H, W, 3], to TensorBoard."""
        if self.active:
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

    def _drop_after(self, step: int) -> None:
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry: dict[str, Any] = json.loads(line)
            except ValueError:  # the line that a kill cut short
                continue
            if entry["step"] <= step:
                kept.append(line + "\n")
        self.path.write_text("".join(kept), encoding="utf-8")
