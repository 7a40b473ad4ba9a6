"""`kamim train`: train by a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import Parser
from ..errors import UserError
from ._recipe import LESS_MEMORY as LESS_MEMORY
from ._recipe import add_run_options, to_be_trained

if TYPE_CHECKING:
    from ..train.recipe import Recipe

HELP = "train by a recipe (SimMIM, KAMIM, AttMask, Latent MIM, MAE, linear probe, fine-tuning)"


def run(arguments: list[str]) -> None:
    """Check everything that can be checked without torch, then train."""
    parser = Parser("train", f"{HELP}. The same command on an existing RUN resumes it.")
    parser.add_argument("--recipe", metavar="NAME", help="a shipped recipe (kamim recipes lists them)")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="a recipe of your own, in YAML; base: NAME there takes over another"
    )
    parser.add_argument("--out", metavar="RUN", type=Path, help="directory of the run")
    add_run_options(parser)
    parser.epilog = (
        "Any setting of the recipe follows as --GROUP.NAME VALUE, e.g. --optim.epochs 50 --objective.temperature 0.1 "
        "--max_steps 100 --seed 1; --print_config shows them all."
    )
    chosen, overrides = parser.parse_known_args(arguments)

    from ..train import settings

    if (chosen.recipe is None) == (chosen.config is None):
        raise UserError("give one of --recipe NAME (kamim recipes lists them) and --config FILE")
    path = settings.recipe_path(chosen.recipe) if chosen.recipe else chosen.config
    if not path.is_file():
        raise UserError(f"no recipe file at {str(path)!r}")
    recipe = settings.parse_recipe(["--config", str(path), *overrides])
    if to_be_trained(recipe, chosen):
        train_and_monitor(recipe, chosen.out, force=chosen.force)


def train_and_monitor(recipe: "Recipe", out: Path, *, force: bool = False) -> None:
    """Train with the analyses watching: the one place where the two meet. A classifier is watched by its accuracy."""
    from ..train.objectives._classification import Classification

    objective = recipe.objective
    if isinstance(objective, Classification):
        from ..train.evaluated import train_and_judge

        line = train_and_judge(recipe, out, force=force)
        if line:  # of the first process
            print(line, flush=True)
        return

    from ..analyses._monitor import Monitor
    from ..reconstruction import MaskSettings
    from ..train.loop import train

    masking = MaskSettings(unit=getattr(objective, "mask_unit", 32), ratio=getattr(objective, "mask_ratio", 0.6))
    monitor = None
    if recipe.monitor.every_epochs:
        monitor = Monitor(
            recipe.data.source,
            root=recipe.data.root,
            images=recipe.monitor.images,
            workers=recipe.efficiency.workers,
            seed=recipe.seed,
            masking=masking,
        )
    train(recipe, out, monitor, force=force)
