"""`kamim compare`: what differs between models on the same pictures, image by image."""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from ..arguments import Parser, add_models_and_data
from ..errors import UserError
from ..invocation import recorded
from . import analyze

if TYPE_CHECKING:
    from pandas import DataFrame

LESS_MEMORY = analyze.LESS_MEMORY
HELP = "analyse two or more models and tell which differences exceed noise"


def parser() -> Parser:
    """The command's options."""
    parser = Parser("compare", f"{HELP}. Writes what kamim analyze writes, comparison.csv with it.")
    add_models_and_data(parser, images=512)
    analyze.add_analyses(parser)
    analyze.add_style(parser)
    return parser


def run(arguments: list[str]) -> None:
    """`kamim analyze` with at least two models, then the ten differences of each pair that matter most."""
    with recorded(parser(), arguments) as chosen:
        if len(chosen.models) < 2:
            raise UserError("a comparison needs two models or more; random:NAME is a control for one")
        analyze.carry_out(chosen)

    from .. import processes
    from ..comparison import foremost
    from ..results import Results

    if not processes.is_first():
        return
    table = Results.open(chosen.out).comparison
    print(_told(foremost(table), len(table)))


def _told(foremost: "DataFrame", compared: int) -> str:
    """The differences as lines, pair by pair."""
    if foremost.empty:
        return f"of {compared} numbers compared, none differs by more than noise (paired t-test, Holm-corrected)"
    lines = [f"of {compared} numbers compared, the largest differences beyond noise (each at its foremost layer):"]
    for (a, b), rows in foremost.groupby(["model_a", "model_b"], sort=False):
        lines.append(f"{b} less {a}:")
        lines += [_line(row) for row in rows.to_dict("records")]
    return "\n".join(lines)


def _line(row: Mapping[Hashable, Any]) -> str:
    where = "" if str(row["layer"]) == "<NA>" else f" at layer {row['layer']}"
    return (
        f"  {row['analysis']}.{row['statistic']}{where}: {row['difference']:+.4g} "
        f"[{row['ci_low']:+.4g}, {row['ci_high']:+.4g}] "
        f"({row['b']:.4g} against {row['a']:.4g}; {abs(row['effect_size']):.2f} standard deviations)"
    )
