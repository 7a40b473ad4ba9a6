"""Figures, reports and maps in a notebook: `ka.show`."""

import sys
from html import escape
from pathlib import Path
from typing import Any, overload

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.results import Results
from kamim_analysis.results_reading import refusing

from ._figure import PACKAGE, figure_modules
from ._style import character_inches, drawn_for, png, settings, small_points, style

# of an inch on a screen, as browsers reckon it
_CSS_PIXELS_PER_INCH = 96
_REPORT_CSS_PIXELS = 800
# of a map, of the height of a plot
_SIDE = 1.1


@overload
def show(results: Results | str | Path, figure: str, /, *, style: str = ...) -> Figure | None: ...
@overload
def show(results: Results | str | Path, /, *, style: str = ...) -> str | None: ...
@overload
def show(values: Any, picture: Any = None, /, *, style: str = ...) -> Figure | None: ...
def show(what: Any, which: Any = None, /, *, style: str = "notebook") -> Figure | str | None:
    """Show in a notebook a figure of some results, their whole report, or numbers of your own over a picture.

    `show(results, "attention_distance")` draws that figure; `show(results)` shows the report, to be explored.
    `results` is a directory that `kamim analyze` wrote, or the `Results` of one.

    `show(values, picture)` draws a number for each patch, [rows, columns] or [patches] row by row, over the picture
    [height, width, 3]: a row of `patch_attention`, say. Without a picture the map is drawn alone.

    In Jupyter the output appears below the cell, and nothing is returned; elsewhere what would appear is returned: a
    matplotlib figure, or the report's HTML. `style` is `notebook`, `paper` or `talk`.

    >>> show(np.eye(3)).axes[0].images[0].get_array().shape
    (3, 3)
    """
    if isinstance(what, Results | str | Path):
        results = what if isinstance(what, Results) else Results.open(what)
        if which is None:
            return _displayed_page(results)
        with drawn_for(style):
            return _displayed(_figure(results, which))
    with drawn_for(style):
        return _displayed(_map(_array(what), None if which is None else _array(which)))


def _figure(results: Results, name: str) -> Figure:
    plugins.check(name, plugins.names(PACKAGE), "figure")
    module = figure_modules()[name]
    with refusing(f"figure {name} cannot be drawn of {str(results.directory)!r}"):
        figure = module.draw(results)
    if figure is None:
        needed = " or ".join(module.NEEDS) or "two models"
        raise UserError(f"there is nothing to draw of {name!r} in {str(results.directory)!r}: it needs {needed}")
    return figure


def _map(values: NDArray[Any], picture: NDArray[Any] | None) -> Figure:
    """The values with a colour bar, over the picture where there is one and beside it."""
    values = _on_grid(values, picture)
    side = _SIDE * style().plot_inches
    panels = 1 if picture is None else 2
    height, width = values.shape
    with rc_context(settings()):
        figure = Figure(figsize=(panels * side * width / height + 8 * character_inches(), side), layout="constrained")
        all_axes = figure.subplots(1, panels, squeeze=False)[0]
        for axes in all_axes:
            axes.set_axis_off()
            if picture is not None:
                axes.imshow(picture, extent=(-0.5, width - 0.5, height - 0.5, -0.5), aspect="auto")
        shown = all_axes[-1].imshow(
            values, cmap="viridis", alpha=None if picture is None else 0.75, interpolation="nearest", aspect="auto"
        )
        bar = figure.colorbar(shown, ax=all_axes[-1])
        bar.ax.tick_params(labelsize=small_points(), length=0)
        bar.outline.set_visible(False)
    return figure


def _on_grid(values: NDArray[Any], picture: NDArray[Any] | None) -> NDArray[Any]:
    """[n] as [rows, columns] of the picture's proportions, which are a square's without one."""
    if values.ndim == 2:
        return values
    if values.ndim != 1:
        raise UserError(f"a map has the shape [rows, columns] or [patches], not {list(values.shape)}")
    proportion = 1.0 if picture is None else picture.shape[0] / picture.shape[1]
    rows = round((len(values) * proportion) ** 0.5)
    if not rows or len(values) % rows or abs(rows * rows / len(values) / proportion - 1) > 0.2:
        raise UserError(
            f"{len(values)} values fill no grid of the picture's proportions; take the cls and register tokens off, "
            "as patch_attention does, or give the values as [rows, columns]"
        )
    return values.reshape(rows, -1)


def _array(values: Any) -> NDArray[Any]:
    """A tensor of any device, an array, a picture or lists as an array."""
    return np.asarray(values.detach().float().cpu() if hasattr(values, "detach") else values)


def _displayed(figure: Figure) -> Figure | None:
    if not _in_notebook():
        return figure
    from IPython.display import Image, display

    display(Image(data=png(figure), format="png", width=round(figure.get_figwidth() * _CSS_PIXELS_PER_INCH)))
    return None


def _displayed_page(results: Results) -> str | None:
    report = results.directory / "report.html"
    if not report.is_file():
        raise UserError(f"{str(results.directory)!r} holds no report; draw it with kamim figures")
    # within the notebook, wherever that is served from, and apart from it: the page cannot reach what is around it
    page = escape(report.read_text(encoding="utf-8"))
    html = (
        f'<iframe title="report" sandbox="allow-scripts" srcdoc="{page}" '
        f'style="width: 100%; height: {_REPORT_CSS_PIXELS}px; border: 1px solid #ccc"></iframe>'
    )
    if not _in_notebook():
        return html
    from IPython.display import HTML, display

    display(HTML(html))
    return None


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this, which a terminal's IPython is not; IPython is not loaded to find out."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
