"""Singular values of the last layer's tokens and image features."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from kamim_analysis.results import Results

from ._log_axis import plain_ticks
from ._style import GRAY, SMALL_POINTS, WIDTH_INCHES, Look, legend_below, looks, plot_axes, styled

TITLE = "Singular values of features in the last layer"
ORDER = 42
SOURCE = "Jing et al., arXiv 2110.09348"
NEEDS = ("geometry",)
EXAMPLES = False
HOW_TO_READ = (
    "The sooner a line falls, the fewer directions the features use; a cliff says that the directions beyond it are "
    "not used at all, which is dimensional collapse."
)
# below this share of all singular values there is nothing but rounding
_LEAST = 1e-7


@styled
def draw(results: Results) -> Figure | None:
    """Left, tokens of a picture, mean over pictures; right, image features, before the final norm and after it."""
    found = {label: results.arrays("geometry", label) for label in results.models}
    last = {label: results.model(label)["layers"] for label in results.models}
    found = {label: arrays for label, arrays in found.items() if f"token_spectrum{last[label]}" in arrays}
    if not found:
        return None
    figure = Figure(figsize=(WIDTH_INCHES, 2.7), layout="constrained")
    left, right = (plot_axes(axes) for axes in figure.subplots(1, 2))
    handles: dict[str, Line2D] = {}
    for label, arrays in found.items():
        look = looks(results)[label]
        handles[label] = _draw_tokens(left, arrays[f"token_spectrum{last[label]}"], look)
        for key in (f"image_spectrum{last[label]}", f"image_spectrum_final{last[label]}"):
            if key in arrays:
                _draw_images(right, arrays[key], look, final="final" in key)
    _set_up(left, "tokens of a picture", "mean over pictures; band: 95% confidence interval")
    _set_up(right, "pictures", "markers: before the final norm; thin, without: after it")
    legend_below(figure, list(handles.values()), list(handles))
    return figure


def _draw_tokens(axes: Axes, spectrum: NDArray[Any], look: Look) -> Line2D:
    rank, value, low, high = spectrum[:, spectrum[1] > _LEAST]
    axes.fill_between(rank, np.maximum(low, _LEAST), high, color=look.colour, alpha=0.25, linewidth=0)
    (line,) = axes.plot(rank, value, color=look.colour, linestyle=look.line, marker=look.marker, markersize=3)
    return line


def _draw_images(axes: Axes, spectrum: NDArray[Any], look: Look, *, final: bool) -> None:
    rank, value = spectrum[:, spectrum[1] > _LEAST]
    if final:
        axes.plot(rank, value, color=look.colour, linestyle=look.line, linewidth=0.8)
    else:
        axes.plot(rank, value, color=look.colour, linestyle=look.line, marker=look.marker, markersize=3)


def _set_up(axes: Axes, what: str, note: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=f"rank ({what})", ylabel="singular value / sum of all")
    plain_ticks(axes.xaxis)
    axes.set_title(note, loc="left", fontsize=SMALL_POINTS, color=GRAY)
