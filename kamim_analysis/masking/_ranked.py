"""Masks by rank: the patches of highest or lowest score are hidden (AttMask, arXiv 2203.12719, section 3.3).

Which ranks are hidden is drawn in the data worker, before anyone knows the scores; which patches have them is seen on
the batch.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..shapes import Grid
from ._masking import Amount, Masking
from ._share import draw_share, whole


def hide_ranks(
    scores: Float[Tensor, "b n"], hidden_ranks: Bool[Tensor, "b n"], ties: Int[Tensor, "b gy gx"]
) -> Bool[Tensor, "b gy gx"]:
    """Masks (True = hidden) of the patches whose rank by score, 0 the highest, is hidden.

    Patches of equal score rank in the order of `ties`, a random permutation: most patches have no keypoint, and any
    fixed order would hide the same corner in every picture.

    >>> scores = torch.tensor([[0.1, 0.7, 0.2, 0.2]])
    >>> hide_ranks(scores, torch.tensor([[True, True, False, False]]), torch.tensor([[[0, 1], [3, 2]]]))
    tensor([[[False,  True],
             [False,  True]]])
    """
    shuffled = ties.flatten(1).argsort(1)
    order = shuffled.gather(1, scores.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    return torch.zeros_like(hidden_ranks).scatter(1, order, hidden_ranks).reshape(ties.shape)


def highest(share: float, patches: int) -> Bool[Tensor, " n"]:
    """Ranks hidden: the floor of share x patches, from the first."""
    return torch.arange(patches) < whole(share, patches)


def lowest(share: float, patches: int) -> Bool[Tensor, " n"]:
    """Ranks hidden: as many, up to the last."""
    return highest(share, patches).flip(0)


def hinted(share: float, patches: int, show_max: float) -> Bool[Tensor, " n"]:
    """Ranks hidden: `highest`, less hints drawn at random from torch's global random state.

    Floor(show_max x share x patches) hints among the hidden of the floor(show_max x patches) highest ranks. AttMask's
    public code draws another share for the hints than for the mask; the paper has one, as here.
    """
    hidden = highest(share, patches)
    among = min(whole(show_max, patches), whole(share, patches))
    hidden[torch.randperm(among)[: whole(show_max * share, patches)]] = False
    return hidden


class Ranked(Masking):
    """What ranks the patches is for the strategies to say (`scores`)."""

    @abstractmethod
    def hidden_ranks(self, share: float, patches: int, amount: Amount) -> Bool[Tensor, " n"]:
        """Which ranks of one picture are hidden."""

    def draw(self, grid: Grid, patch_size: int, amount: Amount) -> dict[str, Tensor]:
        """`mask_ranks` [N], the ranks that are hidden, and `mask_ties` [H, W], which patch comes first among equals."""
        ranks = self.hidden_ranks(draw_share(amount, grid.area), grid.area, amount)
        return {"mask_ranks": ranks, "mask_ties": torch.randperm(grid.area).reshape(grid)}

    def mask(self, drawn: Mapping[str, Tensor], scores: Float[Tensor, "b n"] | None = None) -> Bool[Tensor, "b gy gx"]:
        """Of the scores' ranks."""
        if scores is None:
            raise ValueError(f"{type(self).__name__} needs a score of each patch")
        return hide_ranks(scores, drawn["mask_ranks"], drawn["mask_ties"])


class High(Ranked):
    """Exactly the floor of share x patches, those of highest score."""

    def hidden_ranks(self, share: float, patches: int, amount: Amount) -> Bool[Tensor, " n"]:
        """The first."""
        return highest(share, patches)


class Low(Ranked):
    """Exactly the floor of share x patches, those of lowest score."""

    def hidden_ranks(self, share: float, patches: int, amount: Amount) -> Bool[Tensor, " n"]:
        """The last."""
        return lowest(share, patches)


class Hint(Ranked):
    """As High, and some of the very highest are revealed again: hints of what is hidden."""

    def hidden_ranks(self, share: float, patches: int, amount: Amount) -> Bool[Tensor, " n"]:
        """The first, less the hints."""
        return hinted(share, patches, amount.show_max)
