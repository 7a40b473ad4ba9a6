"""A sweep file: which runs it asks for, and how each is evaluated. Pure; imports no torch.

recipe: kamim_photographs             # a shipped recipe, or a file relative to this one
overrides: {optim.epochs: 4}          # of every cell
grid: {objective.weight_patch: [8, 16], objective.temperature: [0.25, 1]}   # a cell for each combination
also: [{recipe: simmim_photographs}]  # further cells; each may have a name and overrides of its own
evaluate: [{command: knn, k: [20]}]   # after each cell's training; every other key is an option of the command
table: [kamim_2]                      # the papers' tables that this lays out
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.plain_data import yaml_of

from .recipe_files import recipe_path

SWEEPS = Path(__file__).with_name("sweeps")
#: commands that judge one trained MODEL and write a directory of results
EVALUATIONS = ("analyze", "fast_probe", "finetune", "knn", "probe")
#: those of them that train, resume their own directory and so refuse --overwrite
TRAINED = ("finetune", "probe")
_KEYS = ("recipe", "overrides", "grid", "also", "evaluate", "table")
_OF_CELL = ("recipe", "overrides", "name")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep."""

    name: str
    """Of its directory."""
    recipe: str
    """A shipped recipe's name or, ending in .yaml, a file."""
    overrides: Mapping[str, Any]
    """Values of settings by dotted name."""

    @property
    def settings(self) -> list[str]:
        """Its overrides as on the command line."""
        return [part for key, value in self.overrides.items() for part in (f"--{key}", as_option(value))]

    @property
    def options(self) -> list[str]:
        """What `kamim train` is given."""
        shipped = not self.recipe.endswith((".yaml", ".yml"))
        return ["--recipe" if shipped else "--config", self.recipe, *self.settings]

    @property
    def recipe_file(self) -> Path:
        """Where its recipe stands."""
        return Path(self.recipe) if self.recipe.endswith((".yaml", ".yml")) else recipe_path(self.recipe)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A command that judges every trained cell."""

    name: str
    """Of its directory in the cell's."""
    command: str
    given: Mapping[str, Any]
    """Its options by name."""

    @property
    def options(self) -> list[str]:
        """As on the command line: a list between commas, but a setting's (with a dot in its name) as YAML has it."""
        found = []
        for key, value in self.given.items():
            if isinstance(value, list) and "." not in key:
                value = ",".join(map(as_option, value))
            found += [f"--{key}"] if value is True else [f"--{key}", as_option(value)]
        return found


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep file asks for."""

    cells: tuple[Cell, ...]
    evaluations: tuple[Evaluation, ...]
    tables: tuple[str, ...]


def sweep_names() -> list[str]:
    """The shipped sweeps."""
    return sorted(path.stem for path in SWEEPS.glob("*.yaml"))


def sweep_path(name: str) -> Path:
    """A file, or a shipped sweep by its name. Raises UserError for neither."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"no sweep file at {name!r}; shipped sweeps are {', '.join(sweep_names())}")
        return Path(name)
    return SWEEPS / f"{plugins.check(name, sweep_names(), 'sweep')}.yaml"


def read(path: Path, overrides: Mapping[str, Any]) -> Sweep:
    """The sweep in a file; `overrides` of the command line are of every cell and go before the file's.

    Raises UserError with one line that names the file and the key.
    """
    try:
        loaded = yaml_of(path.read_text(encoding="utf-8"))
        return sweep_of(loaded, overrides, path.parent)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read sweep {str(path)!r}: {' '.join(str(error).split())}") from error
    except UserError as error:
        raise UserError(f"sweep {str(path)!r}: {error}") from None


def sweep_of(loaded: Any, overrides: Mapping[str, Any], folder: Path = Path()) -> Sweep:
    """The sweep that a file's contents ask for; recipe files are relative to `folder`.

    >>> sweep = sweep_of({"recipe": "kamim_photographs", "grid": {"seed": [0, 1]}}, {})
    >>> [cell.name for cell in sweep.cells], sweep.cells[1].options
    (['seed_0', 'seed_1'], ['--recipe', 'kamim_photographs', '--seed', '1'])
    """
    given = _mapping("the file", loaded, _KEYS)
    evaluations = [_evaluation(i, one) for i, one in enumerate(_list("evaluate", given), 1)]
    cells = _cells(given, overrides, folder)
    _check_unique("cells", [cell.name for cell in cells])
    _check_unique("evaluations", [one.name for one in evaluations])
    return Sweep(cells=tuple(cells), evaluations=tuple(evaluations), tables=tuple(map(str, _list("table", given))))


