"""From results directories to tables."""

from collections.abc import Sequence
from pathlib import Path

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.results import METRICS
from kamim_analysis.results_reading import refusing

from ._epoch_time import epoch_times, read_run
from ._facts import Number, numbers_in
from ._grid import table_modules
from ._layout import lay_out
from ._styles import STYLES, rendered

_SWEEP = "sweep.yaml"


def tables(directories: Sequence[Path], names: Sequence[str] | None = None, *, style: str = "paper") -> str:
    """The papers' tables, or those of `names`, beside the numbers measured in results directories, as text.

    Raises UserError for a directory without results, an unknown table or style, and results that no table is about.
    """
    plugins.check(style, list(STYLES), "style")
    modules = table_modules(names)
    numbers = _numbers(list(dict.fromkeys(directories)))
    laid = [lay_out(name, module, numbers) for name, module in modules.items()]
    if not any(table.measured for table in laid):
        raise UserError(_nothing(directories, list(modules), numbers))
    return rendered(laid, style)


def _numbers(directories: Sequence[Path]) -> list[Number]:
    """Those of results, and the times of runs; a run of kamim probe or kamim finetune has results in it."""
    runs = {inner: read_run(inner) for directory in directories for inner in _within(directory)}
    found = []
    for directory, run in runs.items():
        inside = directory / "results"
        holding = inside if (inside / METRICS).is_file() else directory
        if holding == inside or run is None:
            with refusing(f"no table can be laid out of {str(holding)!r}"):
                found += numbers_in(holding)
    return found + epoch_times([run for run in runs.values() if run is not None])


def _within(directory: Path) -> list[Path]:
    """The runs and results in a directory of `kamim sweep`; any other directory itself."""
    if not (directory / _SWEEP).is_file():
        return [directory]
    cells = sorted(path for path in directory.iterdir() if path.is_dir())
    inner = [path for cell in cells for path in (cell, *sorted(cell.iterdir()))]
    ended = (read_run(path) or any((path / name).is_file() for name in (METRICS, f"results/{METRICS}"))
             for path in inner)  # fmt: skip
    return [path for path, holds_numbers in zip(inner, ended, strict=True) if holds_numbers]


def _nothing(directories: Sequence[Path], names: Sequence[str], numbers: Sequence[Number]) -> str:
    analyses = sorted({number.facts["evaluation"] for number in numbers})
    evaluations: dict[str, None] = {}
    for module in table_modules(names).values():
        for column in module.GRID.columns:
            wanted = column.fits["evaluation"]
            evaluations |= dict.fromkeys((wanted,) if isinstance(wanted, str) else wanted or ())
    return (
        f"no number in {', '.join(map(repr, map(str, directories)))} fits {', '.join(names)}: the analyses there are "
        f"{', '.join(analyses) or 'none'}; wanted are {', '.join(evaluations)}, of the tables' methods"
    )
