"""Accuracy of linear probes by layer and pooling, and which of them was chosen on held-out pictures."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kamim_analysis.protocol import items
from kamim_analysis.results import Results

from ._depth import draw_line
from ._figure import metrics_of
from ._style import (
    COLOURS,
    GRAY,
    MARKERS,
    Look,
    column_figure,
    legend_below,
    looks,
    note_above,
    panel_grid,
    plot_axes,
    scaled,
    styled,
)

TITLE = "Linear probes of frozen features by layer"
ORDER = 21
SOURCE = "linear probing; choice on held-out training pictures, without augmentation"
NEEDS = ("fast_probe",)
EXAMPLES = False
HOW_TO_READ = (
    "The higher, the better a linear classifier tells classes apart from that layer's features; of a model only the "
    "ringed probe was chosen without looking at the test pictures, so that one is its number to report."
)
_PREFIX, _BEST, _MAJORITY = "top1_", "top1_best", "majority"
_COLUMNS = 3


@styled
def draw(results: Results) -> Figure | None:
    """Of one model a line for each pooling; of several a panel for each pooling with a line for each model."""
    table = numbers(results)
    if table.empty:
        return None
    poolings, single = list(dict.fromkeys(table.pooling)), table.model.nunique() == 1
    titles = [""] if single else poolings
    rows = -(-len(titles) // _COLUMNS)
    figure = column_figure() if single else panel_grid(rows)
    majority = metrics_of(results, "fast_probe", [_MAJORITY]).value
    note_above(
        figure,
        "bands: 95% confidence interval over test images; ring: chosen on held-out training images"
        + ("; gray dashes: always the commonest class" if len(majority) else ""),
    )
    grid = figure.subplots(rows, min(len(titles), _COLUMNS), squeeze=False, sharex=True, sharey=True)
    lines: dict[str, Line2D] = {}
    for axes, title in zip(grid.flat, titles, strict=False):
        plot_axes(axes).set_title(title, loc="left")
        for name, look, of_line in _lines(results, table, title):
            if not of_line.empty:
                lines[name] = _draw(axes, of_line, look)
        for share in majority.unique():
            axes.axhline(100 * share, color=GRAY, linewidth=scaled(0.8), linestyle=(0, (6, 3)), zorder=1)
    _set_up(figure, [list(row) for row in grid], len(titles), table)
    legend_below(figure, list(lines.values()), list(lines))
    return figure


def numbers(results: Results) -> pd.DataFrame:
    """Test accuracy by layer and pooling; `chosen`: on the held-out pictures, of all layers and poolings of a model."""
    table = metrics_of(results, "fast_probe")
    table = table[table.statistic.str.startswith(_PREFIX)]
    table = table.assign(pooling=[items(text).get("pooling", "") for text in table.protocol])
    of_model = ["model", "layer", "pooling"]
    best = set(table[table.statistic == _BEST][of_model].itertuples(index=False, name=None))
    table = table[table.statistic != _BEST]
    return table.assign(chosen=[key in best for key in table[of_model].itertuples(index=False, name=None)])


def _lines(results: Results, table: pd.DataFrame, title: str) -> Iterator[tuple[str, Look, pd.DataFrame]]:
    """Name, look and rows of each line in a panel: of a pooling by model, or of the one model by pooling."""
    if title:
        rows = table[table.pooling == title]
        yield from ((name, look, rows[rows.model == name]) for name, look in looks(results).items())
        return
    for i, pooling in enumerate(dict.fromkeys(table.pooling)):
        look = Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], "-", False)
        yield pooling, look, table[table.pooling == pooling]


def _draw(axes: Axes, rows: pd.DataFrame, look: Look) -> Line2D:
    """In percent, the chosen layer ringed."""
    numbers = ["value", "ci_low", "ci_high"]
    rows = rows.sort_values("layer").assign(**{name: 100 * rows[name] for name in numbers})
    chosen = rows[rows.chosen]
    axes.plot(
        chosen.layer.to_numpy(float), chosen.value, linestyle="", marker="o", markersize=scaled(8.5),
        markerfacecolor="none", markeredgecolor=look.colour, markeredgewidth=scaled(1), zorder=4,
    )  # fmt: skip
    return draw_line(axes, rows, look, small=True)


def _set_up(figure: Figure, grid: list[list[Axes]], panels: int, table: pd.DataFrame) -> None:
    axes = [one for row in grid for one in row]
    for empty in axes[panels:]:
        empty.remove()
    for one in axes[max(panels - len(grid[0]), 0) : panels]:
        one.set_xlabel("layer" + (" (0: embedding)" if table.layer.min() == 0 else ""))
        one.tick_params(labelbottom=True)
        one.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for row in grid:
        row[0].set_ylabel("top-1 accuracy (%)")
    axes[0].set_xlim(table.layer.min() - 0.4, table.layer.max() + 0.4)
