"""What every figure module must offer, and what a figure does with much, little and no data."""

import re

import pytest
from matplotlib.figure import Figure

from kamim_analysis import plugins
from kamim_analysis.figures._figure import PACKAGE, FigureModule, figure_modules
from kamim_analysis.results import Results

NAMES = plugins.names(PACKAGE)
# what commands of their own write to metrics.csv
EVALUATIONS = {"few_shot", "fast_probe", "aggregation", "linear_probe", "fine_tuning"}


@pytest.mark.parametrize("name", NAMES)
def test_module_offers_the_contract(name: str) -> None:
    module = plugins.load(PACKAGE, name, "figure")
    assert isinstance(module, FigureModule)
    assert isinstance(module.ORDER, int)
    assert isinstance(module.EXAMPLES, bool)
    assert module.TITLE
    assert module.SOURCE
    assert not set(module.NEEDS) - set(plugins.names("kamim_analysis.analyses")) - EVALUATIONS
    assert re.fullmatch(r"[A-Z][^.]*\.", module.HOW_TO_READ), "one sentence"


def test_every_analysis_has_a_figure() -> None:
    drawn = {need for module in figure_modules().values() for need in module.NEEDS}
    # the report itself lets the explorer's attention be seen
    assert set(plugins.names("kamim_analysis.analyses")) - drawn == {"explorer"}


def test_kamims_figures_go_by_their_number() -> None:
    modules = figure_modules()
    orders = [module.ORDER for module in modules.values()]
    assert orders == sorted(set(orders))
    for module in modules.values():
        if module.SOURCE.startswith("KAMIM"):
            assert f"KAMIM, figure {module.ORDER}" == module.SOURCE


@pytest.mark.parametrize("name", NAMES)
def test_draws_what_is_there(name: str, drawable: Results) -> None:
    assert isinstance(figure_modules()[name].draw(drawable), Figure)


@pytest.mark.parametrize("name", NAMES)
def test_draws_nothing_from_nothing(name: str, empty: Results) -> None:
    assert figure_modules()[name].draw(empty) is None
