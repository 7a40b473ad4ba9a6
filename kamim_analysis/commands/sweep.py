"""`kamim sweep`: a grid of runs with their evaluations, and the paper's table of it."""

import argparse
import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import MISSING, fields
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import Parser, names, whole_number
from ..errors import UserError
from ..output import write_file
from ..plugins import check as check_name
from ..plugins import names as plugin_names
from ._classification import split_overrides
from ._recipe import LESS_MEMORY as LESS_MEMORY

if TYPE_CHECKING:
    from ..train.recipe import Recipe
    from ..train.sweep import Evaluation, Sweep
    from ..train.sweep_cell import CellRun

HELP = "run a grid of trainings with their evaluations, each resumable, and lay out the paper's table"
_TABLES = "kamim_analysis.figures.tables"
_FILE, _TABLE = "sweep.yaml", "tables.txt"


def run(arguments: list[str]) -> None:
    """Check every cell without torch, then run what is not complete, one cell after the other or as jobs."""
    from ..train import sweep
    from ..train.recipe import Recipe

    scalars = {field.name for field in fields(Recipe) if field.default is not MISSING}
    own, given = split_overrides(arguments, scalars)
    chosen = _parser(sweep.sweep_names()).parse_args(own)
    path = sweep.sweep_path(chosen.sweep)
    asked = sweep.read(path, _as_settings(given))
    for name in asked.tables:
        check_name(name, plugin_names(_TABLES), "table")
    cells = _cells(asked, chosen)
    for one in asked.evaluations:
        _check_evaluation(one)
    if chosen.dry_run:
        _tell(cells)
        return
    _check_out(chosen.out)
    write_file(chosen.out / _FILE, path.read_bytes())
    runs = [cell for cell, _ in cells]
    failed = _submit(runs, chosen) if chosen.backend == "slurm" else _run_here(runs)
    _lay_out(chosen.out, asked.tables)
    if failed:
        sys.exit(1)


def _parser(shipped: Sequence[str]) -> Parser:
    parser = Parser(
        "sweep",
        f"{HELP}. The same command again skips what is complete and resumes the rest. DIR/CELL is an ordinary run, "
        "DIR/CELL/probe and so on are its evaluations, DIR/CELL.log is what they print.",
    )
    parser.add_argument("sweep", metavar="FILE.yaml|NAME", help=f"your own, or a shipped one: {', '.join(shipped)}")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="directory of the sweep")
    parser.add_argument(
        "--only", type=names, default=[], metavar="GLOB,GLOB", help="cells whose names match one, such as '*_0.25'"
    )
    parser.add_argument("--dry_run", action="store_true", help="print cells, commands, epochs and images, and stop")
    parser.add_argument(
        "--processes", type=whole_number(1), default=1, metavar="N",
        help="of each command, by torchrun: one for each GPU (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=["local", "slurm"], default="local",
        help="one cell after the other here (default), or a SLURM job for each, which goes back to the queue at its "
        "time limit; the same command tells later how they stand",
    )  # fmt: skip
    parser.add_argument(
        "--slurm", nargs="+", action="extend", type=_pair, default=[], metavar="KEY=VALUE",
        help="submitit's parameters, such as partition=gpu timeout_min=600 gpus_per_node=8 cpus_per_task=96",
    )  # fmt: skip
    parser.epilog = (
        "Any setting of the recipes follows as --GROUP.NAME VALUE and is of every cell, e.g. --data.root IMAGENET."
    )
    return parser


