"""`kamim analyses`: what can be asked of a model."""

from ..arguments import Parser, names
from ..plugins import check as check_name
from ..plugins import constants

HELP = "list the analyses: the question each answers, how to read it, its source and cost"


def run(arguments: list[str]) -> None:
    """A paragraph for each analysis, or for those named."""
    parser = Parser("analyses", HELP)
    parser.add_argument("names", nargs="*", type=names, metavar="NAME", help="only these")
    chosen = [name for some in parser.parse_args(arguments).names for name in some]
    known = constants("kamim_analysis.analyses")
    for name in chosen:
        check_name(name, sorted(known), "analysis")
    for name in chosen or known:
        about = known[name]
        by_default = "" if about["BY_DEFAULT"] else "; runs only when named in --analyses, or with --analyses all"
        print(f"{name}: {about['QUESTION']}")
        print(f"  {about['HOW_TO_READ']}")
        print(f"  Source: {about['SOURCE']}. Cost: {about['COST']}{by_default}.")
