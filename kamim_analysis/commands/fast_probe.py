"""`kamim fast_probe`: linear probes of all layers, poolings and learning rates at once, on frozen features."""

import argparse

from ..arguments import Parser, add_features, add_models_and_data, layers, names, reading, share, whole_number

HELP = "train linear probes on frozen features of all layers at once"
_POOLINGS = "kamim_analysis.poolings"


def _rates(text: str) -> tuple[float, ...]:
    found = []
    for part in names(text):
        try:
            found.append(float(part))
        except ValueError:
            found.append(0.0)
        if not 0 < found[-1] < float("inf"):
            raise argparse.ArgumentTypeError(f"{part!r} is not a learning rate, a number above 0")
    if not found:
        raise argparse.ArgumentTypeError("no learning rate is given")
    return tuple(sorted(set(found)))


def _weight_decay(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return value


def _parser() -> Parser:
    parser = Parser(
        "fast_probe",
        f"{HELP}. Of the training pictures a part is held out, on which learning rate, layer and pooling are chosen; "
        "what is reported is measured on the validation split, or, where the data have one split, on pictures set "
        "aside beforehand. No augmentation: kamim probe follows the papers' recipe on one layer.",
    )
    add_models_and_data(parser, images=None, pooling=False)
    add_features(parser)
    parser.add_argument(
        "--layer", type=layers, default="all", metavar="all|last|N,N", help="0 is the embedding (default: all)"
    )
    parser.add_argument(
        "--pooling", type=names, default=[], metavar="NAME,NAME",
        help="mean, cls, central or cls_attention (default: the first three, of those that the encoder offers)",
    )  # fmt: skip
    parser.add_argument(
        "--norm", choices=["none", "last", "all"], default="last",
        help="layers whose tokens go through the encoder's final norm (default: last)",
    )  # fmt: skip
    parser.add_argument(
        "--learning_rates", type=_rates, metavar="R,R",
        help="to choose from (default: half decades from 1e-4 to 0.3)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=whole_number(1), default=20, help="default: 20")
    parser.add_argument(
        "--batch_size_probe", type=whole_number(1), default=64, metavar="N", help="pictures a step (default: 64)"
    )
    parser.add_argument("--weight_decay", type=_weight_decay, default=0.05, help="of AdamW (default: 0.05)")
    parser.add_argument(
        "--standardise", choices=["channel", "none"], default="channel",
        help="features less their mean over their deviation, of the pictures learned from, or as they are",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=whole_number(1), default=1, metavar="N",
        help="repeat with other held-out pictures and another order, for intervals over both (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--held_out_share", type=share, default=0.2, help="of the training pictures of each class (default: 0.2)"
    )
    parser.add_argument(
        "--test_share", type=share, default=0.2,
        help="of each class's pictures to be judged, where the data have one split (default: 0.2)",
    )  # fmt: skip
    return parser


def _check(chosen: argparse.Namespace) -> None:
    from .. import output, plugins
    from ..data import check_source

    for name in chosen.pooling:
        plugins.check(name, plugins.names(_POOLINGS), "pooling")
    check_source(chosen.data)
    output.check(chosen.out, overwrite=chosen.overwrite)


def run(arguments: list[str]) -> None:
    """Check the command and the data's size, then take features, train and judge."""
    chosen = _parser().parse_args(arguments)
    _check(chosen)

    from ..model_spec import parse_all
    from ..sampling import check_classes, open_data

    models = parse_all(chosen.models, reading(chosen))
    data = open_data(
        chosen.data, chosen.data_root, chosen.images, chosen.seed, max_unreadable=chosen.max_unreadable, bank_all=True
    )
    check_classes(data)

    from .. import processes
    from ..analyses.evaluation.fast_probe import Recipe
    from ..analyses.evaluation.fast_probe_choice import FastProbeSettings
    from ..analyses.evaluation.fast_probe_run import run_fast_probe
    from ..extraction import Loading

    rates = {"learning_rates": chosen.learning_rates} if chosen.learning_rates else {}
    recipe = Recipe(
        epochs=chosen.epochs, batch_size=chosen.batch_size_probe, weight_decay=chosen.weight_decay,
        standardise=chosen.standardise, **rates,
    )  # fmt: skip
    settings = FastProbeSettings(
        layers=chosen.layer, poolings=tuple(dict.fromkeys(chosen.pooling)), norm=chosen.norm, recipe=recipe,
        held_out_share=chosen.held_out_share, test_share=chosen.test_share, seeds=chosen.seeds,
        image_size=chosen.image_size, seed=chosen.seed, stores=tuple(chosen.features),
    )  # fmt: skip
    with processes.joined(), processes.written_by_first(chosen.out) as aside:
        table = run_fast_probe(models, data, settings, Loading(chosen.batch_size, chosen.workers), aside)
    if processes.is_first():
        print(table)
    data.unreadable.check()
