"""What `kamim knn` prints."""

import re
from collections.abc import Mapping, Sequence

from kamim_analysis.protocol import items
from kamim_analysis.results import Row

_STATISTIC = re.compile(r"top1_(?:v(?P<v>\d+)_)?k(?P<k>\d+)")
#: the k that the papers quote
USUAL_K = 20
_FeatureSet = tuple[str, int | None, str]
"""Model, layer, pooling."""


def knn_table(rows: Mapping[str, Sequence[Row]]) -> str:
    """A line for each k of a layer; of several layers or poolings one for each, a column for each k; then few-shot."""
    found: dict[str, dict[_FeatureSet, list[Row]]] = {"knn": {}, "few_shot": {}}
    for label, some in rows.items():
        for row in some:
            if _STATISTIC.match(row.statistic):
                pooling = items(row.protocol)["pooling"]
                found[row.analysis].setdefault((label, row.layer, pooling), []).append(row)
    several = len(found["knn"]) > len(rows)
    parts = [_by_layer(found["knn"]) if several else _by_k(found["knn"])]
    return "\n\n".join([*parts, *([_few_shot(found["few_shot"])] if found["few_shot"] else [])])


def _by_k(rows: Mapping[_FeatureSet, Sequence[Row]]) -> str:
    lines = [f"{'model':<32} {'layer':>5}  {'pooling':<13} {'k':>4}  top-1 [95% interval]"]
    lines += [
        f"{label:<32} {layer:>5}  {pooling:<13} {_of(row, 'k'):>4}  {_interval(row, 4)}"
        for (label, layer, pooling), some in rows.items()
        for row in some
    ]
    return "\n".join(lines)


def _by_layer(rows: Mapping[_FeatureSet, Sequence[Row]]) -> str:
    """The best layer is told by the usual k, or the largest below it that the data allow."""
    ks = sorted({_of(row, "k") for some in rows.values() for row in some})
    usual = usual_k(ks)
    cells = {key: {f"k = {_of(row, 'k')}": row for row in some} for key, some in rows.items()}
    highest: dict[str, _FeatureSet] = {}
    for key, of_k in cells.items():
        best = highest.setdefault(key[0], key)
        if of_k[f"k = {usual}"].value > cells[best][f"k = {usual}"].value:
            highest[key[0]] = key
    lines = ["top-1 [95% interval] by number of neighbours", *_columns(cells, set(highest.values()))]
    note = f"* highest at k = {usual} on the very pictures it is measured on: not to be reported as the model's"
    return "\n".join([*lines, note])


def _few_shot(rows: Mapping[_FeatureSet, Sequence[Row]]) -> str:
    """Of each v the usual k; with a single picture a class all are the same."""
    cells: dict[_FeatureSet, dict[str, Row]] = {}
    for key, some in rows.items():
        by_v: dict[int, dict[int, Row]] = {}
        for row in some:
            by_v.setdefault(_of(row, "v"), {})[_of(row, "k")] = row
        cells[key] = {f"v = {v}, k = {usual_k(of_k)}": of_k[usual_k(of_k)] for v, of_k in by_v.items()}
    seeds = items(next(iter(rows.values()))[0].protocol)["seeds"]
    title = f"few-shot top-1 [95% interval over pictures and {seeds} draws] from v pictures of each class"
    return "\n".join([title, *_columns(cells, set())])


def _columns(cells: Mapping[_FeatureSet, Mapping[str, Row]], marked: set[_FeatureSet]) -> list[str]:
    titles = list(dict.fromkeys(title for some in cells.values() for title in some))
    lines = [(" layer pooling        " + "  ".join(f"{title:<20}" for title in titles)).rstrip()]
    model = None
    for key, some in cells.items():
        if key[0] != model:
            lines.append(model := key[0])
        texts = (f"{_interval(some[title], 3):<20}" for title in titles)
        lines.append(f"{'*' if key in marked else ' '}{key[1]:>5} {key[2]:<14} {'  '.join(texts)}".rstrip())
    return lines


def usual_k(ks: "Mapping[int, Row] | Sequence[int]") -> int:
    """Of those there are, the largest up to the usual one, or else the smallest.

    >>> usual_k([1, 10, 20, 100]), usual_k([1, 5]), usual_k([100, 200])
    (20, 5, 100)
    """
    return max([k for k in ks if k <= USUAL_K], default=min(ks))


def _of(row: Row, name: str) -> int:
    found = _STATISTIC.match(row.statistic)
    assert found is not None
    return int(found[name])


def _interval(row: Row, digits: int) -> str:
    return f"{row.value:.{digits}f} [{row.ci_low:.{digits}f}, {row.ci_high:.{digits}f}]"
