"""`kamim aggregate`: what every pooling makes of the same frozen tokens."""

import argparse

from ..arguments import Parser, add_features, add_models_and_data, layers, names, reading, whole_number

HELP = "compare poolings of frozen tokens by linear probes (selective aggregation)"


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _rates(text: str) -> tuple[float, ...]:
    found = tuple(sorted({_above_zero(part) for part in names(text)}))
    if not found:
        raise argparse.ArgumentTypeError("no learning rate is given")
    return found


def _part(text: str) -> float:
    value = _above_zero(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return value


def _parser() -> Parser:
    parser = Parser(
        "aggregate",
        f"{HELP}: mean, cls, central patches, attention of cls, AbMILP and attentive pooling, each with the learning "
        "rate that does best on held-out training pictures, and how evenly each weights patches. Data with one split "
        "are split. With --images N, 2N training pictures are used.",
    )
    add_models_and_data(parser, images=None, pooling=False)
    add_features(parser)
    parser.add_argument(
        "--layer", type=layers, default=[-1], metavar="all|last|N,N", help="0 is the embedding (default: last)"
    )
    parser.add_argument(
        "--norm", default="last", choices=["none", "last", "all"],
        help="layers whose tokens go through the encoder's final norm (default: last)",
    )  # fmt: skip
    parser.add_argument(
        "--queries", type=whole_number(1), metavar="N",
        help="of attentive pooling; they divide the channels (default: 8, or the most below that do)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=whole_number(1), default=3, metavar="N", help="repetitions (default: 3)")
    parser.add_argument("--epochs", type=whole_number(1), default=100, help="of every probe (default: 100)")
    parser.add_argument(
        "--learning_rates",
        type=_rates,
        metavar="R,R",
        help="to choose from (default: 3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1)",
    )
    parser.add_argument(
        "--test_share", type=_part, default=0.5, metavar="SHARE",
        help="of data with one split, the share that is judged (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--memory_gb", type=_above_zero, default=2.0, metavar="GB",
        help="patch tokens beyond this lie on disk beside --out while a model is worked on (default: 2)",
    )  # fmt: skip
    return parser


def run(arguments: list[str]) -> None:
    """Check the command and the data, then take tokens, train probes and write the results."""
    chosen = _parser().parse_args(arguments)

    from .. import output
    from ..data import check_source
    from ..model_spec import parse_all
    from ..sampling import check_classes, open_data

    check_source(chosen.data)
    models = parse_all(chosen.models, reading(chosen))
    output.check(chosen.out, overwrite=chosen.overwrite)
    data = open_data(chosen.data, chosen.data_root, chosen.images, chosen.seed, max_unreadable=chosen.max_unreadable)
    check_classes(data)

    from .. import processes
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
    with processes.joined(), processes.written_by_first(chosen.out) as aside:
        table = run_aggregation(request, data, aside, tokens)
    if processes.is_first():
        print(table)
    data.unreadable.check()
