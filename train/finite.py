"""Losses and gradients that are not finite: the weights stay clean, and what was in the batch is told."""

from pathlib import Path
from typing import Any

from torch import Tensor

from kamim_analysis.data import Pictures

from .parallel import Parallel
from .recipe import Recipe
from .samples import Order


class Guard:
    """Keeps what is not finite out of the weights, without waiting for the device."""

    def __init__(self, out: Path, recipe: Recipe, order: Order, pictures: Pictures, parallel: Parallel) -> None:
        pass

    def protect(self, optimizer: Any, step: int, loss: Tensor, gradient_norm: Tensor) -> None:
        """Before the optimizer's step, on all processes: it changes nothing where loss or norm is not finite."""

    def check(self, step: int) -> None:
        """After a step: write down, and raise where the recipe says stop, what an earlier step (or this one) met."""
