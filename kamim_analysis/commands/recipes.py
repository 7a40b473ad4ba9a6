"""`kamim recipes`: the shipped recipes."""

import sys

from ..arguments import Parser

HELP = "list the shipped recipes, or print one"


def run(arguments: list[str]) -> None:
    """A line for each recipe: its name and the first line of its comment."""
    parser = Parser("recipes", HELP)
    parser.add_argument("recipe", nargs="?", metavar="NAME", help="print this recipe's YAML")
    chosen = parser.parse_args(arguments)

    from ..train.settings import recipe_names, recipe_path

    if chosen.recipe:
        sys.stdout.write(recipe_path(chosen.recipe).read_text(encoding="utf-8"))
        return
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        first = recipe_path(name).read_text(encoding="utf-8").splitlines()[0]
        print(f"{name:<{width}}  {first.removeprefix('# ')}")
