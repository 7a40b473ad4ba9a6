"""Where and how numbers are computed: device, precision, worker threads."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from rich.console import Console

Precision = Literal["auto", "bf16", "fp32"]


def best_device() -> torch.device:
    """The current CUDA device, which is this process's own among several; or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """`auto` is bf16 on CUDA and float32 elsewhere: autocast to bf16 is many times slower on most CPUs."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def progress_console() -> "Console":
    """Where progress is shown: on a terminal, and in a notebook as a line at the end; bars there want ipywidgets."""
    from rich.console import Console

    return Console(stderr=True, force_jupyter=False)


#: seconds for which a data worker still serves after SIGTERM: as long as torchrun waits before it kills
_LAST_SERVICE = 30


def quiet_worker(_worker: int) -> None:
    """Keep OpenCV to one thread in a data worker: there are as many workers as cores already."""
    import cv2

    cv2.setNumThreads(0)


def serving_worker(worker: int) -> None:
    """A quiet worker that outlives the signals that a terminal or a cluster sends to all processes alike, so that a
    training can still end its step and save. It ends with its parent.
    """
    quiet_worker(worker)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # not ignored: a parent that ends without its worker's help terminates it, and waits for that
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.alarm(_LAST_SERVICE))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute as in a data worker, with one thread of OpenCV and of torch."""
    import cv2

    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
