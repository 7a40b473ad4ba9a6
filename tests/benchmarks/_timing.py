"""Timing of functions against each other, in turn, so that a drifting machine bears on all alike."""

import statistics
import time
from collections.abc import Callable


def medians(functions: dict[str, Callable[[], object]], *, rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of each function over `rounds` rounds, each round calling every function once."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
