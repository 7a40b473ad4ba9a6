"""`kamim table`: the papers' tables with measured numbers below the papers' own."""

from pathlib import Path

from ..arguments import Parser, names
from ..errors import UserError
from ..output import write_file
from ..plugins import check as check_name
from ..plugins import names as plugin_names

_TABLES = "kamim_analysis.figures.tables"
HELP = "lay measured numbers out as the papers' tables do, below the papers' own"


def run(arguments: list[str]) -> None:
    """Needs neither models nor pictures."""
    from ..figures.tables._styles import STYLES

    available = plugin_names(_TABLES)
    parser = Parser("table", f"{HELP}, each with its interval and its protocol, and what differs from the paper's")
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS",
        help="directories that kamim analyze, knn, probe, finetune and other evaluations wrote",
    )  # fmt: skip
    parser.add_argument(
        "--table", type=names, metavar="A,B", default=["all"], help=f"default: all of {', '.join(available)}"
    )
    parser.add_argument("--style", choices=list(STYLES), default="paper", help="default: paper, text for a terminal")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a new file to write to (default: print)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier --out")
    chosen = parser.parse_args(arguments)
    wanted = None if chosen.table == ["all"] else [check_name(name, available, "table") for name in chosen.table]
    if chosen.out is not None:
        _check(chosen.out, overwrite=chosen.overwrite)

    from ..figures.tables._tables import tables

    text = tables(chosen.results, wanted, style=chosen.style)
    if chosen.out is None:
        print(text, end="")
    else:
        write_file(chosen.out, text.encode())
        print(chosen.out)


def _check(out: Path, *, overwrite: bool) -> None:
    if out.is_dir():
        raise UserError(f"output {str(out)!r} is a directory; give a file")
    if out.exists() and not overwrite:
        raise UserError(f"output {str(out)!r} exists; give a new file, or add --overwrite")
