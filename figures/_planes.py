"""Tokens as points of a plane, a panel for each model: figures 3, 8, 9 and 10."""

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from kamim_analysis.results import Results

from ._style import (
    COLOURS,
    GRAY,
    INCHES_PER_CHARACTER,
    INK,
    LINE_INCHES,
    MARKERS,
    PALE,
    SMALL_POINTS,
    WIDTH_INCHES,
    legend_below,
    looks,
    name,
)

#: panels side by side, by number of panels; three from then on
_COLUMNS = {1: 1, 2: 2, 4: 2}
_MAX_SIDE_INCHES = 3.3
_TITLE_PAD_INCHES, _AXIS_NAME_INCHES = 0.08, 0.2


def model_panels(results: Results, titles: dict[str, str], *, principal: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with a panel, about square, for each label of `titles`, headed by the label and its title.

    With `principal`, panels show principal components: both on one scale, in arbitrary units.
    """
    columns = _COLUMNS.get(len(titles), 3)
    rows = -(-len(titles) // columns)
    side = min(WIDTH_INCHES / columns, _MAX_SIDE_INCHES)
    headings = [f"{name(label, int(side / INCHES_PER_CHARACTER) - 4)}\n{title}" for label, title in titles.items()]
    title_lines = max(heading.count("\n") + 1 for heading in headings)
    height = rows * (side + title_lines * LINE_INCHES + _TITLE_PAD_INCHES)
    figure = Figure(figsize=(columns * side + principal * _AXIS_NAME_INCHES, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[len(titles) :]:
        spare.remove()
    for axes, label, heading in zip(panels, titles, headings, strict=False):
        axes.set_title(heading, color=GRAY if looks(results)[label].control else INK)
        axes.spines[:].set_color(PALE)
        axes.set(xticks=[], yticks=[])
    if principal:
        _name_principal_axes(figure, panels[: len(titles)], columns)
    return figure, panels[: len(titles)]


def _name_principal_axes(figure: Figure, panels: Sequence[Axes], columns: int) -> None:
    """At the left and the bottom of the figure only."""
    for i, axes in enumerate(panels):
        axes.set_aspect("equal", adjustable="datalim")
        if i % columns == 0:
            axes.set_ylabel("principal component 2", fontsize=SMALL_POINTS)
        if i + columns >= len(panels):
            axes.set_xlabel("principal component 1", fontsize=SMALL_POINTS)
    figure.set_figheight(figure.get_figheight() + _AXIS_NAME_INCHES)


def scatter(axes: Axes, points: NDArray[Any], colour: str, marker: str = "o") -> None:
    """Tokens [..., 2] as small translucent points."""
    flat = points.reshape(-1, 2)
    axes.scatter(flat[:, 0], flat[:, 1], s=9, color=colour, marker=marker, alpha=0.6, linewidths=0)


def scatter_classes(axes: Axes, points: NDArray[Any], labels: NDArray[Any], order: Sequence[int]) -> None:
    """Tokens of images [images, N, 2], coloured by class: the same class looks alike in every panel and figure."""
    for rank, label in enumerate(order):
        scatter(axes, points[labels == label], *class_look(rank))


def class_look(rank: int) -> tuple[str, str]:
    """Colour and marker of the class that is the `rank`-th to appear."""
    return COLOURS[rank % len(COLOURS)], MARKERS[rank % len(MARKERS)]


def order_of_appearance(labels: Iterable[NDArray[Any]]) -> list[int]:
    """Class numbers, each once."""
    return list(dict.fromkeys(int(label) for some in labels for label in some))


def class_name(results: Results, label: int) -> str:
    """Name of a class by its number."""
    classes = results.manifest["data"]["classes"]
    return str(classes[label]) if 0 <= label < len(classes) else f"class {label}"


def dot(colour: str, marker: str = "o") -> Line2D:
    """What the legend shows for points."""
    return Line2D([], [], color=colour, marker=marker, linestyle="", markersize=5)


def class_legend(figure: Figure, results: Results, order: Sequence[int]) -> None:
    """Names of the classes under the figure."""
    handles = [dot(*class_look(rank)) for rank in range(len(order))]
    legend_below(figure, handles, [class_name(results, label) for label in order], lines=False)
