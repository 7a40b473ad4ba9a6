"""`kamim analyze`: one pass over the pictures, then metrics, figures and report."""

from ..arguments import Parser, add_models_and_data, names, reading, shared_settings
from ..plugins import check as check_name
from ..plugins import constants

HELP = "analyse models on the same pictures and draw the figures"


def run(arguments: list[str]) -> None:
    """Check the command, analyse, draw, and put the results in place."""
    available = constants("kamim_analysis.analyses")
    usual = [name for name, about in available.items() if about["BY_DEFAULT"]]
    parser = Parser("analyze", f"{HELP}. Writes metrics.csv, arrays, manifest.json, figures/ and report.html.")
    add_models_and_data(parser, images=512)
    parser.add_argument(
        "--analyses",
        type=names,
        metavar="A,B",
        default=usual,
        help="names that kamim analyses tells, or all (default: those that cost little)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.analyses == ["all"]:
        chosen.analyses = list(available)
    for name in chosen.analyses:
        check_name(name, sorted(available), "analysis")

    from .. import output
    from ..data import check_source
    from ..model_spec import parse_all

    check_source(chosen.data)
    models = parse_all(chosen.models, reading(chosen))
    output.check(chosen.out, overwrite=chosen.overwrite)

    from ..analyses._run import Request, analyze
    from ..figures._draw import draw_all

    request = Request(models=models, analyses=chosen.analyses, **shared_settings(chosen))
    with output.written_whole(chosen.out) as aside:
        unreadable = analyze(request, aside)
        draw_all(aside)
    print(f"{chosen.out / 'report.html'} shows all figures; {chosen.out / 'metrics.csv'} holds the numbers")
    unreadable.check()
