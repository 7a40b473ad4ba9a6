"""What a table module offers: the paper's numbers, and what a measured number must be to stand beside each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast, runtime_checkable

from kamim_analysis import plugins

PACKAGE = "kamim_analysis.figures.tables"
#: where the paper prints no number
NONE = "—"

Facts = Mapping[str, str | tuple[str, ...] | None]
"""Values of facts (`_facts.TITLES` names them all): one value, any of several, or None: nothing is said of it."""
Unit = Literal["%", "dB", "", "x"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of numbers."""

    title: str
    statistic: str
    """That of metrics.csv, less its `_k20` and `_v5`: those are the facts k and v."""
    fits: Facts
    """What a measured number must be to stand in this column."""
    expects: Facts = field(default_factory=dict)
    """What the paper did besides: a measured number may differ, and then the difference is named."""
    unit: Unit = "%"
    decimals: int = 2


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the paper's table."""

    labels: tuple[str, ...]
    fits: Facts
    values: str
    """The paper's numbers as it prints them, one for each column, between spaces; `NONE` where it has none."""
    expects: Facts = field(default_factory=dict)

    @property
    def printed(self) -> list[str]:
        """The paper's numbers, one for each column."""
        return self.values.split()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Lines by columns. What is expected of a cell: that of the grid, then of the column, then of the line."""

    stub: tuple[tuple[str, str], ...]
    """Titles of the labels' columns, and the fact that each of them tells."""
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    expects: Facts = field(default_factory=dict)
    others: Facts | None = None
    """What a measured number that fits no line must be to get a line of its own; None: there are none."""
    notes: tuple[str, ...] = ()
    """What a reader must know of the paper's numbers."""

    def expected(self, column: Column, line: Line | None) -> dict[str, str | tuple[str, ...]]:
        """What the paper did in a cell, as far as it tells."""
        merged = {**self.expects, **column.expects, **(line.expects if line else {})}
        return {key: value for key, value in merged.items() if value is not None}


@runtime_checkable
class TableModule(Protocol):
    """A module of this folder whose name begins with no underscore; the table is called like its file."""

    #: what the table shows, as its caption begins
    TITLE: str
    #: where the paper has it
    SOURCE: str
    #: its place among the tables
    ORDER: int
    GRID: Grid


def table_modules(names: Sequence[str] | None = None) -> dict[str, TableModule]:
    """Every table, or those of `names`, by name, in their order. Raises UserError for an unknown one."""
    chosen = plugins.names(PACKAGE) if names is None else names
    modules = {name: cast(TableModule, plugins.load(PACKAGE, name, "table")) for name in chosen}
    return dict(sorted(modules.items(), key=lambda item: item[1].ORDER))
