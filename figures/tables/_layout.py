"""A table laid out: the paper's numbers above the measured ones, with notes that tell every measured one's protocol."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kamim_analysis.errors import some

from ._facts import NOT_TOLD, TITLES, Number, title
from ._grid import NONE, Column, Grid, Line, TableModule
from ._matching import Found, closest, find, fits, fits_no_line

NOT_RUN = "not run"
UNLIKE, UNSURE = "≠", "?"
LEGEND = (
    "Measured: ours, with its 95% interval over images, few-shot over choices of pictures too; it says "
    "nothing of other training runs. A numbered note tells its protocol, with the paper's in brackets where that is "
    f"another or ours is not told. {UNLIKE}: in another protocol than the paper's, so the two must not be compared as "
    "they stand. "
    f"{UNSURE}: as in the paper as far as is told. {NOT_RUN}: nothing in the given results fits. {NONE}: no number in "
    "the paper, and none fits."
)


@dataclass(frozen=True)
class Cell:
    """The paper's number and the measured one."""

    column: Column
    paper: str
    """As printed; `NONE` where the paper has none."""
    found: Found | None
    marks: tuple[int, ...]
    """Numbers of its notes."""

    @property
    def sign(self) -> str:
        """Whether the measured number may be compared with the paper's."""
        if self.found is None:
            return ""
        return UNLIKE if self.found.differences else UNSURE if self.found.untold else ""

    @property
    def value(self) -> str:
        """The measured number."""
        times = "x" if self.column.unit == "x" else ""
        return "" if self.found is None else in_unit(self.found.number.value, self.column) + times

    @property
    def interval(self) -> str:
        """Its interval; empty where there is none."""
        if self.found is None or math.isnan(self.found.number.low):
            return ""
        low, high = (in_unit(bound, self.column) for bound in (self.found.number.low, self.found.number.high))
        return f"[{low}, {high}]"


@dataclass(frozen=True)
class LaidLine:
    """A line: the paper's, or one of measured numbers that the paper has no line for."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    in_paper: bool


@dataclass(frozen=True)
class Laid:
    """A table with its notes."""

    name: str
    module: TableModule
    lines: tuple[LaidLine, ...]
    notes: tuple[str, ...]
    """Those that cells' marks refer to, from 1."""
    models: str
    """Which models were measured, and in which results they stand; empty where none was."""

    @property
    def measured(self) -> bool:
        """Whether any cell has a measured number."""
        return any(cell.found for line in self.lines for cell in line.cells)


def lay_out(name: str, module: TableModule, numbers: Sequence[Number]) -> Laid:
    """Find the measured numbers of a table and write its notes."""
    grid, notes = module.GRID, _Notes()
    lines = [
        _line(line.labels, [find(grid, line, column, numbers) for column in grid.columns], grid, notes, line)
        for line in grid.lines
    ]
    for labels, some_numbers in _further(grid, numbers).items():
        found = [
            closest(grid.expected(column, None), [number for number in some_numbers if fits(number, column)])
            for column in grid.columns
        ]
        lines.append(_line(labels, found, grid, notes, None))
    return Laid(name, module, tuple(lines), tuple(notes.texts), _models(lines))


def _further(grid: Grid, numbers: Sequence[Number]) -> dict[tuple[str, ...], list[Number]]:
    """Numbers of the table's kind that fit none of the paper's lines, by what its stub tells of them."""
    found: dict[tuple[str, ...], list[Number]] = {}
    for number in numbers:
        if fits_no_line(number, grid) and any(fits(number, column) for column in grid.columns):
            labels = tuple(number.told(fact) or f"{title(fact)} {NOT_TOLD}" for _, fact in grid.stub)
            found.setdefault(labels, []).append(number)
    return found


def _line(
    labels: tuple[str, ...], found: Iterable[Found | None], grid: Grid, notes: "_Notes", line: Line | None
) -> LaidLine:
    printed = line.printed if line else [NONE] * len(grid.columns)
    cells = [
        Cell(column, paper, one, notes.of(one, column) if one else ())
        for column, paper, one in zip(grid.columns, printed, found, strict=True)
    ]
    return LaidLine(labels, tuple(cells), line is not None)


class _Notes:
    """Notes in the order in which cells need them; cells of the same note share it."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def of(self, found: Found, column: Column) -> tuple[int, ...]:
        """Numbers of a cell's notes."""
        return tuple(self._number(text) for text in texts_of(found, column))

    def _number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def texts_of(found: Found, column: Column) -> list[str]:
    """Protocol, with the paper's where it differs; how the method is known; which further numbers fit."""
    number, texts = found.number, [_protocol(found)]
    if number.by_label:
        texts.append(f"{number.model!r} is taken for {number.told('method')} by its label: its weights do not tell.")
    if found.others:
        others = [f"{in_unit(other.value, column)} ({_unlike(other, number)})" for other in found.others]
        texts.append(f"The closest to the paper's protocol of {1 + len(others)} that fit; others: {some(others, 3)}.")
    return texts


def _protocol(found: Found) -> str:
    """Every fact that is told, needed or expected; in brackets what the paper did, where that differs or is not told.

    A fact that is the same in the paper stands alone.
    """
    ours, papers = found.number.protocol, {**found.differences, **found.untold}
    parts = [
        f"{title(key)} {ours.get(key, NOT_TOLD)}" + (f" (paper: {papers[key]})" if key in papers else "")
        for key in dict.fromkeys([*TITLES, *ours])
        if key in ours or key in papers
    ]
    return f"{'; '.join(parts)}."


def _unlike(other: Number, shown: Number) -> str:
    """In what a number differs from the one shown."""
    unlike = [key for key in dict.fromkeys([*shown.facts, *other.facts]) if other.told(key) != shown.told(key)]
    facts = [f"{title(key)} {other.told(key) or NOT_TOLD}" for key in unlike]
    model = [other.model] if other.model != shown.model else []
    return ", ".join([*model, *facts, *([other.results] if other.results != shown.results else [])]) or "the same again"


def _models(lines: Sequence[LaidLine]) -> str:
    """Which models were measured, by results."""
    by_results: dict[str, dict[str, None]] = {}
    for number in (cell.found.number for line in lines for cell in line.cells if cell.found):
        by_results.setdefault(number.results, {})[number.model] = None
    return "; ".join(f"{', '.join(models)} in {results}" for results, models in by_results.items())


def in_unit(value: float, column: Column) -> str:
    """A number of metrics.csv as the table has it: a share as per cent, with the column's decimals."""
    return f"{100 * value if column.unit == '%' else value:.{column.decimals}f}"
