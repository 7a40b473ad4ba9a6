"""Which pictures a frozen model is shown: the same for every model of a command."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray

from .data import Pictures, Unreadable, has_two_splits, open_pictures
from .errors import UserError


@dataclass(frozen=True)
class ChosenPictures:
    """Pictures to analyse and, where the data have a training split, its pictures that serve as neighbours."""

    source: str
    test: Pictures
    test_indices: list[int]
    bank: Pictures | None
    bank_indices: list[int]
    unreadable: Unreadable

    def changed(self) -> list[str]:
        """Pictures that are no longer marked as they were (`Pictures.stamp`) when this was first asked, sorted.

        Those that could not be read are left out. `unreadable.check` tells of them.
        """
        stamps = zip(self._at_first, self._stamps(), self._names(), strict=True)
        self.unreadable.changed |= {name for before, now, name in stamps if before != now} - self.unreadable.names
        return sorted(self.unreadable.changed)

    @cached_property
    def _at_first(self) -> list[int]:
        return list(self._stamps())

    def _stamps(self) -> Iterator[int]:
        """Their check sums: of a million pictures, a hundredth of what the texts would take."""
        for pictures, index in self._all():
            yield zlib.crc32(pictures.stamp(index).encode(errors="surrogateescape"))

    def _names(self) -> Iterator[str]:
        return (pictures.identity(index) for pictures, index in self._all())

    def _all(self) -> Iterator[tuple[Pictures, int]]:
        yield from ((self.test, index) for index in self.test_indices)
        if self.bank is not None:
            yield from ((self.bank, index) for index in self.bank_indices)

    @property
    def neighbours(self) -> int:
        """Pictures that can be a neighbour of a test picture: the bank, or all others."""
        return len(self.bank_indices) if self.bank else len(self.test_indices) - 1

    @property
    def classes(self) -> int | None:
        """Classes among the test pictures, or None where labels are known only after reading."""
        labels = self.test.labels
        return None if labels is None else len(np.unique(labels[self.test_indices]))

    @property
    def single_class(self) -> bool:
        """Whether nothing can be told apart."""
        return self.classes == 1


def check_classes(data: ChosenPictures) -> None:
    """Raise UserError where what features tell of classes cannot be measured: labels missing, or one class only."""
    for which, pictures, indices in (("", data.test, data.test_indices), ("training ", data.bank, data.bank_indices)):
        if pictures is None:
            continue
        if pictures.unlabelled:
            raise UserError(f"labels missing in {data.source!r}: {pictures.unlabelled}; k-NN and probes need classes")
        if pictures.labels is not None and len(np.unique(pictures.labels[indices])) == 1:
            raise UserError(f"the {which}pictures of {data.source!r} have a single class; k-NN and probes need two")


def open_data(
    source: str,
    root: str | None,
    images: int | None,
    seed: int,
    *,
    max_unreadable: float,
    shown: tuple[int, ...] = (),
    bank_all: bool = False,
) -> ChosenPictures:
    """Choose `images` pictures (None: all), the first sum(shown) of them for display.

    The bank holds all training pictures with `bank_all`, else twice as many as are analysed.
    """
    test = open_pictures(source, "val", root=root, seed=seed)
    indices = choose(test, images, seed, shown=shown)
    bank, bank_indices = None, []
    if has_two_splits(source):
        bank = open_pictures(source, "train", root=root, seed=seed)
        bank_indices = choose(bank, None if bank_all or images is None else 2 * images, seed)
    unreadable = Unreadable(len(indices) + len(bank_indices), max_unreadable)
    chosen = ChosenPictures(source, test, indices, bank, bank_indices, unreadable)
    chosen.changed()  # from now on
    return chosen


def choose(pictures: Pictures, count: int | None, seed: int, *, shown: tuple[int, ...] = ()) -> list[int]:
    """Indices of `count` pictures (all when None) in a seeded random order.

    The first sum(shown) are for display: shown[0] of one class, shown[1] of another, ..., in turns; the classes are
    drawn too. Figure 10 of KAMIM takes (6, 6, 4). Fewer where a class has fewer.
    """
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(pictures))
    if pictures.labels is not None and shown:
        order = _display_first(order, np.asarray(pictures.labels), shown, draw)
    return [int(i) for i in order[:count]]


def _display_first(order: ndarray, labels: ndarray, shown: tuple[int, ...], draw: np.random.Generator) -> ndarray:
    """The pictures for display at the head of the order, their classes taking turns as long as each has one left."""
    classes, counts = np.unique(labels, return_counts=True)
    mixed = draw.permutation(len(classes))
    classes, counts = classes[mixed], counts[mixed]
    # a class with too few pictures stands behind every class with enough
    chosen = classes[np.argsort(counts < max(shown), kind="stable")][: len(shown)]
    groups = [order[labels[order] == label][:size] for label, size in zip(chosen, shown, strict=False)]
    first = [group[turn] for turn in range(max(shown)) for group in groups if turn < len(group)]
    return np.concatenate([first, order[~np.isin(order, first)]])
