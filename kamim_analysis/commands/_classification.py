"""What `kamim probe` and `kamim finetune` share: a trained model, a recipe, and a run that ends in its accuracy."""

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from ..arguments import MODEL, Parser, add_reading, whole_number
from ..errors import UserError
from ._recipe import add_run_options, to_be_trained


def run_classification(command: str, description: str, recipe_name: str, arguments: Sequence[str]) -> None:
    """Check everything that can be checked without torch, then train and judge."""
    from ..train import settings
    from ..train.recipe import Recipe

    parser = _parser(command, description, recipe_name)
    scalars = {field.name for field in fields(Recipe) if field.default is not MISSING}
    own, overrides = split_overrides(arguments, scalars)
    chosen = parser.parse_args(own)
    if chosen.recipe is not None and chosen.config is not None:
        raise UserError("give one of --recipe NAME and --config FILE")
    path = chosen.config or settings.recipe_path(chosen.recipe or recipe_name)
    if not path.is_file():
        raise UserError(f"no recipe file at {str(path)!r}")
    given = {
        "objective.model": chosen.model, "objective.layer": chosen.layer, "objective.pooling": chosen.pooling,
        "objective.norm": chosen.norm, "objective.heads": chosen.heads, "objective.format": chosen.format,
        "data.source": chosen.data, "data.root": chosen.data_root, "encoder.image_size": chosen.image_size,
    }  # fmt: skip
    options = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
    recipe = settings.parse_recipe(["--config", str(path), *options, *overrides])
    wanted = type(settings.load_recipe(settings.recipe_path(recipe_name)).objective)
    if not isinstance(recipe.objective, wanted):
        raise UserError(f"{str(path)!r} is a recipe for {type(recipe.objective).__name__}, not for {wanted.__name__}")
    if not to_be_trained(recipe, chosen):
        return

    from ..train.evaluated import train_and_judge

    line = train_and_judge(recipe, chosen.out, force=chosen.force)
    if line:
        print(line)


def _parser(command: str, description: str, recipe_name: str) -> Parser:
    parser = Parser(command, description)
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_reading(parser)
    parser.add_argument(
        "--data", help="photographs, a directory with a folder for each class, or a timm data set's name"
    )
    parser.add_argument("--data_root", metavar="DIR", help="where a data set given by name lies; never downloaded")
    parser.add_argument("--out", metavar="RUN", type=Path, help="directory of the run; RUN/results holds the accuracy")
    parser.add_argument("--recipe", metavar="NAME", help=f"a shipped recipe (default: {recipe_name})")
    parser.add_argument("--config", metavar="FILE", type=Path, help="a recipe of your own, in YAML")
    parser.add_argument("--layer", help="a layer's number, or 'last' (default: 8 to probe a ViT, else the last)")
    parser.add_argument("--pooling", help="mean (default), cls, central, cls_attention, abmilp or attentive")
    parser.add_argument("--norm", choices=["none", "final", "trained"], help="what normalises before the linear layer")
    parser.add_argument("--image_size", type=whole_number(1), help="side of the input (default: the model's own)")
    add_run_options(parser)
    parser.epilog = (
        "Any setting of the recipe follows as --GROUP.NAME VALUE, e.g. --optim.epochs 50 --objective.mixing none "
        "--max_steps 100 --seed 1; --print_config shows them all."
    )
    return parser


def split_overrides(arguments: Sequence[str], scalars: set[str]) -> tuple[list[str], list[str]]:
    """The command's own arguments, and the recipe's: `--GROUP.NAME VALUE` and `--NAME VALUE` of one without group.

    argparse alone would take the value of an option that it does not know for MODEL.
    """
    own: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, _value = argument.partition("=")
        if argument.startswith("--") and ("." in name or name[2:] in scalars):
            overrides += [argument] if equals else [argument, *(value for value in [next(rest, None)] if value)]
        else:
            own.append(argument)
    return own, overrides
