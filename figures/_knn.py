"""Rows of k-NN, whose statistics tell k, v and, for other poolings than the first, the pooling; and their panels."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from kamim_analysis.protocol import items
from kamim_analysis.results import Results

from ._figure import metrics_of
from ._style import Look, column_figure, legend_below, looks, note_above, panel_grid, plot_axes, scaled

#: the k that the papers quote
USUAL_K = 20
# neighbours by a few percent on a logarithmic axis, so that intervals do not hide each other
_DODGE = 0.04
_STATISTIC = re.compile(r"top1_(?:v(\d+)_)?k(\d+)(?:_\w+)?")


def knn_rows(results: Results, analysis: str) -> pd.DataFrame:
    """Accuracies of `knn` or `few_shot` with columns `pooling`, `k` and `v` (0 where all pictures were learned from).

    The pooling is empty where the protocol does not tell it.
    """
    table = metrics_of(results, analysis)
    table = table[table.statistic.str.fullmatch(_STATISTIC)]
    told = table.statistic.str.extract(_STATISTIC).fillna("0").astype(int)
    pooling = [items(text).get("pooling", "") for text in table.protocol]
    return table.assign(pooling=pooling, k=told[1], v=told[0])


def deepest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each model's deepest layer."""
    return table[table.layer == table.groupby("model").layer.transform("max")]


def at_usual_k(table: pd.DataFrame) -> pd.DataFrame:
    """Of each v the rows of the largest k up to the usual one, or else of the smallest, that all models have."""
    chosen = {}
    for v, rows in table.groupby("v"):
        shared = set.intersection(*(set(of_model.k) for _, of_model in rows.groupby("model")))
        chosen[v] = max([k for k in shared if k <= USUAL_K], default=min(shared, default=0))
    return table[table.k == table.v.map(chosen)]


def draw_accuracies(
    results: Results, table: pd.DataFrame, draw_model: Callable[[Axes, pd.DataFrame, Look, float], Any], note: str
) -> Figure:
    """A panel for each pooling with every model's accuracies in percent, which `draw_model` draws.

    It is given axes, the model's rows, its look and its place among the models, from -0.5 up in steps of 1 around 0.
    """
    poolings = list(dict.fromkeys(table.pooling))
    table = table.assign(**{name: 100 * table[name] for name in ("value", "ci_low", "ci_high")})
    figure = column_figure() if len(poolings) == 1 else panel_grid(1)
    drawn: dict[str, Any] = {}
    panels = figure.subplots(1, len(poolings), sharey=True, squeeze=False)[0]
    for axes, pooling in zip(panels, poolings, strict=True):
        plot_axes(axes)
        for i, (label, look) in enumerate(looks(results).items()):
            rows = table[(table.pooling == pooling) & (table.model == label)]
            if not rows.empty:
                drawn[label] = draw_model(axes, rows, look, i - len(results.models) / 2 + 0.5)
        if len(poolings) > 1:
            axes.set_title(f"{pooling} pooling", loc="left")
    panels[0].set_ylabel("top-1 accuracy (%)")
    note_above(figure, note)
    legend_below(figure, list(drawn.values()), list(drawn))
    return figure


def error_bars(axes: Axes, rows: pd.DataFrame, column: str, look: Look, place: float) -> ErrorbarContainer:
    """A model's accuracies by `column`, a whole number, on a logarithmic axis."""
    rows = rows.sort_values(column)
    value = rows.value.to_numpy()
    # rounding can leave a bound on the wrong side of a mean that it equals
    reach = np.maximum([value - rows.ci_low.to_numpy(), rows.ci_high.to_numpy() - value], 0)
    return axes.errorbar(
        rows[column].to_numpy(float) * np.exp(_DODGE * place), value, reach, color=look.colour, linestyle=look.line,
        marker=look.marker, markersize=scaled(3.5), capsize=scaled(2), elinewidth=scaled(0.9),
    )  # fmt: skip


def log_axis(figure: Figure, shown: list[int], title: str) -> None:
    """Every panel's horizontal axis, with ticks at the numbers shown alone."""
    for axes in figure.axes:
        axes.set_xscale("log")
        axes.set_xticks(shown, [str(number) for number in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(title)
