"""k-NN accuracy of low-pass and high-pass filtered pictures by cut-off, above what the filters leave of a picture."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from kamim_analysis.results import Results

from ._style import (
    GRAY,
    Look,
    legend_below,
    line_inches,
    looks,
    note_above,
    plot_axes,
    resolution,
    scaled,
    small_points,
    style,
    styled,
    width_inches,
)

TITLE = "Accuracy under low-pass and high-pass filters"
ORDER = 33
SOURCE = "Wang et al., arXiv 1905.13545, and Park et al., arXiv 2305.00729"
NEEDS = ("frequency_bias",)
EXAMPLES = False
HOW_TO_READ = (
    "The sooner a line on the left rises, the better coarse shapes and colours suffice a model; the longer a line on "
    "the right stays up, the more its features rest on fine detail."
)
_PANELS = {"low_pass": "low-pass: frequencies up to the cut-off", "high_pass": "high-pass: frequencies beyond it"}
_ALL = "all"


@styled
def draw(results: Results) -> Figure | None:
    """Left, low-pass, right, high-pass; below, one picture as each filter leaves it."""
    table = numbers(results)
    if table.empty:
        return None
    shown = _shown(results, table)
    strip = (width_inches() / (len(shown["cycles"]) + 1.8) + 1.6 * line_inches()) * 2
    plots = 1.35 * style().panel_inches
    figure = Figure(figsize=(width_inches(), plots + strip), layout="constrained")
    note_above(figure, _note(results, table))
    parts = figure.add_gridspec(2, 1, height_ratios=[plots, strip])
    panels: list[Axes] = [*parts[0].subgridspec(1, 2).subplots(squeeze=False, sharey=True).flat]
    handles: dict[str, Line2D] = {}
    for axes, (kind, title) in zip(panels, _PANELS.items(), strict=True):
        plot_axes(axes).set_title(title, loc="left")
        for label, look in looks(results).items():
            rows = table[(table.model == label) & table["filter"].isin([kind, "unfiltered"])]
            if not rows.empty:
                handles[label] = _draw_model(axes, rows, look, _place_of_all(table, kind))
        _set_up(axes, table, kind)
        _draw_majority(axes, results, table)
    panels[0].set_ylabel("k-NN top-1 accuracy (%)")
    _draw_strip(figure, parts[1], shown)
    legend_below(figure, list(handles.values()), list(handles))
    return figure


def numbers(results: Results) -> pd.DataFrame:
    """Accuracy in [0, 1] by filter and cut-off, which has no value where pictures are not filtered."""
    table = results.select("frequency_bias")
    parts = table.statistic.str.extract(r"^top1_(?P<filter>unfiltered|low_pass|high_pass)(?:_(?P<cycles>\d+))?$")
    table = table.assign(**{"filter": parts["filter"], "cycles": parts["cycles"].astype(float)})
    sides = {label: min(results.model(label)["image_size"]) for label in results.models}
    # of no rows at all, what is mapped would be text
    table = table.assign(nyquist=2 * table.cycles / table.model.map(sides).astype(float))
    columns = ["model", "statistic", "filter", "cycles", "nyquist", "value", "ci_low", "ci_high", "images"]
    return table[columns].sort_values(["model", "filter", "cycles"], kind="stable").reset_index(drop=True)


def _place_of_all(table: pd.DataFrame, kind: str) -> float:
    """Where unfiltered pictures stand: an octave beyond the last low-pass, or before the first high-pass."""
    return float(2 * table.cycles.max() if kind == "low_pass" else table.cycles.min() / 2)


def _draw_model(axes: Axes, rows: pd.DataFrame, look: Look, place: float) -> Line2D:
    """Line and band over the cut-offs, dotted to the unfiltered pictures' accuracy."""
    rows = rows.assign(x=rows.cycles.fillna(place)).sort_values("x")
    rows[["value", "ci_low", "ci_high"]] *= 100
    axes.fill_between(rows.x.to_numpy(), rows.ci_low, rows.ci_high, color=look.colour, alpha=0.2, linewidth=0)
    inside, whole = rows[rows.cycles.notna()], rows[rows.cycles.isna()]
    nearest = inside.iloc[(inside.x - place).abs().argmin()]
    ends = [[nearest.x, place], [nearest.value, *whole.value]]
    axes.plot(*ends, color=look.colour, linestyle=":", linewidth=scaled(1))
    (line,) = axes.plot(
        inside.x, inside.value, color=look.colour, linestyle=look.line, marker=look.marker, markersize=scaled(3.5)
    )
    axes.plot(
        whole.x, whole.value, color=look.colour, marker=look.marker, markersize=scaled(3.5), markerfacecolor="white"
    )
    return line


