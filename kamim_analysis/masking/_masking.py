"""What a masking strategy offers: a part that is drawn for each picture, and a part that waits for scores."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from ..shapes import Grid

Scores = Literal["none", "attention", "keypoints"]


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much of a picture is hidden; a strategy takes of it what concerns it."""

    ratio: float = 0.6
    """Mean share of the patches (SimMIM: of the units) that are hidden."""
    variation: float = 0.0
    """The share is drawn evenly from ratio - variation to ratio + variation, for each picture."""
    probability: float = 1.0
    """Chance that a picture is masked at all."""
    unit: int = 32
    """Side of SimMIM's square units in pixels."""
    show_max: float = 0.1
    """AttMask-Hint: share of the patches, those of highest score, among which some are revealed."""


class Masking(ABC):
    """A strategy. Each file of this package exports one under the name `MASKING`.

    What is random is drawn in the data worker from the picture's own random state (`draw`), so that a mask depends
    neither on the batch nor on the number of processes. What needs the network's attention, or keypoints, waits for the
    batch of scores (`mask`).
    """

    scores: ClassVar[Scores] = "none"
    """What ranks the patches, if anything does."""

    @abstractmethod
    def draw(self, grid: Grid, patch_size: int, amount: Amount) -> dict[str, Tensor]:
        """Random numbers of one picture with `grid` patches, from torch's global random state; the same names and
        shapes for every picture. Raises UserError for an amount that this strategy cannot hide."""

    @abstractmethod
    def mask(self, drawn: Mapping[str, Tensor], scores: Float[Tensor, "b n"] | None = None) -> Bool[Tensor, "b gy gx"]:
        """Masks (True = hidden) of a batch of what `draw` gave; with the patches' scores where the strategy needs them,
        row by row. Other entries of `drawn` are left alone."""
