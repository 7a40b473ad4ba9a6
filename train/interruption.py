"""Signals that ask a training to end: it saves first."""

from types import TracebackType

from .parallel import Parallel


class Interruption:
    """While this is entered, SIGTERM, SIGUSR1 and Ctrl-C only ask."""

    def __init__(self, parallel: Parallel) -> None:
        self.parallel = parallel

    def __enter__(self) -> "Interruption":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        pass

    def asked(self) -> int | None:
        """The signal that some process was sent, which all processes learn at the same step; None without one.

        All processes call this once a step.
        """
        return None

    def leave(self, signal: int, step: int) -> None:
        """End as the signal asks, its checkpoint being written."""
