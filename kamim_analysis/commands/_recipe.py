"""What `kamim train`, `probe` and `finetune` do with a recipe once it is read."""

import argparse
import sys
from typing import TYPE_CHECKING

from ..arguments import Parser
from ..errors import UserError

if TYPE_CHECKING:
    from ..train.recipe import Recipe

#: what a training takes less memory with; the first two may differ when it goes on from a checkpoint
LESS_MEMORY = (
    "take a lower --efficiency.micro_batch or fewer --efficiency.workers, which leave the results as they are, or a "
    "lower --optim.batch_size or --encoder.image_size"
)


def add_run_options(parser: Parser) -> None:
    """What to do with the recipe."""
    parser.add_argument(
        "--force", action="store_true", help="go on from RUN's last checkpoint with settings that differ from its own"
    )
    parser.add_argument("--print_config", action="store_true", help="print the complete recipe and stop")


def to_be_trained(recipe: "Recipe", chosen: argparse.Namespace) -> bool:
    """Print the recipe where --print_config asks for no more; else refuse a directory or data that cannot be used."""
    from ..data import check_source
    from ..train import run_directory, settings

    if chosen.print_config:
        sys.stdout.write(settings.as_yaml(recipe))
        return False
    if chosen.out is None:
        raise UserError("give --out RUN, the directory of the run")
    run_directory.check(chosen.out, recipe, force=chosen.force)
    check_source(recipe.data.source)
    return True
