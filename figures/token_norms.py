"""Norms of patch tokens by depth, their histogram in the last layer, and where the outliers lie (arXiv 2309.16588)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kamim_analysis.results import Results

from ._log_axis import plain_ticks
from ._style import (
    GRAY,
    INCHES_PER_CHARACTER,
    INK,
    LINE_INCHES,
    SMALL_POINTS,
    WIDTH_INCHES,
    Look,
    legend_below,
    looks,
    name,
    plot_axes,
    styled,
)

TITLE = "Norms of patch tokens, and outliers among them"
ORDER = 16
SOURCE = "Vision Transformers Need Registers, arXiv 2309.16588, figure 3"
NEEDS = ("token_norms",)
EXAMPLES = False
HOW_TO_READ = (
    "Artefacts show as a second hump far to the right in the histogram: outliers are patch tokens more than 3 times as "
    "long as the upper quartile of their own picture, and a map says how often each place of the picture has one."
)
_PLOT_INCHES, _MAP_INCHES, _MAP_COLUMNS = 2.5, 1.16, 5


class _Map(NamedTuple):
    label: str
    layer: int
    share: NDArray[np.floating]
    """[rows, columns]: of the pictures"""


@styled
def draw(results: Results) -> Figure | None:
    """Left, median and spread of norms by layer; right, the last layer's histogram; below, places of outliers."""
    table = results.select("token_norms")
    if table.empty:
        return None
    images = int(table.images.max())
    maps = [found for label in results.models if (found := _map(results, label, images)) is not None]
    map_rows = -(-len(maps) // _MAP_COLUMNS)
    lines = max((_heading(found).count("\n") + 1 for found in maps), default=0)
    map_inches = map_rows * (_MAP_INCHES + lines * LINE_INCHES)
    figure = Figure(figsize=(WIDTH_INCHES, _PLOT_INCHES + map_inches), layout="constrained")
    parts = figure.add_gridspec(1 + bool(maps), 1, height_ratios=[_PLOT_INCHES, *[map_inches] * bool(maps)])
    plots = parts[0].subgridspec(1, 2)
    left, right = (plot_axes(figure.add_subplot(plots[i])) for i in range(2))
    handles: dict[str, Line2D] = {}
    for label, look in looks(results).items():
        rows = table[table.model == label].pivot(index="layer", columns="statistic", values="value").sort_index()
        if not rows.empty:
            text = f"{label}: {_percent(rows.outlier_share.iloc[-1])} outliers"
            handles[text] = _draw_depth(left, rows, look)
            _draw_histogram(right, results.arrays("tokens", label), rows.norm_p75.iloc[-1], look)
    _set_up(left, right)
    if maps:
        _draw_maps(figure, parts[1], maps, looks(results))
    legend_below(figure, list(handles.values()), list(handles))
    return figure


def _percent(share: float) -> str:
    """Two digits are enough for a share of outliers.

    >>> _percent(0.0), _percent(0.00213), _percent(0.1)
    ('0%', '0.21%', '10%')
    """
    return f"{100 * share:.2g}%"


def _draw_depth(axes: Axes, rows: pd.DataFrame, look: Look) -> Line2D:
    layers = rows.index.to_numpy(float)
    axes.fill_between(layers, rows.norm_p5, rows.norm_p99, color=look.colour, alpha=0.2, linewidth=0)
    (line,) = axes.plot(
        layers, rows.norm_median, color=look.colour, linestyle=look.line, marker=look.marker, markersize=4
    )
    return line


def _draw_histogram(axes: Axes, arrays: Mapping[str, NDArray[Any]], quartile: float, look: Look) -> None:
    """Share of the tokens in each bin, from the first to the last bin that holds any; a tick at the outliers' cut."""
    counts = arrays["norm_histogram"][-1]
    held = np.flatnonzero(counts)
    first, last = held[0], held[-1] + 1
    edges = arrays["norm_edges"][first : last + 1]
    share = 100 * counts[first:last] / counts.sum()
    axes.stairs(share, edges, color=look.colour, linestyle=look.line, linewidth=1.2)
    axes.plot(3 * quartile, 0.02, color=look.colour, marker="|", markersize=9, transform=axes.get_xaxis_transform())


def _set_up(left: Axes, right: Axes) -> None:
    left.set(xlabel="layer (0: embedding)", ylabel="norm of patch tokens", yscale="log")
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left.set_title("line: median; band: 5% to 99% of a picture's tokens", loc="left", fontsize=SMALL_POINTS, color=GRAY)
    right.set(xlabel="norm of patch tokens, last layer", ylabel="tokens (%)", xscale="log", yscale="log")
    for axis in (left.yaxis, right.xaxis, right.yaxis):
        plain_ticks(axis)
    note = "beyond a tick (3 \N{MULTIPLICATION SIGN} upper quartile): outliers, share below"
    right.set_title(note, loc="left", fontsize=SMALL_POINTS, color=GRAY)


def _map(results: Results, label: str, images: int) -> _Map | None:
    """Places of outliers behind the block that has most; None where no place has one in two pictures or more."""
    arrays = results.arrays("tokens", label)
    shares = {i: arrays[key] for i in range(1, len(arrays)) if (key := f"norm_outliers{i}") in arrays}
    layer = max(shares, key=lambda i: float(shares[i].mean()), default=0)
    return _Map(label, layer, shares[layer]) if shares and shares[layer].max() * images > 1.5 else None


def _heading(found: _Map) -> str:
    label = name(found.label, int(_MAP_INCHES / INCHES_PER_CHARACTER))
    return f"{label}\nlayer {found.layer}: {_percent(float(found.share.mean()))} outliers"


def _draw_maps(figure: Figure, part: SubplotSpec, maps: list[_Map], by_label: dict[str, Look]) -> None:
    """One colour scale for all, so that models can be compared, beside them; what is left of the width stays empty."""
    rows, columns = -(-len(maps) // _MAP_COLUMNS), min(len(maps), _MAP_COLUMNS)
    cells = part.subgridspec(rows, columns + 2, width_ratios=[*[1.0] * columns, 0.06, _MAP_COLUMNS + 0.6 - columns])
    highest = 100 * max(float(found.share.max()) for found in maps)
    for i, found in enumerate(maps):
        axes = figure.add_subplot(cells[i // columns, i % columns])
        shown = axes.imshow(
            100 * found.share, cmap="viridis", vmin=0, vmax=highest, interpolation="nearest", aspect="auto"
        )
        axes.set_title(_heading(found), fontsize=SMALL_POINTS, color=GRAY if by_label[found.label].control else INK)
        _fit(axes, found.share.shape)
    bar = figure.colorbar(shown, cax=figure.add_subplot(cells[:, columns]))
    bar.set_label("pictures with an\noutlier there (%)", fontsize=SMALL_POINTS)
    bar.ax.tick_params(labelsize=SMALL_POINTS, length=0)
    bar.outline.set_visible(False)


def _fit(axes: Axes, shape: Sequence[int]) -> None:
    """A map in the middle of its cell, which is square: an equal aspect would keep the layout from settling."""
    height, width = shape
    half, x, y = max(shape) / 2, (width - 1) / 2, (height - 1) / 2
    axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
    axes.set_axis_off()
