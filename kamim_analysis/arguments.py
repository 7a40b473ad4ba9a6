"""Command-line options that several commands share, and a parser whose errors are one line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError
from .model_spec import Reading
from .plugins import check as check_name
from .plugins import names as plugin_names


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


def add_models_and_data(parser: Parser, *, images: int | None) -> None:
    """MODEL... and how its pictures are chosen and shown."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="[LABEL=]SPEC; SPEC is a run directory, a weights file (FILE@teacher for one of its encoders), a "
        "directory with config.json, timm:NAME (pretrained), hf:OWNER/NAME or random:NAME (a control with random "
        "weights; NAME may be a run directory, whose architecture is taken)",
    )
    add_reading(parser)
    parser.add_argument(
        "--data", required=True, help="photographs, a directory of images, or a timm data set's name (torch/cifar10)"
    )
    parser.add_argument("--data_root", help="where a timm data set lies")
    parser.add_argument("--out", required=True, type=Path, help="directory for the results; it must be new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results in --out")
    every = "all" if images is None else images
    parser.add_argument(
        "--images", type=whole_number(2), default=images, help=f"number of pictures, drawn at random (default: {every})"
    )
    parser.add_argument("--image_size", type=whole_number(1), help="side of the input (default: the model's own)")
    parser.add_argument(
        "--pooling", choices=["mean", "cls"], default="mean", help="image-level feature (default: mean of patch tokens)"
    )
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
