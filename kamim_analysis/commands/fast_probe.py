"""`kamim fast_probe`: linear probes of all layers, poolings and learning rates at once, on frozen features."""

import argparse

from ..arguments import Parser, names, share, whole_number
from ..invocation import recorded
from . import _frozen
from ._frozen import frozen_parser, learning_rates, models_and_data, write_and_print

HELP = "train linear probes on frozen features of all layers at once"
LESS_MEMORY = f"{_frozen.LESS_MEMORY}, fewer layers (--layer) or fewer --learning_rates"


def _weight_decay(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return value


def parser() -> Parser:
    """The command's options."""
    parser = frozen_parser(
        "fast_probe",
        f"{HELP}. Of the training pictures a part is held out, on which learning rate, layer and pooling are chosen; "
        "what is reported is measured on the validation split, or, where the data have one split, on pictures set "
        "aside beforehand. No augmentation: kamim probe follows the papers' recipe on one layer.",
        layer="all",
    )
    parser.add_argument(
        "--pooling", type=names, default=[], metavar="NAME,NAME",
        help="mean, cls, central or cls_attention (default: the first three, of those that the encoder offers)",
    )  # fmt: skip
    parser.add_argument(
        "--learning_rates", type=learning_rates, metavar="R,R",
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


def run(arguments: list[str]) -> None:
    """Check the command and the data's size, then take features, train and judge."""
    with recorded(parser(), arguments) as chosen:
        _evaluate(chosen)


def _evaluate(chosen: argparse.Namespace) -> None:
    models, data = models_and_data(chosen, poolings=chosen.pooling)

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
    loading = Loading(chosen.batch_size, chosen.workers)
    write_and_print(chosen, data, lambda aside: run_fast_probe(models, data, settings, loading, aside))
