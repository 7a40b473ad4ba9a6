"""All figures of a results directory, and its report."""

from collections.abc import Sequence
from pathlib import Path

from kamim_analysis import plugins
from kamim_analysis.results import Results

from ._figure import PACKAGE, FigureModule, figure_modules
from ._report import report
from ._style import save

FOLDER = "figures"


def draw_all(directory: Path, names: Sequence[str] | None = None) -> list[str]:
    """Draw every figure, or those of `names`, as PNG and PDF, then the report; returns the names drawn.

    The report shows all figures there are, older ones too. Raises UserError for a directory without results and for
    a figure that does not exist.
    """
    results = Results.open(directory)
    available = plugins.names(PACKAGE)
    chosen = available if names is None else [plugins.check(name, available, "figure") for name in names]
    (directory / FOLDER).mkdir(exist_ok=True)
    modules = figure_modules()
    drawn = [name for name, module in modules.items() if name in chosen and _draw(results, name, module)]
    pictures = {name: directory / FOLDER / f"{name}.png" for name in modules}
    page = report(results, modules, {name: path for name, path in pictures.items() if path.is_file()}, tried=chosen)
    (directory / "report.html").write_text(page, encoding="utf-8")
    return drawn


def _draw(results: Results, name: str, module: FigureModule) -> bool:
    stem = results.directory / FOLDER / name
    figure = module.draw(results)
    if figure is None:
        # what an earlier run left there would be shown as if it were of these results
        for suffix in (".png", ".pdf"):
            stem.with_name(name + suffix).unlink(missing_ok=True)
        return False
    save(figure, stem)
    return True
