"""Laid-out tables as text for a terminal, as Markdown, as LaTeX and as tidy CSV."""

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._facts import NOT_TOLD, REQUIRED, Number, title
from ._grid import NONE
from ._layout import LEGEND, NOT_RUN, UNLIKE, Cell, Laid, in_unit, texts_of

_WIDTH = 100


def rendered(tables: Sequence[Laid], style: str) -> str:
    """All tables in one of `STYLES`, with a line's end at the end."""
    return STYLES[style](tables)


def _printed(table: Laid, plain: Callable[[str], str], number: Callable[[Cell], str]) -> list[list[str]]:
    """Each line of the table as up to three: the paper's numbers, below them the measured, below them the intervals.

    `plain`: how a style writes a text, `number`: how a measured number with its marks.
    """
    lines: list[list[str]] = []
    for line in table.lines:
        rows = [("paper", [plain(cell.paper) for cell in line.cells])] if line.in_paper else []
        rows.append(("measured", [number(cell) if cell.found else plain(_none(cell)) for cell in line.cells]))
        if any(cell.interval for cell in line.cells):
            rows.append(("95% interval", [plain(cell.interval) for cell in line.cells]))
        blank = [""] * len(line.labels)
        lines += [[*map(plain, [*(blank if i else line.labels), what]), *rest] for i, (what, rest) in enumerate(rows)]
    return lines


def _none(cell: Cell) -> str:
    return NOT_RUN if cell.paper != NONE else NONE


def _head(table: Laid, plain: Callable[[str], str]) -> list[str]:
    """Titles of all columns."""
    grid = table.module.GRID
    return list(map(plain, [*(title for title, _ in grid.stub), "", *(column.title for column in grid.columns)]))


def _below(table: Laid) -> list[str]:
    """What stands under a table besides the numbered notes."""
    measured = [f"Measured models: {table.models}."] if table.models else []
    return [*measured, *table.module.GRID.notes]


def _marks(cell: Cell) -> str:
    return ",".join(map(str, cell.marks))


# --- text -----------------------------------------------------------------------------------------------------------


def _as_text(tables: Sequence[Laid]) -> str:
    return "\n\n".join([*map(_text_table, tables), _wrapped(LEGEND)]) + "\n"


def _text_table(table: Laid) -> str:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in _head(table, str):
        grid.add_column(Text(column), no_wrap=True)
    for row in _printed(table, str, _text_number):
        grid.add_row(*map(Text, row))
    written = io.StringIO()
    Console(file=written, width=1000, color_system=None).print(grid)
    lines = [line.rstrip() for line in written.getvalue().splitlines()]
    width = max(_WIDTH, *map(len, lines))
    notes = [f"({i}) {note}" for i, note in enumerate(table.notes, 1)]
    head = [f"{table.name}: {table.module.TITLE}", f"({table.module.SOURCE})", ""]
    below = [_wrapped(text, width, indent=4) for text in [*notes, *_below(table)]]
    return "\n".join([*head, *lines, "", *below])


def _wrapped(text: str, width: int = _WIDTH, *, indent: int = 0) -> str:
    return textwrap.fill(text, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)


def _text_number(cell: Cell) -> str:
    return f"{cell.value} {cell.sign}({_marks(cell)})"


# --- Markdown -------------------------------------------------------------------------------------------------------


def _as_markdown(tables: Sequence[Laid]) -> str:
    return "\n\n".join([*map(_markdown_table, tables), _markdown(LEGEND)]) + "\n"


