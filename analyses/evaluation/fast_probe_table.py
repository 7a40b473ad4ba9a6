"""What `kamim fast_probe` prints."""

from collections.abc import Mapping, Sequence

from kamim_analysis.protocol import items
from kamim_analysis.results import Row

_TOP1, _BEST = "top1_", "top1_best"


def fast_probe_table(rows: Mapping[str, Sequence[Row]]) -> str:
    """A block for each model: a line for each layer, a column for each pooling, and below it the number to report."""
    return "\n\n".join("\n".join(_block(label, some)) for label, some in rows.items())


def _block(label: str, rows: Sequence[Row]) -> list[str]:
    (best,) = (row for row in rows if row.statistic == _BEST)
    (majority,) = (row for row in rows if row.statistic == "majority")
    told = items(best.protocol)
    chosen = (best.layer, f"{_TOP1}{told['pooling']}")
    cells = {
        (row.layer, row.statistic): row for row in rows if row.statistic.startswith(_TOP1) and row.statistic != _BEST
    }
    statistics = list(dict.fromkeys(statistic for _, statistic in cells))
    lines = [
        f"{label}: top-1 [95% interval] on {best.images} test pictures; "
        f"the commonest class alone: {majority.value:.3f}",
        "layer  " + "".join(f"{name.removeprefix(_TOP1):<24}" for name in statistics).rstrip(),
    ]
    for layer in dict.fromkeys(layer for layer, _ in cells):
        texts = (_cell(cells.get((layer, name)), marked=(layer, name) == chosen) for name in statistics)
        lines.append(f"{layer:>5}  {''.join(f'{text:<24}' for text in texts)}".rstrip())
    (held_out,) = (
        row for row in rows if (row.layer, row.statistic) == (best.layer, f"held_out_{_TOP1}{told['pooling']}")
    )
    lines.append(
        f"* layer {best.layer}, {told['pooling']}, learning rate {told['learning_rate']}: chosen on {told['held_out']} "
        f"held-out training pictures (top-1 {held_out.value:.3f} there), the number to report; {told['train']} learned "
        f"from, seeds: {told['seeds']}"
    )
    return lines


def _cell(row: Row | None, *, marked: bool) -> str:
    if row is None:
        return "-"
    return f"{row.value:.3f}{'*' if marked else ' '} [{row.ci_low:.3f}, {row.ci_high:.3f}]"
