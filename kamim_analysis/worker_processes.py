"""The processes that load samples, and what becomes of a training or an evaluation when one of them dies."""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from .errors import UserError
from .runtime import quiet_worker

log = logging.getLogger(__name__)

#: workers lost in turn, without a batch between, after which it is no accident
_LOSSES = 3
#: seconds in which a process that broke off has certainly ended
_DYING = 1.0
_ADVICE = {
    signal.SIGKILL: "the system may be out of memory; fewer {option} take less",
    signal.SIGBUS: "shared memory (/dev/shm) may be full; fewer {option} take less",
}
_NO_ADVICE = "a picture or a library may crash it; {option} 0 shows where"


class WorkerProcesses(_MultiProcessingDataLoaderIter):
    """torch's iterator over samples from worker processes; a death is told by `next` alone.

    torch also raises at the very moment of a death, from a handler of SIGCHLD that interrupts whatever runs: half of an
    optimizer step, or a checkpoint. Here it does not. Who waits for a batch learns of a death within a second by an
    exception, and then asks `deaths`.
    """

    def __next__(self) -> Any:
        """Raises a worker's UserError as that line again, of which torch makes the text of a traceback."""
        try:
            return super().__next__()
        except UserError as error:
            raise UserError(str(error).strip().rpartition(f"{UserError.__name__}: ")[2]) from error

    def _try_get_data(self, timeout: float = 1.0) -> Any:
        # torch looks after its workers when it has waited so long, by itself five seconds
        return super()._try_get_data(timeout)

    def _reset(self, loader: DataLoader[Any], first_iter: bool = False) -> None:
        # the handler looks at these process ids; no work has been given out yet, so none has died of it
        signal_handling._remove_worker_pids(id(self))  # type: ignore[attr-defined]
        self._worker_pids_set = False
        super()._reset(loader, first_iter)

    def deaths(self) -> list[str]:
        """What the dead workers died of, and what helps: "data worker PID was killed by SIGKILL: ...".

        In it `{option}` stands for the command's option that says how many workers there are.
        """
        ended = wait([worker.sentinel for worker in self._workers], _DYING)
        return [_cause(worker) for worker in self._workers if worker.sentinel in ended]

    def end(self) -> None:
        """End all processes; nothing that they hold is lost but samples.

        torch's own orderly end can wait for ever for a lock that a killed worker held.
        """
        self._shutdown = True  # so that torch does not try
        if hasattr(self, "_pin_memory_thread"):
            self._pin_memory_thread_done_event.set()
            self._worker_result_queue.cancel_join_thread()
            self._worker_result_queue.put((None, None))  # it wakes up, or does so by itself within five seconds
            self._pin_memory_thread.join(2 * _DYING)
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()


def _cause(worker: Any) -> str:
    worker.join()
    if worker.exitcode >= 0:
        return f"data worker {worker.pid} ended with exit code {worker.exitcode}: {_NO_ADVICE}"
    killed_by = signal.Signals(-worker.exitcode)
    return f"data worker {worker.pid} was killed by {killed_by.name}: {_ADVICE.get(killed_by, _NO_ADVICE)}"


def tell_of_loss(deaths: Sequence[str], losses: int, option: str) -> None:
    """Say that a worker is replaced. Raises UserError where it is the third in turn, without a batch between."""
    death = deaths[0].format(option=option)
    if losses == _LOSSES:
        raise UserError(f"data workers died {_LOSSES} times without a batch between; {death}")
    log.warning("%s; it is replaced, and the same pictures follow", death)


def load_batches(
    samples: Dataset[Any], batches: Sequence[Sequence[int]], join: Callable[[list[Any]], Any], *, workers: int
) -> Iterator[Any]:
    """What `join` makes of the samples of each batch, in order; workers that die are replaced.

    Raises UserError when they die again and again.
    """
    taken = losses = 0
    while taken < len(batches):
        loader = DataLoader(
            samples,
            batch_sampler=batches[taken:],  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=join,
            worker_init_fn=quiet_worker,
            generator=torch.Generator(),  # new workers do not draw from the global state
        )
        if not workers:
            yield from loader
            return
        loader.check_worker_number_rationality()
        processes = WorkerProcesses(loader)
        try:
            for batch in processes:
                taken, losses = taken + 1, 0
                yield batch
        except Exception:
            deaths = processes.deaths()
            if not deaths:
                raise
            losses += 1
            tell_of_loss(deaths, losses, "--workers")
        finally:
            processes.end()
