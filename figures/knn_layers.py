"""k-NN accuracy by depth, for each pooling (DINO's protocol, Caron et al., arXiv 2104.14294)."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from kamim_analysis.results import Results

from ._depth import draw_line
from ._knn import at_usual_k, draw_accuracies, knn_rows
from ._style import Look, styled

TITLE = "k-NN accuracy by layer"
ORDER = 24
SOURCE = "DINO's k-NN protocol"
NEEDS = ("knn",)
EXAMPLES = False
HOW_TO_READ = (
    "Where a line is highest its model's features tell classes apart best; the height of that peak is too hopeful, "
    "since the layer is chosen on the very pictures it is measured on."
)


@styled
def draw(results: Results) -> Figure | None:
    """Top-1 accuracy by layer with the interval's band, a panel for each pooling; None for a single layer."""
    table = numbers(results)
    if table.empty:
        return None
    note = f"k = {table.k.iloc[0]}; bands: 95% confidence interval over images"
    figure = draw_accuracies(results, table, _draw_model, note)
    for axes in figure.axes:
        axes.set_xlim(table.layer.min() - 0.4, table.layer.max() + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("layer" + (" (0: embedding)" if table.layer.min() == 0 else ""))
    return figure


def _draw_model(axes: Axes, rows: pd.DataFrame, look: Look, _place: float) -> Line2D:
    return draw_line(axes, rows.sort_values("layer"), look)


def numbers(results: Results) -> pd.DataFrame:
    """Top-1 accuracy at k = 20, or the k nearest below, of every layer; none where no model has several."""
    table = knn_rows(results, "knn")
    if table.empty or table.groupby("model").layer.nunique().max() < 2:
        return table.iloc[:0]
    return at_usual_k(table).drop(columns="v")
