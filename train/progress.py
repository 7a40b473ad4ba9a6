"""Where a training stands, and what follows from it alone."""

import math
from typing import NamedTuple


class Progress(NamedTuple):
    """An optimizer step of a run: everything that a schedule depends on, so that there is nothing to restore."""

    step: int
    """From 0."""
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> int:
        """The epoch that the step is in, from 0."""
        return self.step // self.steps_per_epoch

    @property
    def share(self) -> float:
        """Done of the whole run: 0 at the first step, not quite 1 at the last."""
        return self.step / (self.epochs * self.steps_per_epoch)


def cosine(first: float, last: float, share: float) -> float:
    """Half a cosine from `first` at share 0 to `last` at share 1.

    >>> cosine(0.996, 1.0, 0.5)
    0.998
    """
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
