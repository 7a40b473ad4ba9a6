"""A picture, its keypoints by several detectors, their maps, and the weights that come of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ._style import (
    GRAY,
    INK,
    RED,
    drawn_for,
    line_inches,
    save,
    scaled,
    settings,
    small_points,
    text_inches,
    width_inches,
)

_GAP_INCHES, _MARGIN_INCHES, _BAR_INCHES = 0.06, 0.06, 0.1
_COLOURS = "viridis"
HOW_TO_READ = (
    "Columns: the picture as the detector sees it, the keypoints on it with their number, the map with the share of "
    "its pixels that are set (of a control that marks no pixels: the density of each weight patch, white the largest, "
    "with its range), and the weight of each weight patch, with the range of weights, for each side w_ps of a weight "
    "patch in pixels and each temperature T. All weights share one logarithmic colour scale."
)


@dataclass(frozen=True)
class Row:
    """What one detector makes of a picture."""

    name: str
    """Detector and style, a line each."""
    points: NDArray[Any] | None
    """Column and row of each keypoint in pixels, [k, 2]; None for a control without keypoints."""
    map: NDArray[Any]
    """0 or 1 for each pixel, or where `is_density` a number for each cell."""
    is_density: bool
    weights: Sequence[NDArray[Any]]
    """Of each cell, [gy, gx], for each of the headings."""


def write(
    stem: Path,
    picture: NDArray[np.uint8],
    rows: Sequence[Row],
    headings: Sequence[str],
    numbers: pd.DataFrame,
    caption: str,
    *,
    style: str,
) -> None:
    """The figure as PNG and PDF, its numbers as CSV and its caption as TXT, all called `stem`."""
    with drawn_for(style):
        save(draw(picture, rows, headings), stem)
    numbers.to_csv(stem.with_name(f"{stem.name}.csv"), index=False, float_format="%.6g", lineterminator="\n")
    stem.with_name(f"{stem.name}.txt").write_text(f"{caption}\n", encoding="utf-8")


def draw(picture: NDArray[np.uint8], rows: Sequence[Row], headings: Sequence[str]) -> Figure:
    """A row for each detector; `headings` name the columns of weights."""
    with rc_context(settings()):
        # a map without any weight above 1 would leave the scale without an extent
        largest = max(2.0, *(float(weights.max()) for row in rows for weights in row.weights))
        sheet = _Sheet(rows, ["picture", "keypoints", "map", *headings])
        scale = LogNorm(1, largest)
        for axes, row in zip(sheet.cells, rows, strict=True):
            _draw_row(axes, picture, row, scale)
        sheet.bar(ScalarMappable(scale, _COLOURS))
        return sheet.figure


def _draw_row(cells: Sequence[Axes], picture: NDArray[np.uint8], row: Row, scale: LogNorm) -> None:
    shown, marked, map_cell, *weight_cells = cells
    shown.imshow(picture)
    if row.points is None:
        marked.text(0.5, 0.5, "none", transform=marked.transAxes, ha="center", va="center", fontsize=small_points())
    else:
        # gray and pale, so that the points stand out whatever the picture's colours
        marked.imshow(picture.mean(2), cmap="gray", vmin=0, vmax=255, alpha=0.5)
        marked.scatter(row.points[:, 0], row.points[:, 1], s=scaled(0.8), c=RED, linewidths=0)
        marked.set_xlim(shown.get_xlim())
        marked.set_ylim(shown.get_ylim())
        _head(marked, f"{len(row.points):,}")
    if row.is_density:
        map_cell.imshow(row.map, cmap="gray", vmin=0, vmax=row.map.max(), interpolation="nearest")
        _head(map_cell, _range(row.map))
    else:
        map_cell.imshow(row.map, cmap="gray", vmin=0, vmax=1)
        _head(map_cell, f"{row.map.mean():.1%}")
    # a map may be white throughout
    frame = Rectangle((0, 0), 1, 1, transform=map_cell.transAxes, fill=False, edgecolor=GRAY, linewidth=0.4)
    map_cell.add_patch(frame).set_clip_on(False)
    for axes, weights in zip(weight_cells, row.weights, strict=True):
        axes.imshow(weights, cmap=_COLOURS, norm=scale, interpolation="nearest")
        _head(axes, _range(weights))


def _head(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=small_points(), pad=scaled(2))


def _range(values: NDArray[Any]) -> str:
    """Least and greatest, which may be the same."""
    ends = [_short(float(value)) for value in (values.min(), values.max())]
    return "\N{EN DASH}".join(dict.fromkeys(ends))


def _short(value: float) -> str:
    """Three digits, or all before the point where there are up to six.

    >>> _short(0.0123), _short(1.0), _short(54.598), _short(22026.4658), _short(1.5e12)
    ('0.0123', '1', '54.6', '22,026', '1.5e+12')
    """
    return f"{value:,.0f}" if 1000 <= value < 10**6 else f"{value:.3g}"


class _Sheet:
    """Square cells in rows, each under a line of numbers, with names at the left, headings above, a bar at the right.

    Placed to the point: a layout engine would make the cells of a column unequal.
    """

    def __init__(self, rows: Sequence[Row], headings: Sequence[str]) -> None:
        self.width, columns = width_inches(), len(headings)
        left = max(text_inches(line) for row in rows for line in row.name.split("\n")) + 2 * _MARGIN_INCHES
        self.right = text_inches("$10^{00}$") + text_inches("weight W", small_points()) / 3 + 3 * _BAR_INCHES
        self.cell = (self.width - left - self.right) / columns - _GAP_INCHES
        head, line = max(text.count("\n") + 1 for text in headings) * line_inches(), line_inches()
        self.height = head + len(rows) * (self.cell + line + _GAP_INCHES) + _MARGIN_INCHES
        self.figure = Figure(figsize=(self.width, self.height))
        self.lefts = [left + column * (self.cell + _GAP_INCHES) for column in range(columns)]
        tops = [head + line + row * (self.cell + line + _GAP_INCHES) for row in range(len(rows))]
        self.cells = [[self._axes(x, top, self.cell, self.cell) for x in self.lefts] for top in tops]
        self.span = tops[0], tops[-1] + self.cell
        for axes in (one for some in self.cells for one in some):
            axes.set_axis_off()
        for x, text in zip(self.lefts, headings, strict=True):
            self._text(x + self.cell / 2, head, text, ha="center", va="bottom")
        for top, row in zip(tops, rows, strict=True):
            self._text(left - _MARGIN_INCHES, top + self.cell / 2, row.name, ha="right", va="center")

    def bar(self, mappable: ScalarMappable) -> None:
        """The scale of the weights, as high as the first rows."""
        height = min(self.span[1] - self.span[0], 3 * self.cell)
        axes = self._axes(self.lefts[-1] + self.cell + _BAR_INCHES, self.span[0], _BAR_INCHES, height)
        bar = self.figure.colorbar(mappable, cax=axes)
        bar.set_label("weight W", fontsize=small_points())
        bar.ax.tick_params(labelsize=small_points(), labelcolor=INK)

    def _axes(self, x: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes((x / self.width, bottom / self.height, width / self.width, height / self.height))

    def _text(self, x: float, top: float, text: str, **place: Any) -> None:
        self.figure.text(x / self.width, 1 - top / self.height, text, **place)
