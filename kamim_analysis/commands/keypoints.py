"""`kamim keypoints`: what detectors find in pictures, what weights come of it, and what they cost."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import Parser, above, names, numbers, whole_number
from ..errors import UserError
from ..plugins import names as plugin_names
from .analyze import add_style

if TYPE_CHECKING:
    from pandas import DataFrame

    from ..keypoint_survey import Choice
    from ..keypoints._drawing import Style

HELP = "draw pictures with keypoints, their map and KAMIM's weights; with --cost, what detectors cost and weigh"
LESS_MEMORY = "take a lower --image_size, or fewer --images"
_TITLES = {
    "detector": "detector", "style": "map", "milliseconds": "ms / image", "weight_patch": "w_ps", "temperature": "T",
    "mean": "mean W", "median": "median", "p95": "p95", "max": "max", "share_at_1": "share at 1",
}  # fmt: skip


def run(arguments: list[str]) -> None:
    """Figures of single pictures, or a table over many."""
    chosen = _parser().parse_args(arguments)
    if bool(chosen.images_shown) == (chosen.cost is not None):
        raise UserError("give pictures to be drawn (IMAGE..., with --out DIR), or --cost DATA")
    if (chosen.cost is None) != (chosen.out is not None):
        raise UserError("give --out DIR, for figures" if chosen.cost is None else "--cost prints, and takes no --out")
    _check_sizes(chosen)

    from ..keypoint_survey import choices

    every = plugin_names("kamim_analysis.keypoints")
    styles: list[Style] = ["drawn", "points"] if chosen.map_style == "both" else [chosen.map_style]
    asked = choices(every if chosen.detector == ["all"] else chosen.detector, styles)
    if chosen.cost is None:
        from ._keypoint_figures import write_figures

        write_figures(chosen, asked)
    else:
        _print(_survey(chosen, asked), chosen.target_p95_weight)


def _parser() -> Parser:
    every = plugin_names("kamim_analysis.keypoints")
    parser = Parser("keypoints", f"{HELP}.")
    parser.add_argument("images_shown", nargs="*", type=Path, metavar="IMAGE", help="picture files, or directories")
    parser.add_argument("--cost", metavar="DATA", help="photographs, a directory, packed shards, or a data set's name")
    parser.add_argument("--data_root", metavar="DIR", help="--cost: where a data set given by name lies")
    parser.add_argument(
        "--images", type=whole_number(2), default=200, metavar="N",
        help="--cost: number of training pictures, cropped as in training (default: 200)",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole_number(0), default=0, help="--cost: which pictures, and their crops")
    parser.add_argument(
        "--detector", type=names, default=["fast"], metavar="A,B", help=f"default: fast; all, or of {', '.join(every)}"
    )
    parser.add_argument(
        "--map_style", choices=["drawn", "points", "both"], default="both",
        help="keypoints marked by the ring that OpenCV draws (as KAMIM's code) or by one pixel (as its text says); "
        "default: both",
    )  # fmt: skip
    parser.add_argument("--weight_patch", type=numbers, default=[8], metavar="A,B", help="w_ps in pixels (default: 8)")
    parser.add_argument(
        "--temperature", type=_temperatures, default=[0.1, 0.25, 1.0], metavar="A,B", help="T (default: 0.1,0.25,1)"
    )
    parser.add_argument(
        "--target_p95_weight", type=above(1), default=10.0, metavar="W",
        help="--cost: tell the T at which the 95th percentile of the weights is this, as temperature auto finds it "
        "(default: 10)",
    )  # fmt: skip
    parser.add_argument("--image_size", type=whole_number(1), default=192, help="side in pixels (default: 192)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory for the figures; it must be new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier figures in --out")
    add_style(parser)
    return parser


def _temperatures(text: str) -> list[float]:
    """An argument type: numbers above 0, separated by commas."""
    try:
        found = sorted({float(part) for part in names(text)})
    except ValueError:
        found = []
    if not found or not all(0 < value < float("inf") for value in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers above 0, separated by commas")
    return found


def _check_sizes(chosen: argparse.Namespace) -> None:
    for weight_patch in chosen.weight_patch:
        if chosen.image_size % weight_patch:
            raise UserError(
                f"--weight_patch {weight_patch} does not divide --image_size {chosen.image_size}; choose sizes of "
                "which one divides the other"
            )


def _survey(chosen: argparse.Namespace, asked: Sequence["Choice"]) -> "DataFrame":
    """Every detector on the crops that training with the default recipe would see first."""
    import pandas as pd
    from rich.progress import track

    from ..data import open_pictures
    from ..keypoint_survey import survey
    from ..runtime import progress_console
    from ..train.samples import first_crops

    pictures = open_pictures(chosen.cost, "train", root=chosen.data_root, seed=chosen.seed)
    crops = first_crops(pictures, chosen.images, chosen.image_size, chosen.seed)
    rows = [
        row
        for choice in track(asked, "detectors", console=progress_console(), transient=True)
        for row in survey(
            crops,
            choice,
            weight_patches=chosen.weight_patch,
            temperatures=chosen.temperature,
            target_p95=chosen.target_p95_weight,
        )
    ]
    return pd.DataFrame(rows)


def _print(table: "DataFrame", target: float) -> None:
    """Laid out for a terminal; else as text with tabs, for other programs, with all digits that mean something."""
    if not sys.stdout.isatty():
        print(table.to_csv(index=False, sep="\t", float_format="%.6g"), end="")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD)
    for name, title in (_TITLES | {"temperature_for_p95": f"T for p95 {target:g}"}).items():
        grid.add_column(title, justify="left" if name in ("detector", "style") else "right")
    last = None
    for row in table.to_dict("records"):
        cells = [_cell(str(name), value) for name, value in row.items()]
        # of the rows that share them, the first alone tells detector, style and time
        same = (row["detector"], row["style"], row["weight_patch"])
        grid.add_row(*(["", "", "", ""] if same == last else cells[:4]), *cells[4:])
        last = same
    Console().print(grid)


def _cell(name: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if value != value:  # not a number
        return "none"
    if name == "milliseconds":
        return f"{value:.2f}"
    if name == "share_at_1":
        return f"{value:.1%}"
    return f"{value:,.0f}" if 1000 <= value < 10**6 else f"{value:.3g}"