def _markdown_table(table: Laid) -> str:
    rows = [_head(table, _markdown), *_printed(table, _markdown, _text_number)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    stub = len(table.module.GRID.stub) + 1
    lines.insert(1, "|" + " --- |" * stub + " ---: |" * (len(rows[0]) - stub))
    notes = [f"{i}. {_markdown(note)}" for i, note in enumerate(table.notes, 1)]
    head = [f"### {_markdown(f'{table.name}: {table.module.TITLE}')}", _markdown(table.module.SOURCE)]
    numbered = ["\n".join(notes)] if notes else []
    return "\n\n".join([*head, "\n".join(lines), *numbered, *map(_markdown, _below(table))])


def _markdown(text: str) -> str:
    """Text in one line that Markdown leaves as it is, entities and what readers take for mathematics too."""
    return re.sub(r"([\\|*_`<>\[\]~&$#])", r"\\\1", " ".join(text.split()))


# --- LaTeX ----------------------------------------------------------------------------------------------------------


def _as_latex(tables: Sequence[Laid]) -> str:
    return "\n\n".join(["% \\usepackage{booktabs}", *map(_latex_table, tables)]) + "\n"


def _latex_table(table: Laid) -> str:
    head, stub = _head(table, latex), len(table.module.GRID.stub) + 1
    notes = [rf"$^{{{i}}}$~{latex(note)}" for i, note in enumerate(table.notes, 1)]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{latex(table.module.TITLE)} ({latex(table.module.SOURCE)}).}}",
            rf"\label{{tab:{table.name.replace('_', '-')}}}",
            rf"\begin{{tabular}}{{{'l' * stub}{'r' * (len(head) - stub)}}}",
            r"\toprule",
            _latex_row(head),
            r"\midrule",
            *(_latex_row(row) for row in _printed(table, _latex_plain, _latex_number)),
            r"\bottomrule",
            r"\end{tabular}",
            "",
            r"\medskip\raggedright",
            " \\par\n".join([*notes, *map(latex, [*_below(table), LEGEND])]),
            r"\end{table*}",
        ]
    )


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_plain(text: str) -> str:
    """Numbers and intervals in mathematics, other texts escaped."""
    return f"${text}$" if re.fullmatch(r"[\d.]+|\[-?[\d.]+, -?[\d.]+\]", text) else latex(text)


def _latex_number(cell: Cell) -> str:
    sign = {"": "", UNLIKE: r"\neq\,"}.get(cell.sign, cell.sign)
    value = cell.value.replace("x", r"\times")
    return rf"${value}^{{{sign}{_marks(cell)}}}$"


# the end of a row takes a bracket or an asterisk that follows for its own
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}", "[": "{[}", "*": "{*}",
    "≠": r"$\neq$", "—": "---", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def latex(text: str) -> str:
    r"""Text in one line with LaTeX's own characters escaped.

    >>> print(latex("A_B & 50%"))
    A\_B \& 50\%
    """
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


# --- CSV ------------------------------------------------------------------------------------------------------------


def _as_csv(tables: Sequence[Laid]) -> str:
    rows = [
        _csv_row(table, " / ".join(label for label in line.labels if label), cell)
        for table in tables
        for line in table.lines
        for cell in line.cells
        if cell.found or cell.paper != NONE
    ]
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def _csv_row(table: Laid, line: str, cell: Cell) -> dict[str, object]:
    """One cell; numbers are in the table's unit."""
    paper = re.search(r"[\d.]+", cell.paper)
    row: dict[str, object] = {
        "table": table.name, "row": line, "column": cell.column.title, "unit": cell.column.unit,
        "paper": paper[0] if paper else "",
    }  # fmt: skip
    found = cell.found
    if found is None:
        return row | {"status": NOT_RUN}
    number, column = found.number, cell.column
    values = {"value": number.value, "ci_low": number.low, "ci_high": number.high}
    status = {"": "as in the paper", UNLIKE: "unlike the paper"}.get(cell.sign, "not all told")
    return {
        **row,
        "status": status,
        **{key: "" if math.isnan(value) else in_unit(value, column) for key, value in values.items()},
        "images": str(number.images or ""),
        "model": number.model,
        "results": number.results,
        "evaluation": number.told("evaluation"),
        **{key: number.protocol.get(key, "") for key in REQUIRED},
        "protocol": "; ".join(f"{title(key)} {text}" for key, text in number.protocol.items()),
        "differences": _against(found.differences, number),
        "not_told": _against(found.untold, number),
        "notes": " ".join(texts_of(found, column)[1:]),
    }


def _against(papers: Mapping[str, str], number: Number) -> str:
    """Ours against the paper's, fact by fact."""
    return "; ".join(f"{title(key)} {number.told(key) or NOT_TOLD} (paper: {text})" for key, text in papers.items())


STYLES: dict[str, Callable[[Sequence[Laid]], str]] = {
    "paper": _as_text,
    "markdown": _as_markdown,
    "latex": _as_latex,
    "csv": _as_csv,
}
