"""What a figure module offers to `draw_all` and the report."""

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

from matplotlib.figure import Figure

from kamim_analysis import plugins
from kamim_analysis.results import Results

PACKAGE = "kamim_analysis.figures"


@runtime_checkable
class FigureModule(Protocol):
    """A module of this folder whose name begins with no underscore; the figure is called like its file."""

    #: what the figure shows, a few words
    TITLE: str
    #: its place in the report: KAMIM's own figures go by their number
    ORDER: int
    #: where the figure comes from, e.g. "KAMIM, figure 6"
    SOURCE: str
    #: the analyses it draws
    NEEDS: Sequence[str]
    #: one sentence on how to read it
    HOW_TO_READ: str
    #: whether it shows a few of the pictures, rather than numbers over all of them
    EXAMPLES: bool

    def draw(self, results: Results) -> Figure | None:
        """The figure with all models that have what it needs; None where none has."""


def figure_modules() -> dict[str, FigureModule]:
    """Every figure by name, in the order of the report."""
    modules = {name: cast(FigureModule, module) for name, module in plugins.load_all(PACKAGE).items()}
    return dict(sorted(modules.items(), key=lambda item: (item[1].ORDER, item[0])))
