"""Signals that ask a training to end: it saves first."""

import logging
import signal
from threading import current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from kamim_analysis import termination

from .parallel import Parallel

log = logging.getLogger(__name__)

_ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
#: handlers that are taken over; whoever set another, as submitit does, wants it kept
_PLAIN = (signal.SIG_DFL, signal.default_int_handler, termination.leave)


class Interruption:
    """While this is entered, SIGTERM, SIGUSR1 and Ctrl-C only ask for an end, which comes after a step that is saved.

    A second Ctrl-C does not wait for that. Under torchrun, which passes on what its processes may have been sent
    already, it does: there, torchrun ends what takes too long.
    """

    def __init__(self, parallel: Parallel) -> None:
        self.parallel = parallel
        self.noted = 0
        self.before: dict[int, Any] = {}
        # over gloo, on the CPU: the device does not wait for it
        self.group: Any = dist.new_group(backend="gloo") if parallel.processes > 1 else None
        self.exchange: tuple[Any, Tensor] | None = None

    def __enter__(self) -> "Interruption":
        if current_thread() is main_thread():  # only that one may set handlers
            for one in _ASKING:
                if signal.getsignal(one) in _PLAIN:
                    self.before[one] = signal.signal(one, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for one, handler in self.before.items():
            signal.signal(one, handler)
        asked = 0 if kind else self._agreed()
        if asked:  # during the last step, which is saved
            raise _end(asked)

    def asked(self) -> int | None:
        """The signal that some process was sent, which all processes learn at the same step; None without one.

        All processes call this once a step. Several learn at the next step what one was sent in this one, so that
        none of them waits for the others.
        """
        agreed = self._agreed()
        if self.group is not None:
            highest = torch.tensor(self.noted)
            work = dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group, async_op=True)
            self.exchange = work, highest
        return agreed or None

    def leave(self, number: int, step: int) -> None:
        """End as the signal asks, its checkpoint being written: KeyboardInterrupt, or exit code 128 + the signal's."""
        self._agreed()  # no process goes before the others have heard it
        if self.parallel.is_first:
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            log.info("step %d saved after %s; the same command goes on", step, name)
        raise _end(number)

    def _agreed(self) -> int:
        """What is noted; of several processes, what any had noted when `asked` was last called."""
        if self.group is None:
            return self.noted
        if self.exchange is None:
            return 0
        work, highest = self.exchange
        work.wait()
        self.exchange = None
        return int(highest)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.noted and self.group is None:
            raise KeyboardInterrupt
        self.noted = number


def _end(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
