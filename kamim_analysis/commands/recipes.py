"""`kamim recipes`: the shipped recipes, and what the papers report of them."""

import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from ..arguments import Parser

if TYPE_CHECKING:
    from ..train.recipe import Recipe
    from ..train.recipe_files import About

HELP = "list the shipped recipes with what they cost and the papers' results, or print one"
_COLUMNS = ("recipe", "objective", "encoder", "data", "epochs", "pictures", "FLOP")
_NUMBERS = (4, 5, 6)


def run(arguments: list[str]) -> None:
    """A line for each recipe, grouped by paper; or one recipe after what it says about itself."""
    parser = Parser("recipes", HELP)
    parser.add_argument("recipe", nargs="?", metavar="NAME", help="print this recipe's YAML and where it comes from")
    chosen = parser.parse_args(arguments)

    from ..train.recipe_files import read
    from ..train.settings import load_recipe, recipe_names, recipe_parser, recipe_path

    if chosen.recipe:
        path = recipe_path(chosen.recipe)
        lines = _described(load_recipe(path), read(path).about)
        sys.stdout.write("\n".join([*lines, path.read_text(encoding="utf-8")]))
        return
    settings, listed = recipe_parser(), []
    for path in map(recipe_path, recipe_names()):
        recipe, about = load_recipe(path, settings), read(path).about
        listed.append((about, [path.stem, *_cells(recipe, about)]))
    print(_table(listed))


def _cells(recipe: "Recipe", about: "About") -> list[str]:
    """What a recipe is and costs."""
    data = recipe.data
    return [
        type(recipe.objective).__name__,
        (recipe.encoder.name or "").split("_patch")[0],
        data.source.removeprefix("torch/") + (f":{data.per_class}" if data.per_class else ""),
        str(recipe.optim.epochs),
        *_costs(recipe, about),
    ]


def _costs(recipe: "Recipe", about: "About") -> tuple[str, str]:
    """Pictures seen and FLOP of the run, forward and backward; empty where they depend on what a user brings."""
    from ..train.pictures_seen import pictures_seen

    seen = pictures_seen(recipe)
    if seen is None:
        return "", ""
    return _short(seen), f"{seen * about.gflop * 1e9:.1e}".replace("e+", "e") if about.gflop else ""


def _short(count: int) -> str:
    """A number with three digits and a letter.

    >>> _short(128_000_000), _short(1_022_361_600), _short(24_576)
    ('128M', '1.02G', '24.6k')
    """
    for letter, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)


def _table(listed: list[tuple["About", list[str]]]) -> str:
    """Lines in columns, the recipes of a paper under its name, with those two results that most of them have."""
    rows = [row for _about, row in listed]
    shown = [i for i in range(len(_COLUMNS)) if any(row[i] for row in rows)]
    widths = [max(len(row[i]) for row in [list(_COLUMNS), *rows]) for i in range(len(_COLUMNS))]

    def line(row: list[str], results: str) -> str:
        cells = [row[i].rjust(widths[i]) if i in _NUMBERS else row[i].ljust(widths[i]) for i in shown]
        return "  ".join([*cells, results]).rstrip()

    lines = [line(list(_COLUMNS), "paper's, %")]
    papers = dict.fromkeys(about.paper for about, _row in listed)
    for paper in sorted(papers, key=lambda name: (not name, name)):
        members = [(about, row) for about, row in listed if about.paper == paper]
        columns = [name for name, _ in Counter(name for about, _ in members for name in about.reported).most_common(2)]
        lines += ["", (paper or "of no paper") + (f" ({', '.join(columns)})" if columns else "")]
        lines += [line(row, " ".join(_percent(about, name) for name in columns)) for about, row in members]
    return "\n".join(lines)


def _percent(about: "About", name: str) -> str:
    return f"{about.reported[name]:5.2f}" if name in about.reported else "    -"


def _described(recipe: "Recipe", about: "About") -> list[str]:
    """What a recipe says about itself, as comments: the output is still YAML."""
    root = " --data_root ROOT" if recipe.data.source.startswith("torch/") else ""
    lines = [f"{about.paper}: {about.cell}"] if about.paper else []
    pictures, flop = _costs(recipe, about)
    lines += [f"The run sees {pictures} pictures{f' and takes {flop} FLOP' if flop else ''}."] if pictures else []
    width = max(map(len, about.reported), default=0)
    for name, value in about.reported.items():
        command = about.evaluate.get(name, "").replace("DATA ", f"{recipe.data.source}{root} ")
        lines.append(f"  {name:<{width}}  {value:<6}  {command}")
    lines += textwrap.wrap(f"Note: {about.note}", 116) if about.note else []
    return [f"# {line}" for line in [*lines, ""]] if lines else []
