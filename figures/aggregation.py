"""What each pooling of the same frozen tokens is worth, and how evenly it weights patches (Beyond [cls])."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from kamim_analysis.protocol import items
from kamim_analysis.results import Results

from ._figure import metrics_of
from ._style import GRAY, Look, legend_below, line_inches, looks, note_above, plot_axes, scaled, styled, width_inches

TITLE = "Linear probes of frozen tokens by pooling"
ORDER = 23
SOURCE = "Beyond [cls], arXiv 2412.03215"
NEEDS = ("aggregation",)
EXAMPLES = False
HOW_TO_READ = (
    "A gain of AbMILP or attentive pooling over the mean says that patches tell more of the class than their average "
    "does; entropy at 1 says that a pooling weights all patches evenly, as the mean does, lower that it selects."
)
#: poolings from the top, as far as they were measured; others follow
_NAMES = {
    "mean": "mean", "cls": "cls token", "cls_attention": "attention of cls", "central": "central patches",
    "abmilp": "AbMILP", "attentive": "attentive",
}  # fmt: skip
# of the plot beside its rows, in lines of type, and of a row for each model and at least
_AROUND_LINES, _MODEL_LINES, _LEAST_LINES = 3.5, 0.6, 1.4
# of a row, between the first model and the last
_SPREAD = 0.6


class _Panel(NamedTuple):
    prefix: str
    unit: str
    scale: float
    line: float | None
    """Where a dotted line says what is no gain, or even."""


_PANELS = (
    _Panel("top1_", "top-1 accuracy (%)", 100, None),
    _Panel("gain_over_mean_", "gain over mean (points)", 100, 0),
    _Panel("entropy_", "entropy of the weights\n(fraction of uniform's)", 1, 1),
)


@styled
def draw(results: Results) -> Figure | None:
    """A row for each pooling, a mark for each model: accuracy, gain over average pooling, evenness of the weights."""
    table = numbers(results)
    if table.empty:
        return None
    poolings = [name for name in _NAMES if name in set(table.pooling)]
    poolings += sorted(set(table.pooling) - set(poolings))
    shown = {label: look for label, look in looks(results).items() if label in set(table.model)}
    lines = _AROUND_LINES + len(poolings) * max(_MODEL_LINES * len(shown), _LEAST_LINES)
    figure = Figure(figsize=(width_inches(), lines * line_inches()), layout="constrained")
    marks: dict[str, ErrorbarContainer] = {}
    for axes, panel in zip(figure.subplots(1, len(_PANELS), sharey=True), _PANELS, strict=True):
        marks |= _draw_panel(plot_axes(axes), table[table.panel == panel.prefix], panel, poolings, shown)
    note_above(figure, "bars: 95% confidence interval over images and seeds")
    legend_below(figure, list(marks.values()), list(marks), lines=False)
    return figure


def numbers(results: Results) -> pd.DataFrame:
    """Rows of metrics.csv that are drawn: those of each model's deepest layer, with their pooling and panel."""
    table = metrics_of(results, "aggregation").assign(pooling="", panel="")
    table = table[table.layer == table.groupby("model").layer.transform("max")]
    for panel in _PANELS:
        of_panel = table.statistic.str.startswith(panel.prefix) & ~table.statistic.str.startswith("entropy_of_average_")
        table.loc[of_panel, "pooling"] = table.statistic.str.removeprefix(panel.prefix)
        table.loc[of_panel, "panel"] = panel.prefix
    return table[table.panel != ""]


def caption(results: Results) -> str:
    """Which layer, and how many seeds."""
    layers = numbers(results).groupby("model", sort=False).layer.first()
    same = layers.nunique() == 1
    named = str(layers.iloc[0]) if same else ", ".join(f"{layer} of {label}" for label, layer in layers.items())
    # the same for all numbers of a run
    seeds = items(numbers(results).protocol.iloc[0]).get("seeds", "1")
    return (
        f"Tokens of layer {named}, {seeds} seed{'s' * (seeds != '1')}. The cls token weights no patches itself: the "
        "attention of cls is that by which its block gathers them. The entropies of mean and central patches are fixed."
    )


def _draw_panel(
    axes: Axes, table: pd.DataFrame, panel: _Panel, poolings: list[str], shown: dict[str, Look]
) -> dict[str, ErrorbarContainer]:
    """Marks of every model, one below the other within a row; returns them by label."""
    if panel.line is not None:
        axes.axvline(panel.line, color=GRAY, linewidth=scaled(0.8), linestyle=":", zorder=1)
    marks = {}
    for i, (label, look) in enumerate(shown.items()):
        rows = table[table.model == label]
        offset = _SPREAD * ((i + 0.5) / len(shown) - 0.5)
        places = np.array([poolings.index(name) for name in rows.pooling]) + offset
        value, low, high = (panel.scale * rows[column].to_numpy() for column in ("value", "ci_low", "ci_high"))
        # rounding can leave a bound on the wrong side of a mean that it equals
        reach = np.maximum([value - low, high - value], 0)
        marks[label] = axes.errorbar(
            value, places, xerr=reach, color=look.colour, linestyle="", marker=look.marker, markersize=scaled(3.5),
            capsize=scaled(1.5), elinewidth=scaled(0.9), markerfacecolor="white" if look.control else look.colour,
        )  # fmt: skip
    axes.set_xlabel(panel.unit)
    axes.set_yticks(range(len(poolings)), [_NAMES.get(name, name) for name in poolings])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(poolings) - 0.5, -0.5)
    return marks
