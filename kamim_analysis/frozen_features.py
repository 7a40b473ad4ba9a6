"""The features that an evaluation of a frozen encoder works on: from a store that holds them, or extracted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError
from .extraction import Extractor, Features, Key, Loading, Wanted, extract
from .feature_store import FeatureStore, open_store
from .fingerprints import describe_encoder
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
    """Features of `data` in its order: of the first store that fits, or extracted where no store is given.

    Raises UserError where stores are given and none fits, naming what differs, and whatever `extract` raises.
    """
    bank = None
    if stores:
        keys = Extractor(opened.encoder, wanted).keys
        store = _fitting(opened, data, wanted, keys, stores)
        test = store.read("val", data.test, data.test_indices, keys, data.unreadable)
        if data.bank is not None:
            bank = store.read("train", data.bank, data.bank_indices, keys, data.unreadable)
        return SplitFeatures(test, bank)
    test = extract(opened, data.test, data.test_indices, wanted, data.unreadable, loading, "images")
    if data.bank is not None:
        bank = extract(opened, data.bank, data.bank_indices, wanted, data.unreadable, loading, "training images")
    return SplitFeatures(test, bank)


def _fitting(
    opened: OpenedModel, data: ChosenPictures, wanted: Wanted, keys: Sequence[Key], stores: Sequence[Path]
) -> FeatureStore:
    encoder = describe_encoder(opened)
    reasons = []
    for store in map(open_store, stores):
        reason = store.unfit_for(encoder, opened.label, keys, wanted, data)
        if not reason:
            return store
        reasons.append(reason)
    raise UserError(f"{'; '.join(reasons)}; extract them with kamim features")