def _set_up(axes: Axes, table: pd.DataFrame, kind: str) -> None:
    cycles = sorted(table.cycles.dropna().unique())
    place = _place_of_all(table, kind)
    ticks = sorted([*cycles, place])
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [_ALL if tick == place else f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("cut-off (cycles per picture)")


def _draw_majority(axes: Axes, results: Results, table: pd.DataFrame) -> None:
    """What always naming the commonest class would give, which does not depend on the model."""
    for share in sorted({float(_arrays(results, label)["majority"]) for label in table.model.unique()}):
        axes.axhline(100 * share, color=GRAY, linewidth=scaled(0.8), linestyle=(0, (6, 3)), zorder=1)


def _note(results: Results, table: pd.DataFrame) -> str:
    neighbours = sorted({int(_arrays(results, label)["k"]) for label in table.model.unique()})
    return (
        f"k = {', '.join(map(str, neighbours))}; bands: 95% confidence interval over images; hollow: not filtered; "
        "gray, long dashes: always the commonest class; neighbours are not filtered"
    )


def _arrays(results: Results, label: str) -> dict[str, NDArray[Any]]:
    return results.arrays("frequency", label)


def _shown(results: Results, table: pd.DataFrame) -> dict[str, Any]:
    """Arrays of the model with most cut-offs, whose pictures hold all the others'."""
    found = [_arrays(results, label) for label in results.models if label in set(table.model)]
    return max(found, key=lambda arrays: len(arrays["cycles"]))


def _draw_strip(figure: Figure, part: SubplotSpec, shown: dict[str, Any]) -> None:
    """A row of pictures for each kind of filter under the cut-offs, and the whole picture at the end."""
    count, pixels = len(shown["cycles"]), shown["pixels"]
    cells = part.subgridspec(2, count + 1, hspace=0, wspace=0.04).subplots(squeeze=False)
    heads = [f"{cycles} ({_percent(share)})" for cycles, share in zip(shown["cycles"], shown["nyquist"], strict=True)]
    for row, sign, first in ((cells[0], "\N{LESS-THAN OR EQUAL TO}", 1), (cells[1], ">", 1 + count)):
        _draw_pictures(
            list(row), [*pixels[first : first + count], pixels[0]], [*(f"{sign} {head}" for head in heads), _ALL]
        )
    size = resolution(pixels.shape[1:3])
    cells[0, 0].set_ylabel("low-pass", fontsize=small_points())
    cells[1, 0].set_ylabel("high-pass", fontsize=small_points())
    cells[1, count // 2].set_xlabel(
        f"one picture as its filters leave it: cycles per picture (of Nyquist's frequency at {size})",
        fontsize=small_points(),
    )


def _draw_pictures(cells: Sequence[Axes], pictures: Sequence[NDArray[Any]], heads: Sequence[str]) -> None:
    for axes, picture, head in zip(cells, pictures, heads, strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(head, fontsize=small_points(), color=GRAY, pad=2)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def _percent(share: float) -> str:
    """A share of Nyquist's frequency.

    >>> _percent(2 / 112), _percent(0.5)
    ('2%', '50%')
    """
    return f"{100 * share:.0f}%"