def _cells(given: Mapping[str, Any], overrides: Mapping[str, Any], folder: Path) -> list[Cell]:
    """Those of the grid, then the further ones."""
    recipe, grid = given.get("recipe"), _grid(given.get("grid", {}))
    for key in overrides:
        if key in grid:
            raise UserError(f"--{key} is varied by 'grid'; choose cells with --only, or change the file")
    if grid and recipe is None:
        raise UserError("'grid' needs a 'recipe' whose settings it varies")
    own = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    entries: list[Mapping[str, Any]] = [{"overrides": one} for one in own] if recipe is not None else []
    entries += [_mapping(f"'also' {i}", one, _OF_CELL) for i, one in enumerate(_list("also", given), 1)]
    if not entries:
        raise UserError("it asks for no run; give 'recipe', with 'grid' or alone, or 'also'")
    common = _settings("overrides", given.get("overrides", {}))
    return [_cell({"recipe": recipe, **one}, common, overrides, folder) for one in entries]


def as_option(value: Any) -> str:
    """A value as one word of the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def cell_name(recipe: str, own: Mapping[str, Any]) -> str:
    """What a cell has of its own, else its recipe; no "=" and no "/" in it, for RUN is part of LABEL=RUN.

    >>> cell_name("kamim", {"objective.weight_patch": 8, "objective.temperature": 0.5}), cell_name("a/kamim.yaml", {})
    ('weight_patch_8-temperature_0.5', 'kamim')
    """
    leaves = [key.rsplit(".", 1)[-1] for key in own]
    keys = [leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(own, leaves, strict=True)]
    parts = [f"{key}_{_plain(value)}" for key, value in zip(keys, own.values(), strict=True)]
    name = "-".join(parts) or Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    return re.sub(r"[^\w.+-]+", "_", name).strip("_.")


def _plain(value: Any) -> str:
    """A value without quotes and brackets; a class by its name and what is set of it."""
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = [f"{key}_{_plain(one)}" for key, one in (value.get("init_args") or {}).items()]
        return "_".join([str(value["class_path"]), *arguments])
    if isinstance(value, list):
        return "_".join(map(_plain, value))
    return as_option(value)


def _cell(entry: Mapping[str, Any], common: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> Cell:
    """A cell with its own overrides over the common ones, and the command line's over both."""
    recipe, own = entry["recipe"], _settings("overrides", entry.get("overrides", {}))
    if not isinstance(recipe, str):
        raise UserError(f"'recipe' is {recipe!r}; give a shipped recipe's name or a file NAME.yaml")
    if recipe.endswith((".yaml", ".yml")):
        recipe = str((folder / recipe).resolve())
        if not Path(recipe).is_file():
            raise UserError(f"'recipe': no recipe file at {recipe!r}")
    else:
        recipe_path(recipe)
    name = entry.get("name", cell_name(recipe, own))
    if not isinstance(name, str) or not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise UserError(f"'name' {name!r} is no directory's name of letters, digits and ._+-")
    return Cell(name=name, recipe=recipe, overrides={**common, **own, **given})


def _evaluation(i: int, one: Any) -> Evaluation:
    where = f"'evaluate' {i}"
    if not isinstance(one, dict) or "command" not in one:
        raise UserError(f"{where} is {one!r}; give a mapping with 'command', one of {', '.join(EVALUATIONS)}")
    given = {str(key): value for key, value in one.items()}
    command = given.pop("command")
    name = given.pop("name", command)
    if command not in EVALUATIONS:
        raise UserError(f"{where}: unknown command {command!r}; there are: {', '.join(EVALUATIONS)}")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name) or name == "checkpoints":
        raise UserError(f"{where}: 'name' {name!r} is no directory's name of letters, digits, _ and -")
    for key, value in given.items():
        if key in ("model", "out", "overwrite"):
            raise UserError(f"{where}: {key!r} is the sweep's own; leave it out")
        if value is None or value is False:
            raise UserError(f"{where}: {key!r} is {value!r}; leave it out, or give its value")
    return Evaluation(name=name, command=command, given=given)


def _grid(grid: Any) -> dict[str, list[Any]]:
    settings = _settings("grid", grid)
    for key, values in settings.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"'grid' {key!r} is {values!r}; give a list of values")
    return settings


def _settings(key: str, value: Any) -> dict[str, Any]:
    """Settings by dotted name, as the command line has them."""
    if not isinstance(value, dict):
        raise UserError(f"{key!r} is {value!r}; give settings by dotted name, such as {{optim.epochs: 4}}")
    return {str(name): one for name, one in value.items()}


def _mapping(where: str, value: Any, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {value!r}; give a mapping with {', '.join(known)}")
    for key in value:
        plugins.check(str(key), list(known), f"key of {where}")
    return value


def _list(key: str, given: Mapping[str, Any]) -> list[Any]:
    value = given.get(key, [])
    if not isinstance(value, list):
        raise UserError(f"{key!r} is {value!r}; give a list")
    return value


def _check_unique(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two {what} are called {name!r}; give one of them another 'name'")
