"""Command-line options that several commands share, and a parser whose errors are one line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

from .errors import UserError
from .model_spec import Reading
from .plugins import check as check_name
from .plugins import names as plugin_names

#: the help on a model
MODEL = (
    "[LABEL=]SPEC; SPEC is a run directory, a weights file (FILE@teacher for one of its encoders), a directory with "
    "config.json, timm:NAME (pretrained), hf:OWNER/NAME or random:NAME (a control with random weights; NAME may be a "
    "run directory, whose architecture is taken)"
)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, which raises UserError instead of printing usage and leaving."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"kamim {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise the message, with where to find help."""
        raise UserError(f"{message} ({self.prog} --help lists the options)")


def whole_number(least: int) -> Callable[[str], int]:
    """An argument type: a whole number from `least` up."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return value

    return convert


def above(bound: int) -> Callable[[str], float]:
    """An argument type: a finite number above `bound`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float(bound)
        if not bound < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above {bound}")
        return value

    return convert


def number_of_images(text: str) -> int | None:
    """An argument type: a whole number from 2 up, or `all`, which is None."""
    try:
        return None if text == "all" else whole_number(2)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor 'all'") from None


def layers(text: str) -> Literal["all"] | list[int]:
    """An argument type: `all`, `last`, or numbers of layers separated by commas, negative ones from the last.

    >>> layers("all"), layers("last"), layers("0,8,-1")
    ('all', [-1], [0, 8, -1])
    """
    if text == "all":
        return "all"
    try:
        found = [-1 if part == "last" else int(part) for part in names(text)]
    except ValueError:
        found = []
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'all', 'last' nor numbers of layers separated by commas")
    return found


def names(text: str) -> list[str]:
    """An argument type: names separated by commas."""
    return [name for name in text.split(",") if name]


def numbers(text: str) -> list[int]:
    """An argument type: whole numbers from 1 up, separated by commas."""
    return sorted({whole_number(1)(part) for part in names(text)})


def share(text: str) -> float:
    """An argument type: a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def add_models_and_data(parser: Parser, *, images: int | None, pooling: bool = True) -> None:
    """MODEL... and how its pictures are chosen and shown; `pooling`: whether one of mean and cls is to be chosen."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help=MODEL)
    add_reading(parser)
    parser.add_argument("--out", required=True, type=Path, help="directory for the results; it must be new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results in --out")
    if pooling:
        parser.add_argument(
            "--pooling", choices=["mean", "cls"], default="mean",
            help="image-level feature (default: mean of patch tokens)",
        )  # fmt: skip
    add_pictures(parser, images=images)


def add_pictures(parser: Parser, *, images: int | None) -> None:
    """Which pictures a frozen model is shown, and how they come in."""
    parser.add_argument(
        "--data", required=True,
        help="photographs, a directory of images, packed shards by directory or URL, or a data set's name: "
        f"{', '.join(f'torch/{name}' for name in plugin_names('kamim_analysis.data_sets'))}, or another of timm's",
    )  # fmt: skip
    parser.add_argument("--data_root", metavar="DIR", help="where a data set given by name lies; never downloaded")
    every = "all" if images is None else images
    parser.add_argument(
        "--images", type=number_of_images, default=images, metavar="N|all",
        help=f"number of pictures, drawn at random, or all (default: {every})",
    )  # fmt: skip
    parser.add_argument("--image_size", type=whole_number(1), help="side of the input (default: the model's own)")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--batch_size", type=whole_number(1), default=32)
    parser.add_argument("--workers", type=whole_number(0), default=2, help="processes that load pictures (default: 2)")
    parser.add_argument(
        "--max_unreadable", type=share, default=0.01,
        help="end with an error when more than this share of the pictures cannot be read (default: 0.01)",
    )  # fmt: skip


def add_heads(parser: Parser) -> None:
    """The head count, which no weights file's shapes tell."""
    parser.add_argument("--heads", type=whole_number(1), help="head count of weights files that do not tell it")


def add_reading(parser: Parser) -> None:
    """How weights files are to be read where their keys and shapes leave a choice."""
    add_heads(parser)
    parser.add_argument(
        "--format", help="layout of a weights file that fits several (kamim models lists them)", metavar="NAME"
    )


def reading(chosen: argparse.Namespace) -> Reading:
    """What `add_reading` asked for. Raises UserError for an unknown format."""
    if chosen.format is not None:
        check_name(chosen.format, plugin_names("kamim_analysis.checkpoints"), "format")
    return Reading(heads=chosen.heads, layout=chosen.format)


_SHARED = "data data_root images image_size pooling seed batch_size workers max_unreadable".split()


def shared_settings(chosen: argparse.Namespace) -> dict[str, Any]:
    """What `add_models_and_data` asked for, less the models and the output."""
    return {name: getattr(chosen, name) for name in _SHARED}
