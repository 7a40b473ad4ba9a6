"""k-NN accuracy by number of neighbours (DINO's protocol, Caron et al., arXiv 2104.14294)."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from kamim_analysis.results import Results

from ._knn import deepest, draw_accuracies, error_bars, knn_rows, log_axis
from ._style import Look, styled

TITLE = "k-NN accuracy of frozen features"
ORDER = 20
SOURCE = "DINO's k-NN protocol"
NEEDS = ("knn",)
EXAMPLES = False
HOW_TO_READ = (
    "The higher, the more often a picture's nearest neighbours in feature space are of its own class, for features of "
    "the deepest layer analysed."
)


@styled
def draw(results: Results) -> Figure | None:
    """Top-1 accuracy by k with its interval, a panel for each pooling."""
    table = numbers(results)
    if table.empty:
        return None
    figure = draw_accuracies(results, table, _draw_model, "bars: 95% confidence interval over images")
    log_axis(figure, sorted(set(table.k)), "k (neighbours)")
    return figure


def numbers(results: Results) -> pd.DataFrame:
    """Top-1 accuracy by k of each model's deepest layer."""
    return deepest(knn_rows(results, "knn")).drop(columns="v")


def _draw_model(axes: Axes, rows: pd.DataFrame, look: Look, place: float) -> ErrorbarContainer:
    return error_bars(axes, rows, "k", look, place)
