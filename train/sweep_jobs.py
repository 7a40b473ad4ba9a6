"""Cells of a sweep as jobs of a cluster, through submitit. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kamim_analysis.errors import UserError
from kamim_analysis.plain_data import json_of

from .sweep_cell import CellRun

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

Cluster = Literal["slurm", "local"]
_OF_EXECUTOR = "max_num_timeout"
# submitit's of every cluster; any other needs the cluster's name before it
_OF_ALL = "timeout_min mem_gb nodes cpus_per_task gpus_per_node tasks_per_node stderr_to_stdout".split()


@dataclass(frozen=True)
class CellJob:
    """What a job calls. Interrupted by its time limit or by preemption it goes back to the queue, and resumes."""

    cell: CellRun

    def __call__(self) -> str:
        """Run the cell; the job fails where it does."""
        outcome = self.cell.run()
        if outcome.state in ("failed", "busy"):
            raise RuntimeError(f"{self.cell.name}: {outcome.reason}")
        return outcome.state

    def checkpoint(self) -> DelayedSubmission:
        """The same job again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Queue:
    """The jobs of a sweep. `cluster` is "slurm", or "local": submitit's own processes on this machine.

    `parameters` are submitit's: timeout_min, gpus_per_node, cpus_per_task, mem_gb, nodes, max_num_timeout (how often a
    job may reach its time limit) and SLURM's own, such as partition. Raises UserError for unknown ones, where submitit
    is not installed, and where there is no SLURM.
    """

    def __init__(self, folder: Path, cluster: Cluster, parameters: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("jobs need submitit: pip install 'kamim-analysis[slurm]'") from error
        self._job_class = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[cluster]
        self._folder, given = folder, dict(parameters)
        of_executor = {f"{cluster}_{_OF_EXECUTOR}": given.pop(_OF_EXECUTOR)} if _OF_EXECUTOR in given else {}
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster, **of_executor)
            prefixed = {key if key in _OF_ALL else f"{cluster}_{key}": value for key, value in given.items()}
            self._executor.update_parameters(**prefixed)
        except (NameError, RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise UserError(f"submitit: {' '.join(str(error).split())}") from error

    def running(self, name: str) -> str:
        """The state of a cell's job that is waiting or running; empty where there is none."""
        path = self._path(name)
        if not path.is_file():
            return ""
        job_id = self._noted(path)
        job = self._job_class(self._folder, job_id)
        return "" if job.done(force_check=True) else f"job {job_id} is {job.state.lower()}"

    def _noted(self, path: Path) -> str:
        """The job's id, which is part of the names of submitit's files. Raises UserError where it cannot be one."""
        try:
            job_id = json_of(path.read_bytes())
        except ValueError:
            job_id = None
        if not isinstance(job_id, str) or not re.fullmatch(r"\w+", job_id):
            raise UserError(f"{str(path)!r} is damaged; see whether the cell's job still runs, remove it, and go on")
        return job_id

    def submit(self, cell: CellRun) -> Any:
        """Hand a cell in; submitit's job."""
        self._executor.update_parameters(name=cell.name)
        job = self._executor.submit(CellJob(cell))
        self._path(cell.name).write_text(json.dumps(job.job_id), encoding="utf-8")
        return job

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
