"""Asked to end, as by torchrun when another process failed or by a cluster: a command leaves nothing half-written."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

_told: list[int] = []


def leave(number: int, _frame: FrameType | None) -> None:
    """Unwind, so that what is half-written is removed, and end with the exit code that shells give a signal."""
    _told.append(number)
    sys.exit(128 + number)


@contextmanager
def orderly_termination() -> Iterator[None]:
    """SIGTERM calls `leave` within; a training takes it over while there is something to save."""
    if current_thread() is not main_thread():  # only that one may set handlers
        yield
        return
    _told.clear()
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except Exception:
        # what was interrupted may have made an error of its own out of it: a class being defined, or compiled code,
        # which knows no SystemExit, and in turn what caught that
        if _told:
            sys.exit(128 + _told[0])
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
