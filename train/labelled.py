"""Pictures with classes: those to learn from, and others to judge by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from kamim_analysis.data import Pictures, has_two_splits, open_pictures
from kamim_analysis.errors import UserError
from kamim_analysis.splits import stratified


@dataclass(frozen=True)
class Labelled:
    """Two splits that share no picture."""

    source: str
    train: Pictures
    test: Pictures
    classes: int
    held_out: float | None
    """The share of each class that was held out for testing, where the source has one split."""


def open_labelled(source: str, root: str | None, held_out: float, seed: int) -> Labelled:
    """The source's training and validation pictures; of a source with one split, `held_out` of each class for testing.

    Raises UserError where labels are missing, there is a single class, or a class has too few pictures to be split.
    """
    pictures = open_pictures(source, "train", root=root, seed=seed)
    if has_two_splits(source):
        test = open_pictures(source, "val", root=root, seed=seed)
        return Labelled(source, pictures, test, _classes(source, pictures, test), None)
    classes = _classes(source, pictures)
    assert pictures.labels is not None  # only data sets by name read first, and those have two splits
    labels = torch.as_tensor(np.asarray(pictures.labels))
    parts = stratified(labels, (1 - held_out, held_out), seed, pictures.classes)
    train, test = (subset(pictures, part.numpy()) for part in parts)
    return Labelled(source, train, test, classes, held_out)


def subset(pictures: Pictures, indices: Sequence[int] | ndarray) -> Pictures:
    """Some of the pictures, in the order of `indices`."""
    chosen = np.asarray(indices)
    return replace(
        pictures,
        labels=None if pictures.labels is None else pictures.labels[chosen],
        length=len(chosen),
        reader=_Through(pictures.reader, chosen),
        namer=_Through(pictures.namer, chosen),
        marker=_Through(pictures.marker, chosen),
        opener=None if pictures.opener is None else _Through(pictures.opener, chosen),
        shards=None if pictures.shards is None else pictures.shards[chosen],
    )


def first_of_each_class(pictures: Pictures, count: int) -> Pictures:
    """The `count` pictures of each class that come first by name, in the order of all pictures.

    Raises UserError where labels are missing or a class has fewer.
    """
    if pictures.labels is None or pictures.unlabelled:
        raise UserError(f"labels missing in {pictures.name!r}, of whose classes data.per_class takes {count} pictures")
    labels = np.asarray(pictures.labels)
    by_name = np.array(sorted(range(len(pictures)), key=lambda i: (labels[i], pictures.identity(i))))
    classes, starts, sizes = np.unique(labels[by_name], return_index=True, return_counts=True)
    if sizes.min() < count:
        name = pictures.classes[classes[sizes.argmin()]] if pictures.classes else classes[sizes.argmin()]
        raise UserError(f"class {name!r} has {sizes.min()} pictures; set data.per_class to {sizes.min()} or less")
    return subset(pictures, np.sort(np.concatenate([by_name[start : start + count] for start in starts])))


@dataclass(frozen=True)
class _Through:
    function: Any
    indices: ndarray

    def __call__(self, position: int) -> Any:
        return self.function(int(self.indices[position]))


def _classes(source: str, *splits: Pictures) -> int:
    """How many classes there are in all splits together."""
    remedy = "give a directory with a folder of pictures for each class"
    for split in splits:
        if split.unlabelled:
            raise UserError(f"labels missing in {source!r}: {split.unlabelled}; {remedy}")
    labels = [np.asarray(split.labels) for split in splits if split.labels is not None]
    named = max(len(split.classes) for split in splits)
    if any((some < 0).any() for some in labels) or not (labels or named):
        raise UserError(f"labels missing in {source!r}; {remedy}")
    count = max([named, *(int(some.max()) + 1 for some in labels if len(some))])
    if count < 2 or (labels and len(np.unique(np.concatenate(labels))) < 2):
        raise UserError(
            f"the pictures of {source!r} have a single class, and to tell classes apart takes two; {remedy}"
        )
    return count