def _pair(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, yaml.safe_load(value)


def _as_settings(given: Sequence[str]) -> dict[str, str]:
    """`--NAME VALUE` and `--NAME=VALUE` by name."""
    found: dict[str, str] = {}
    rest = iter(given)
    for argument in rest:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not equals:
            value = next(rest, "")
        found[name] = value
    return found


def _cells(asked: "Sweep", chosen: argparse.Namespace) -> "list[tuple[CellRun, Recipe]]":
    """The chosen cells, each with its recipe, checked as `kamim train` would. Raises UserError."""
    from ..data import check_source
    from ..train import run_directory, settings
    from ..train.sweep_cell import cell_run

    found = []
    for cell in asked.cells:
        if chosen.only and not any(fnmatchcase(cell.name, pattern) for pattern in chosen.only):
            continue
        try:
            recipe = settings.parse_recipe(["--config", str(cell.recipe_file), *cell.settings])
            run_directory.check(chosen.out / cell.name, recipe)
            check_source(recipe.data.source)
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from None
        out = chosen.out.absolute()
        found.append((cell_run(cell, asked.evaluations, recipe.data, out, chosen.processes), recipe))
    if not found:
        raise UserError(f"--only chooses none of the cells {', '.join(cell.name for cell in asked.cells)}")
    return found


def _check_evaluation(one: "Evaluation") -> None:
    """Refuse a mistake in an evaluation's options before anything is trained."""
    from ..train.sweep import TRAINED

    module = import_module(f"{__package__}.{one.command}")
    stand_in = ["random:vit_tiny", *one.options]
    try:
        if one.command in TRAINED:
            with redirect_stdout(io.StringIO()):
                module.run([*stand_in, "--print_config"])
        else:
            data = [] if "data" in one.given else ["--data", "photographs"]
            module.parser().parse_args([*stand_in, *data, "--out", "out"])
    except UserError as error:
        raise UserError(f"evaluation {one.name}: {error}") from None


def _tell(cells: "list[tuple[CellRun, Recipe]]") -> None:
    """What would run, and how much that is."""
    epochs, images, unknown = 0, 0, 0
    for cell, recipe in cells:
        seen, left = _images(recipe), cell.unfinished()
        state = f"{', '.join(step.name for step in left)} to run" if left else "complete"
        print(f"{cell.name}: {_amount(recipe.optim.epochs, seen)}; {state}")
        print("".join(f"  {command}\n" for command in cell.commands()), end="")
        epochs, images, unknown = epochs + recipe.optim.epochs, images + (seen or 0), unknown + (seen is None)
    print(f"{len(cells)} cells, pre-training: {_amount(epochs, None if unknown else images)}")


def _images(recipe: "Recipe") -> int | None:
    """Pictures that a training sees; None where its data are not here."""
    from ..data import open_pictures

    data, batch = recipe.data, recipe.optim.batch_size
    try:
        pictures = open_pictures(data.source, "train", root=data.root, seed=recipe.seed)
    except UserError:
        return None
    length = min(len(pictures), data.per_class * len(pictures.classes)) if data.per_class else len(pictures)
    steps = recipe.optim.epochs * (length // batch)
    return batch * min(steps, recipe.max_steps or steps)


def _amount(epochs: int, images: int | None) -> str:
    seen = "images unknown, since the data are not here" if images is None else f"{images} images"
    return f"{epochs} epochs, {seen}"


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"output {str(out)!r} is a file; give a directory")
    if out.is_dir() and any(out.iterdir()) and not (out / _FILE).is_file():
        raise UserError(f"output directory {str(out)!r} holds other files; give a new or empty one")


def _run_here(cells: "Sequence[CellRun]") -> bool:
    """One cell after the other, a line for each; whether any is not complete in the end."""
    reasons: dict[str, str] = {}
    for i, cell in enumerate(cells, 1):
        print(f"[{i}/{len(cells)}] {cell.name}: ", end="", flush=True)
        outcome = cell.run(lambda text: print(text, end="", flush=True))
        print("complete before" if outcome.state == "complete" else outcome.state)
        if outcome.reason:
            reasons[cell.name] = f"{outcome.state}: {outcome.reason}"
    print(f"{len(cells) - len(reasons)} of {len(cells)} cells complete")
    for cell in cells:
        if cell.name in reasons:
            print(f"{cell.name} {reasons[cell.name]} ({cell.log})", file=sys.stderr)
    return bool(reasons)


def _submit(cells: "Sequence[CellRun]", chosen: argparse.Namespace) -> bool:
    """A job for each cell that is not complete and has none; never a failure of this command."""
    from ..train.sweep_cell import last_line
    from ..train.sweep_jobs import Queue

    queue = Queue(chosen.out.absolute() / ".jobs", "slurm", dict(chosen.slurm))
    for i, cell in enumerate(cells, 1):
        state = "complete before" if not cell.unfinished() else queue.running(cell.name)
        if not state:
            earlier = f"; the log of before ends with: {last_line(cell.log)}" if cell.log.is_file() else ""
            state = f"submitted as job {queue.submit(cell).job_id}{earlier}"
        print(f"[{i}/{len(cells)}] {cell.name}: {state}")
    return False


def _lay_out(out: Path, tables: Sequence[str]) -> None:
    """Write the tables of what is measured so far, and say how to lay them out again."""
    from . import table

    if not tables:
        return
    options = [str(out), "--table", ",".join(tables)]
    print(f"kamim table {' '.join(options)}  # prints them; --style markdown, latex or csv")
    try:
        table.run([*options, "--out", str(out / _TABLE), "--overwrite"])
    except UserError as error:
        print(f"no table yet: {error}")
