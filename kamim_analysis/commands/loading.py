"""`kamim loading`: what loading pictures costs by stage, and how many cores feed a given rate."""

import argparse
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import Parser, above, whole_number
from ..errors import UserError

if TYPE_CHECKING:
    from ..train.loading_cost import Cost
    from ..train.recipe import Recipe

HELP = "what loading pictures costs by stage (read, decode, crop, masks, keypoints), and the cores that feed a rate"
_RECIPE = "kamim_vit_b16_in1k"

log = logging.getLogger(__name__)


def run(arguments: list[str]) -> None:
    """A table of stages on standard output; what to conclude of it in the log."""
    chosen, overrides = _parser().parse_known_args(arguments)
    recipe = _recipe(chosen, overrides)

    from ..data import check_source

    check_source(recipe.data.source)

    from accelerate import init_empty_weights

    from ..train.loading_cost import WHOLE, rate_of_workers, stage_costs

    # nothing computes with the encoder; one that is opened for its trained weights is opened as ever
    with init_empty_weights(include_buffers=False):
        start = recipe.objective.start(recipe)
    costs = stage_costs(recipe, start, chosen.images)
    measured = rate_of_workers(recipe, start, chosen.images, chosen.workers) if chosen.workers else None
    _print(costs, chosen.rate)
    whole = next(cost for cost in costs if cost.stage == WHOLE)
    log.info("%s", _conclusion(whole, costs, chosen.rate))
    if measured is not None:
        log.info("%s", _check(whole, measured, chosen.workers))


def _parser() -> Parser:
    parser = Parser("loading", f"{HELP}.")
    parser.add_argument("data", metavar="DATA", help="photographs, a directory, packed shards, or a data set's name")
    parser.add_argument("--data_root", metavar="DIR", help="where a data set given by name lies")
    parser.add_argument(
        "--recipe", metavar="NAME", help=f"the recipe whose pictures and masks are made (default: {_RECIPE})"
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="a recipe of your own")
    parser.add_argument(
        "--images", type=whole_number(20), default=200, metavar="N", help="pictures that are timed (default: 200)"
    )
    parser.add_argument(
        "--rate", type=above(0), default=1000.0, metavar="R", help="images a second to be fed (default: 1000)"
    )
    parser.add_argument(
        "--workers", type=whole_number(0), default=2, metavar="N",
        help="processes that load for the check of the whole; 0: none (default: 2)",
    )  # fmt: skip
    parser.epilog = (
        "Any setting of the recipe follows as --GROUP.NAME VALUE, e.g. --data.device_augment true. A stage's time is "
        "processor time of one core, with its 95% bootstrap interval over batches of ten pictures."
    )
    return parser


def _recipe(chosen: argparse.Namespace, overrides: list[str]) -> "Recipe":
    from ..train import settings

    if chosen.recipe is not None and chosen.config is not None:
        raise UserError("give one of --recipe NAME (kamim recipes lists them) and --config FILE, not both")
    path = chosen.config or settings.recipe_path(chosen.recipe or _RECIPE)
    if not path.is_file():
        raise UserError(f"no recipe file at {str(path)!r}")
    data = ["--data.source", chosen.data, "--data.root", chosen.data_root or "null", "--data.per_class", "null"]
    return settings.parse_recipe(["--config", str(path), *data, *overrides])


def _print(costs: list["Cost"], rate: float) -> None:
    """Laid out for a terminal; else as text with tabs, for other programs."""
    rows = [
        (
            cost.stage,
            *(f"{1000 * seconds:.3f}" for seconds in (cost.seconds, cost.low, cost.high)),
            f"{1 / cost.seconds:.0f}" if cost.seconds else "",
            f"{rate * cost.seconds:.2f}",
        )
        for cost in costs
    ]
    titles = ("stage", "ms_per_image", "ci_low", "ci_high", "images_per_second", f"cores_for_{rate:g}_per_second")
    if not sys.stdout.isatty():
        print("\n".join("\t".join(row) for row in [titles, *rows]))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD)
    for title in ("stage", "ms / image", "95% interval", "images/s of a core", f"cores for {rate:,g}/s"):
        grid.add_column(title, justify="left" if title == "stage" else "right")
    for stage, mean, low, high, per_second, cores in rows:
        grid.add_row(stage, mean, f"[{low}, {high}]".replace("[", "\\["), per_second, cores)
    Console().print(grid)


def _conclusion(whole: "Cost", costs: list["Cost"], rate: float) -> str:
    """What to buy."""
    low, cores, high = (rate * seconds for seconds in (whole.low, whole.seconds, whole.high))
    dearest = max((cost for cost in costs if cost.stage not in ("whole", "waiting")), key=lambda cost: cost.seconds)
    return (
        f"{rate:,g} images/s take {math.ceil(cores)} cores like this one ({cores:.2f}, 95% interval {low:.2f} to "
        f"{high:.2f}); the dearest stage is {dearest.stage!r} with {dearest.seconds / whole.seconds:.0%} of the time"
    )


def _check(whole: "Cost", measured: "Cost", workers: int) -> str:
    """The rate of worker processes beside what their cores should give."""
    share = whole.seconds / workers / measured.seconds
    return (
        f"--workers {workers} load {1 / measured.seconds:,.0f} images/s here (95% interval {1 / measured.high:,.0f} to "
        f"{1 / measured.low:,.0f}), {share:.0%} of what {workers} cores should give by the table"
    )
