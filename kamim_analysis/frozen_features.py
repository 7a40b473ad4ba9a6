"""The features that an evaluation of a frozen encoder works on: from a store that holds them, or extracted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .extraction import Features, Loading, Wanted, extract
from .opening import OpenedModel
from .sampling import ChosenPictures


@dataclass(frozen=True)
class SplitFeatures:
    """Features of the pictures to judge and, where the data have a training split, of those to learn from."""

    test: Features
    bank: Features | None


def frozen_features(
    opened: OpenedModel,
    data: ChosenPictures,
    wanted: Wanted,
    loading: Loading,
    stores: Sequence[Path] = (),
) -> SplitFeatures:
    """Features of `data` in its order.

    Raises UserError for a store of another model or of other data, and whatever `extract` raises.
    """
    test = extract(opened, data.test, data.test_indices, wanted, data.unreadable, loading, "images")
    bank = None
    if data.bank is not None:
        bank = extract(opened, data.bank, data.bank_indices, wanted, data.unreadable, loading, "training images")
    return SplitFeatures(test, bank)
