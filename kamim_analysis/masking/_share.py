"""The share of one picture's patches that is hidden, and the whole number of patches that a share is."""

import torch

from ..errors import UserError
from ._masking import Amount


def whole(share: float, patches: int) -> int:
    """Patches in a share of them: the floor, robust to floating point (0.29 x 100 is 28.999999999999996).

    >>> whole(0.29, 100), whole(0.3, 196)
    (29, 58)
    """
    return int(round(share * patches, 9))


def draw_share(amount: Amount, patches: int) -> float:
    """One picture's share: even over ratio +- variation, or 0 with chance 1 - probability, as in iBOT and AttMask.

    Draws two numbers from torch's global random state, whatever the amount. Raises UserError for an amount that hides
    not one of so many patches in any picture.
    """
    largest = amount.ratio + amount.variation
    if whole(largest, patches) < 1:
        raise UserError(f"a mask ratio of at most {largest:g} hides none of {patches} patches; give a larger one")
    chance, place = torch.rand(2, dtype=torch.float64).tolist()
    if chance >= amount.probability:
        return 0.0
    return amount.ratio + amount.variation * (2 * float(place) - 1)
