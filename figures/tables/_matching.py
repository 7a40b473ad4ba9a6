"""Which measured number stands in a cell of a paper's table, and how it was not measured as the paper's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ._facts import Number
from ._grid import Column, Facts, Grid, Line
from ._names import SIZES

_IN_WORDS: Mapping[tuple[str, str | tuple[str, ...]], str] = {
    ("augmentation", "paper"): "TrivialAugment and erasing",
    ("mixing", "both"): "CutMix or MixUp",
}
Expected = dict[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Found:
    """A measured number in a cell."""

    number: Number
    differences: Mapping[str, str]
    """Facts in which the number was measured otherwise than the paper's, with what the paper did."""
    untold: Mapping[str, str]
    """Facts that neither the results nor the weights tell, with what the paper did."""
    others: tuple[Number, ...]
    """Further numbers that fit the cell, in protocols further from the paper's."""


def find(grid: Grid, line: Line, column: Column, numbers: Sequence[Number]) -> Found | None:
    """The number closest to the paper's protocol of those that fit a cell."""
    fitting = [number for number in numbers if fits(number, column) and _agrees_with(number, line.fits)]
    return closest(grid.expected(column, line), fitting)


def fits(number: Number, column: Column) -> bool:
    """Whether a number is of the kind that a column holds."""
    return number.statistic == column.statistic and _agrees_with(number, column.fits)


def fits_no_line(number: Number, grid: Grid) -> bool:
    """Whether a number is of the table but in none of the paper's lines."""
    if grid.others is None or not _agrees_with(number, grid.others):
        return False
    return not any(_agrees_with(number, line.fits) for line in grid.lines)


def closest(expected: Expected, fitting: Sequence[Number]) -> Found | None:
    """The number in the protocol closest to the paper's, with all others.

    Closest: of the paper's evaluation, data set and encoder before others; then with the fewest differences, and the
    fewest facts that nobody tells; then over the most images; then the first that the command line gave.
    """

    def distance(number: Number) -> tuple[int, int, int, int]:
        different = differences(number, expected)
        first = sum(key in different for key in ("evaluation", "data", "encoder"))
        return first, len(different), len(_untold(number, expected)), -number.images

    if not fitting:
        return None
    best, *others = sorted(fitting, key=distance)
    return Found(best, differences(best, expected), _untold(best, expected), tuple(others))


def differences(number: Number, expected: Expected) -> dict[str, str]:
    """In which facts a number was measured otherwise than the paper's, with what the paper did."""
    named = {key: _text(key, value) for key, value in expected.items() if _differs(number, key, value)}
    return named | _not_whole(number, expected)


def _untold(number: Number, expected: Expected) -> dict[str, str]:
    return {key: _text(key, value) for key, value in expected.items() if number.told(key) is None}


def _not_whole(number: Number, expected: Expected) -> dict[str, str]:
    """On the paper's data set: fewer pictures than its splits have."""
    sizes = SIZES.get(str(expected.get("data")))
    if sizes is None or _differs(number, "data", str(expected["data"])):
        return {}
    whole = {"test": sizes.test}
    if "train" not in expected and number.facts["evaluation"] != "few_shot":  # a few pictures a class, as asked
        whole["train"] = sizes.train
    return {key: f"all {size}" for key, size in whole.items() if number.told(key) not in (None, str(size))}


def _agrees_with(number: Number, facts: Facts) -> bool:
    return all(
        number.told(key) is not None and not _differs(number, key, value) for key, value in facts.items() if value
    )


def _differs(number: Number, key: str, value: str | tuple[str, ...]) -> bool:
    """Whether a fact is told and is none of the values."""
    told = number.told(key)
    return told is not None and not any(
        _same(key, told, one) for one in ((value,) if isinstance(value, str) else value)
    )


def _same(key: str, ours: str, theirs: str) -> bool:
    """Equal as texts or as numbers; a layer `8 of 12` is 8, and `12 of 12` is 12 and the last."""
    if key == "layer":
        layer, _, last = ours.partition(" of ")
        return theirs in (ours, layer) or (theirs == "last" and layer in (last, "last"))
    if key == "data" and ours.startswith(f"{theirs} ("):
        return True
    return ours == theirs or _as_number(ours) == _as_number(theirs)


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _text(key: str, value: str | tuple[str, ...]) -> str:
    """What the paper did, where our setting's value has no words for it."""
    return _IN_WORDS.get((key, value)) or (value if isinstance(value, str) else " or ".join(value))
