"""Many pictures' draws of one strategy."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kamim_analysis import plugins
from kamim_analysis.masking._masking import Amount
from kamim_analysis.shapes import Grid

GRID = Grid(14, 14)


@pytest.fixture
def draws() -> Callable[..., dict[str, Tensor]]:
    """A batch of so many pictures' draws, as a data loader stacks them."""

    def draw(name: str, amount: Amount, grid: Grid = GRID, pictures: int = 2000) -> dict[str, Tensor]:
        strategy = plugins.load("kamim_analysis.masking", name, "masking strategy").MASKING
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            drawn = [strategy.draw(grid, 16, amount) for _ in range(pictures)]
        return {key: torch.stack([one[key] for one in drawn]) for key in drawn[0]}

    return draw
