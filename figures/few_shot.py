"""k-NN accuracy by the number of pictures of each class that are learned from (AttMask's table)."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from kamim_analysis.protocol import items
from kamim_analysis.results import Results

from ._knn import at_usual_k, deepest, draw_accuracies, error_bars, knn_rows, log_axis
from ._style import Look, styled

TITLE = "k-NN accuracy from few labelled pictures"
ORDER = 25
SOURCE = "AttMask, k-NN with few examples"
NEEDS = ("few_shot",)
EXAMPLES = False
HOW_TO_READ = (
    "The higher, the more often a picture is told by its nearest neighbours when only so many pictures of each class "
    "have labels, for features of the deepest layer analysed."
)


@styled
def draw(results: Results) -> Figure | None:
    """Top-1 accuracy by v with its interval, a panel for each pooling."""
    table = numbers(results)
    if table.empty:
        return None
    note = f"{_neighbours(table)}; bars: 95% confidence interval over images and {_draws(table)}"
    figure = draw_accuracies(results, table, _draw_model, note)
    log_axis(figure, sorted(set(table.v)), "v (labelled pictures of each class)")
    return figure


def numbers(results: Results) -> pd.DataFrame:
    """Top-1 accuracy by v of each model's deepest layer, at k = 20 or the k nearest below."""
    return at_usual_k(deepest(knn_rows(results, "few_shot")))


def caption(results: Results) -> str:
    """How many neighbours, and how many draws."""
    table = numbers(results)
    return f"Neighbours: {_neighbours(table)}; {_draws(table)}."


def _draws(table: pd.DataFrame) -> str:
    seeds = items(table.protocol.iloc[0]).get("seeds", "1")
    return f"{seeds} draws of the labelled ones" if seeds != "1" else "a single draw of the labelled ones"


def _neighbours(table: pd.DataFrame) -> str:
    """With one picture a class every k elects the nearest neighbour."""
    by_k: dict[int, list[int]] = {}
    for v, k in sorted({(v, k) for v, k in zip(table.v, table.k, strict=True) if v > 1}):
        by_k.setdefault(k, []).append(v)
    if len(by_k) < 2:
        return f"k = {next(iter(by_k), 1)}"
    return ", ".join(f"k = {k} (v = {', '.join(map(str, of_k))})" for k, of_k in by_k.items())


def _draw_model(axes: Axes, rows: pd.DataFrame, look: Look, place: float) -> ErrorbarContainer:
    return error_bars(axes, rows, "v", look, place)
