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

from ._figure import metrics_of
from ._log_axis import plain_ticks
from ._style import (
    GRAY,
    INK,
    Look,
    character_inches,
    legend_below,
    line_inches,
    looks,
    name,
    plot_axes,
    scaled,
    small_points,
    style,
    styled,
    width_inches,
    wrapped,
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
# of the width, a map; of a row of panels, the plots
_MAP, _PLOT, _MAP_COLUMNS = 0.166, 1.4, 5


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
    maps = _maps(results, table)
    lines = max((_heading(found).count("\n") + 1 for found in maps), default=0)
    plot_inches = _PLOT * style().panel_inches
    map_inches = -(-len(maps) // _MAP_COLUMNS) * (_MAP * width_inches() + lines * line_inches())
    figure = Figure(figsize=(width_inches(), plot_inches + map_inches), layout="constrained")
    parts = figure.add_gridspec(1 + bool(maps), 1, height_ratios=[plot_inches, *[map_inches] * bool(maps)])
    plots = parts[0].subgridspec(1, 2)
    left, right = (plot_axes(figure.add_subplot(plots[i])) for i in range(2))
    handles: dict[str, Line2D] = {}
    for label, look in looks(results).items():
        rows = table[table.model == label].pivot(index="layer", columns="statistic", values="value").sort_index()
        if not rows.empty:
            text = f"{label}: {_percent(rows.outlier_share.iloc[-1])} outliers"
            handles[text] = _draw_depth(left, rows, look)
            _draw_histogram(right, results.arrays("tokens", label), rows.norm_p75.iloc[-1], look)
    _set_up(left, right, positive=bool((table.value[table.statistic == "norm_p95"] > 0).any()))
    if maps:
        _draw_maps(figure, parts[1], maps, looks(results))
    legend_below(figure, list(handles.values()), list(handles))
    return figure


def numbers(results: Results) -> pd.DataFrame:
    """Quantiles and shares of outliers by layer, then the last layer's histograms, then the maps, patch by patch."""
    shown = ["norm_p5", "norm_median", "norm_p99", "outlier_share"]
    # without intervals: the bands are of tokens, not of how well a mean is known
    table = metrics_of(results, "token_norms", shown)[["model", "layer", "statistic", "value"]]
    parts = [table]
    for label in table.model.unique():
        share, edges = _histogram(results.arrays("tokens", label))
        bins = {"bin_from": edges[:-1], "bin_to": edges[1:], "value": share / 100}
        parts.append(pd.DataFrame({"model": label, "layer": table[table.model == label].layer.max(),
                                   "statistic": "share_of_tokens", **bins}))  # fmt: skip
    for found in _maps(results, results.select("token_norms")):
        row, column = np.indices(found.share.shape).reshape(2, -1)
        places = {"patch_row": row, "patch_column": column, "value": found.share.reshape(-1)}
        parts.append(pd.DataFrame({"model": found.label, "layer": found.layer,
                                   "statistic": "share_of_pictures_with_outlier", **places}))  # fmt: skip
    whole = dict.fromkeys(("layer", "patch_row", "patch_column"), "Int64")
    return pd.concat(parts).astype({key: kind for key, kind in whole.items() if key in set().union(*parts)})


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
        layers, rows.norm_median, color=look.colour, linestyle=look.line, marker=look.marker, markersize=scaled(3.5)
    )
    return line


def _draw_histogram(axes: Axes, arrays: Mapping[str, NDArray[Any]], quartile: float, look: Look) -> None:
    """From the first to the last bin that holds any token; a tick at the outliers' cut."""
    share, edges = _histogram(arrays)
    axes.stairs(share, edges, color=look.colour, linestyle=look.line, linewidth=scaled(1.2))
    transform = axes.get_xaxis_transform()
    axes.plot(3 * quartile, 0.02, color=look.colour, marker="|", markersize=scaled(9), transform=transform)


def _histogram(arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Percent of the last layer's tokens in each bin, and the bins' edges."""
    counts = arrays["norm_histogram"][-1]
    held = np.flatnonzero(counts)
    first, last = held[0], held[-1] + 1
    return 100 * counts[first:last] / counts.sum(), arrays["norm_edges"][first : last + 1]


def _set_up(left: Axes, right: Axes, *, positive: bool) -> None:
    # tokens that are all zero have no place on a logarithmic scale
    left.set(xlabel="layer (0: embedding)", ylabel="norm of patch tokens", yscale="log" if positive else "linear")
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    right.set(xlabel="norm of patch tokens, last layer", ylabel="tokens (%)", xscale="log", yscale="log")
    for axis in (left.yaxis, right.xaxis, right.yaxis):
        plain_ticks(axis)
    note = "beyond a tick (3 \N{MULTIPLICATION SIGN} upper quartile): outliers, share below"
    for axes, text in ((left, "line: median; band: 5% to 99% of a picture's tokens"), (right, note)):
        lines = wrapped(text, 0.42 * width_inches(), small_points())
        axes.set_title(lines, loc="left", fontsize=small_points(), color=GRAY)


def _maps(results: Results, table: pd.DataFrame) -> list[_Map]:
    images = int(table.images.max())
    return [found for label in results.models if (found := _map(results, label, images)) is not None]


def _map(results: Results, label: str, images: int) -> _Map | None:
    """Places of outliers behind the block that has most; None where no place has one in two pictures or more."""
    arrays = results.arrays("tokens", label)
    shares = {i: arrays[key] for i in range(1, len(arrays)) if (key := f"norm_outliers{i}") in arrays}
    layer = max(shares, key=lambda i: float(shares[i].mean()), default=0)
    return _Map(label, layer, shares[layer]) if shares and shares[layer].max() * images > 1.5 else None


def _heading(found: _Map) -> str:
    label = name(found.label, int(_MAP * width_inches() / character_inches()))
    text = f"layer {found.layer}: {_percent(float(found.share.mean()))} outliers"
    return f"{label}\n{wrapped(text, _MAP * width_inches(), small_points())}"


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
        axes.set_title(_heading(found), fontsize=small_points(), color=GRAY if by_label[found.label].control else INK)
        _fit(axes, found.share.shape)
    bar = figure.colorbar(shown, cax=figure.add_subplot(cells[:, columns]))
    bar.set_label("pictures with an\noutlier there (%)", fontsize=small_points())
    bar.ax.tick_params(labelsize=small_points(), length=0)
    bar.outline.set_visible(False)


def _fit(axes: Axes, shape: Sequence[int]) -> None:
    """A map in the middle of its cell, which is square: an equal aspect would keep the layout from settling."""
    height, width = shape
    half, x, y = max(shape) / 2, (width - 1) / 2, (height - 1) / 2
    axes.set(xlim=(x - half, x + half), ylim=(y + half, y - half))
    axes.set_axis_off()
