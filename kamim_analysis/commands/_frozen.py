"""What the commands that evaluate frozen features share: options, checks, and results that the first process writes."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..arguments import Parser, above, add_models_and_data, layers, names, reading
from . import analyze

if TYPE_CHECKING:
    from ..model_spec import ModelSpec
    from ..sampling import ChosenPictures

#: what a command takes less memory with
LESS_MEMORY = f"{analyze.LESS_MEMORY}, or features on disk (kamim features, then --features)"
_POOLINGS = "kamim_analysis.poolings"


above_zero = above(0)


def learning_rates(text: str) -> tuple[float, ...]:
    """An argument type: numbers above 0, separated by commas."""
    found = tuple(sorted({above_zero(part) for part in names(text)}))
    if not found:
        raise argparse.ArgumentTypeError("no learning rate is given")
    return found


def frozen_parser(command: str, description: str, *, layer: Literal["all", "last"]) -> Parser:
    """Models and data, where features come from, and which layers, in which state; `layer` is the default."""
    parser = Parser(command, description)
    add_models_and_data(parser, images=None, pooling=False)
    parser.add_argument(
        "--features", nargs="+", type=Path, default=[], metavar="STORE",
        help="directories that kamim features wrote, one for each model (default: extract)",
    )  # fmt: skip
    parser.add_argument(
        "--layer", type=layers, default=layers(layer), metavar="all|last|N,N",
        help=f"0 is the embedding (default: {layer})",
    )  # fmt: skip
    parser.add_argument(
        "--norm", nargs="?", const="all", default="last", choices=["none", "last", "all"],
        help="layers whose tokens go through the encoder's final norm (default: last; without a value: all)",
    )  # fmt: skip
    return parser


def models_and_data(
    chosen: argparse.Namespace, *, poolings: list[str] | None = None, bank_all: bool = True
) -> "tuple[list[ModelSpec], ChosenPictures]":
    """What is to be evaluated, checked before anything heavy is imported.

    `bank_all`: with all training pictures, however few --images are judged.
    """
    from .. import output, plugins
    from ..data import check_source
    from ..model_spec import parse_all

    for name in poolings or []:
        plugins.check(name, plugins.names(_POOLINGS), "pooling")
    check_source(chosen.data)
    models = parse_all(chosen.models, reading(chosen))
    output.check(chosen.out, overwrite=chosen.overwrite)

    from ..sampling import check_classes, open_data

    data = open_data(
        chosen.data, chosen.data_root, chosen.images, chosen.seed,
        max_unreadable=chosen.max_unreadable, bank_all=bank_all,
    )  # fmt: skip
    check_classes(data)
    return models, data


def write_and_print(chosen: argparse.Namespace, data: "ChosenPictures", evaluate: Callable[[Path | None], str]) -> None:
    """Let all processes evaluate, the first write to --out and print the table; then judge unreadable pictures."""
    from .. import processes

    with processes.joined(), processes.written_by_first(chosen.out, overwrite=chosen.overwrite) as aside:
        table = evaluate(aside)
    if processes.is_first():
        print(table)
    data.unreadable.check()
