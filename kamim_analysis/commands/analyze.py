"""`kamim analyze`: one pass over the pictures, then metrics, figures and report."""

import argparse

from ..arguments import Parser, add_models_and_data, names, reading, shared_settings
from ..invocation import recorded
from ..plugins import check as check_name
from ..plugins import constants

_ANALYSES = "kamim_analysis.analyses"
HELP = "analyse models on the same pictures and draw the figures"
#: what is advised when memory runs out
LESS_MEMORY = "take a lower --batch_size or --image_size, fewer --workers or fewer --images"


def parser() -> Parser:
    """The command's options."""
    parser = Parser("analyze", f"{HELP}. Writes metrics.csv, arrays, manifest.json, figures/ and report.html.")
    add_models_and_data(parser, images=512)
    add_analyses(parser)
    add_style(parser)
    return parser


def run(arguments: list[str]) -> None:
    """Check the command, analyse, draw, and put the results in place."""
    with recorded(parser(), arguments) as chosen:
        carry_out(chosen)


def add_analyses(parser: Parser) -> None:
    """Which analyses are to run."""
    available = constants(_ANALYSES)
    parser.add_argument(
        "--analyses",
        type=names,
        metavar="A,B",
        default=[name for name, about in available.items() if about["BY_DEFAULT"]],
        help="names that kamim analyses tells, or all (default: those that cost little)",
    )


def add_style(parser: Parser) -> None:
    """What the figures are for."""
    from ..figures._sizes import STYLES

    parser.add_argument(
        "--style",
        choices=list(STYLES),
        default="paper",
        help="what figures are for: their width and type (default: paper, of two columns)",
    )


def carry_out(chosen: argparse.Namespace) -> None:
    """Analyse as the command line asks and write the directory of results, whole or not at all."""
    available = sorted(constants(_ANALYSES))
    if chosen.analyses == ["all"]:
        chosen.analyses = available
    for name in chosen.analyses:
        check_name(name, available, "analysis")

    from .. import output
    from ..data import check_source
    from ..model_spec import parse_all

    check_source(chosen.data)
    models = parse_all(chosen.models, reading(chosen))
    output.check(chosen.out, overwrite=chosen.overwrite)

    from .. import processes
    from ..analyses._run import Request, analyze
    from ..figures._draw import draw_all

    request = Request(models=models, analyses=chosen.analyses, **shared_settings(chosen))
    with processes.joined(), processes.written_by_first(chosen.out, overwrite=chosen.overwrite) as aside:
        unreadable = analyze(request, aside)
        if aside is not None:
            draw_all(aside, style=chosen.style)
    if processes.is_first():
        print(f"{chosen.out / 'report.html'} shows all figures; {chosen.out / 'metrics.csv'} holds the numbers")
    unreadable.check()
