"""`kamim aggregate`: what every pooling makes of the same frozen tokens."""

import argparse

from ..arguments import Parser, whole_number
from ..invocation import recorded
from . import _frozen
from ._frozen import above_zero, frozen_parser, learning_rates, models_and_data, write_and_print

HELP = "compare poolings of frozen tokens by linear probes (selective aggregation)"
LESS_MEMORY = f"{_frozen.LESS_MEMORY}, or a lower --memory_gb"


def _part(text: str) -> float:
    value = above_zero(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return value


def parser() -> Parser:
    """The command's options."""
    parser = frozen_parser(
        "aggregate",
        f"{HELP}: mean, cls, central patches, attention of cls, AbMILP and attentive pooling, each with the learning "
        "rate that does best on held-out training pictures, and how evenly each weights patches. Data with one split "
        "are split. With --images N, 2N training pictures are used.",
        layer="last",
    )
    parser.add_argument(
        "--queries", type=whole_number(1), metavar="N",
        help="of attentive pooling; they divide the channels (default: 8, or the most below that do)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=whole_number(1), default=3, metavar="N", help="repetitions (default: 3)")
    parser.add_argument("--epochs", type=whole_number(1), default=100, help="of every probe (default: 100)")
    parser.add_argument(
        "--learning_rates", type=learning_rates, metavar="R,R", help="to choose from (default: 3e-4,3e-3,3e-2,3e-1)"
    )
    parser.add_argument(
        "--test_share", type=_part, default=0.5, metavar="SHARE",
        help="of data with one split, the share that is judged (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--memory_gb", type=above_zero, default=2.0, metavar="GB",
        help="patch tokens beyond this lie on disk beside --out while a model is worked on (default: 2)",
    )  # fmt: skip
    return parser


def run(arguments: list[str]) -> None:
    """Check the command and the data, then take tokens, train probes and write the results."""
    with recorded(parser(), arguments) as chosen:
        _evaluate(chosen)


def _evaluate(chosen: argparse.Namespace) -> None:
    models, data = models_and_data(chosen, bank_all=False)

    from ..analyses.evaluation.aggregation_run import Request, run_aggregation
    from ..analyses.evaluation.aggregation_training import Recipe
    from ..extraction import Loading

    recipe = Recipe(
        epochs=chosen.epochs, **({"learning_rates": chosen.learning_rates} if chosen.learning_rates else {})
    )
    request = Request(
        models=models, layers=chosen.layer, norm=chosen.norm, image_size=chosen.image_size, queries=chosen.queries,
        seeds=chosen.seeds, seed=chosen.seed, test_share=chosen.test_share, recipe=recipe,
        loading=Loading(chosen.batch_size, chosen.workers), stores=chosen.features, memory_gb=chosen.memory_gb,
    )  # fmt: skip
    tokens = chosen.out.with_name(f".{chosen.out.name}.tokens")
    write_and_print(chosen, data, lambda aside: run_aggregation(request, data, aside, tokens))
