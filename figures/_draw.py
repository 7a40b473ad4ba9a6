"""All figures of a results directory, and its report."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.output import naming, write_file, written_whole
from kamim_analysis.results import Results
from kamim_analysis.results_reading import refusing

from ._caption import caption
from ._figure import PACKAGE, FigureModule, figure_modules, numbers_of
from ._report import report
from ._style import drawn_for, save

FOLDER = "figures"
# of the files of a figure
_SUFFIXES = (".png", ".pdf", ".csv", ".txt")


def draw_all(directory: Path, names: Sequence[str] | None = None, *, style: str = "paper") -> list[str]:
    """Draw every figure, or those of `names`, then the report; returns the names drawn.

    A figure is a PNG, a PDF, a CSV with the numbers it shows and a TXT with its caption. The report shows all figures
    there are, older ones too. All figures are put in place together, and then the report: killed, it leaves those of
    before. Raises UserError for a directory without results, for a figure or a style that does not exist, and where
    another process draws there.
    """
    results = Results.open(directory)
    available = plugins.names(PACKAGE)
    chosen = available if names is None else [plugins.check(name, available, "figure") for name in names]
    modules = figure_modules()
    folder = directory / FOLDER
    with written_whole(folder) as aside:
        if folder.is_dir():
            shutil.copytree(folder, aside, symlinks=True, dirs_exist_ok=True)
        with drawn_for(style):
            drawn = [name for name, module in modules.items() if name in chosen and _draw(results, name, module, aside)]
        pictures = {name: aside / f"{name}.png" for name in modules}
        there = {name: path for name, path in pictures.items() if path.is_file()}
        with refusing(f"no report can be made of {str(directory)!r}"):
            page = report(results, modules, there, tried=chosen).encode()
        if Results.open(directory).manifest != results.manifest:
            raise UserError(f"other results have come to {str(directory)!r} while these were drawn; draw them again")
    write_file(directory / "report.html", page)
    return drawn


def _draw(results: Results, name: str, module: FigureModule, folder: Path) -> bool:
    files = {suffix: folder / f"{name}{suffix}" for suffix in _SUFFIXES}
    with refusing(f"figure {name} cannot be drawn of {str(results.directory)!r}"):
        return _drawn(results, name, module, files, folder)


def _drawn(results: Results, name: str, module: FigureModule, files: Mapping[str, Path], folder: Path) -> bool:
    figure = module.draw(results)
    if figure is None:
        # what an earlier run left there would be shown as if it were of these results
        for path in files.values():
            path.unlink(missing_ok=True)
        return False
    numbers = numbers_of(results, module)
    with naming(folder / name):
        save(figure, folder / name)
        # six digits are more than any interval leaves standing, and a file of points stays small
        numbers.to_csv(files[".csv"], index=False, float_format="%.6g", lineterminator="\n")
        files[".txt"].write_text(f"{module.TITLE}. {caption(results, module, numbers)}\n", encoding="utf-8")
    return True
