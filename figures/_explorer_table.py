"""Every number of metrics.csv for the page's table, column by column."""

import math
from typing import Any

import pandas as pd

from kamim_analysis.results import COLUMNS, Results

_NAMES = ("model", "analysis", "statistic", "protocol")
_NUMBERS = ("value", "ci_low", "ci_high")
#: of values and intervals; files hold more than anybody reads
_DIGITS = 6


def table_data(results: Results) -> dict[str, Any]:
    """Columns in the order of metrics.csv: names once with a number for each row, missing numbers None."""
    table = results.metrics
    columns: dict[str, Any] = {}
    for column in COLUMNS:
        if column in _NAMES:
            codes, names = table[column].factorize()
            columns[column] = {"names": [str(name) for name in names], "codes": codes.tolist()}
        elif column in _NUMBERS:
            columns[column] = [_number(float(value)) for value in table[column]]
        else:
            columns[column] = [None if pd.isna(value) else int(value) for value in table[column]]
    return {"rows": len(table), "columns": columns}


def _number(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
