"""The report's first table: a few numbers of each model."""

import math
import re
from collections.abc import Callable
from html import escape

import pandas as pd

from kamim_analysis.results import Results

from ._caption import architecture
from ._style import looks, resolution

Cell = tuple[str, str]
"""Value and interval, as text."""
#: the k that the papers quote
_USUAL_K = 20
_NONE: Cell = ("—", "")


def headline_table(results: Results) -> str:
    """k-NN accuracy, masked L1 beside that of the mean colour, attention distance and NMI of the last layer."""
    k = _nearest_k(results)
    columns: list[tuple[str, str, Callable[[str], Cell]]] = [
        (
            "k-NN accuracy",
            f"top-1 %, k = {k}" if k else "top-1 %",
            lambda m: _last(results, m, "knn", f"top1_k{k}", _percent),
        ),
        ("masked L1", "normalised pixels", lambda m: _last(results, m, "reconstruction", "masked_l1", _three)),
        ("L1 of mean colour", "same pixels", lambda m: _last(results, m, "reconstruction", "mean_colour_l1", _three)),
        ("attention distance", "px, last layer", lambda m: _last(results, m, "attention_distance", "mean", _one)),
        ("attention NMI", "last layer", lambda m: _last(results, m, "attention_nmi", "mean", _four)),
    ]
    head = "".join(f'<th scope="col">{title}<small>{unit}</small></th>' for title, unit, _ in columns)
    body = "\n".join(
        f"<tr>{_model_cell(results, label)}{''.join(_cell(*number(label)) for _, _, number in columns)}</tr>"
        for label in results.models
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Key numbers"><table>\n'
        f'<thead><tr><th scope="col">model</th>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n'
        '<p class="soft">Below each value: its 95% interval over images. A masked L1 below the L1 of the '
        "mean colour says that a model predicts hidden pixels better than each picture's own mean colour would.</p>"
    )


def model_name(results: Results, label: str) -> str:
    """The label with the model's colour in the figures, and a mark where it is a random control."""
    look = looks(results)[label]
    badge = '<span class="badge">random control</span>' if look.control else ""
    return f'<span aria-hidden="true" class="{_dot_class(look.colour)}">●</span>&nbsp;{escape(label)}{badge}'


def dot_styles(results: Results) -> str:
    """The models' colours as classes: the page's policy allows no style but its own."""
    colours = dict.fromkeys(look.colour for look in looks(results).values())
    return "".join(f".{_dot_class(colour)} {{ color: {colour}; }}\n" for colour in colours)


def _dot_class(colour: str) -> str:
    return "dot-" + colour.removeprefix("#")


def _model_cell(results: Results, label: str) -> str:
    entry = results.model(label)
    about = f"{architecture(entry)}, {resolution(entry['image_size'])}"
    if "layers" not in about:
        about += f", {entry['layers']} layers"
    return f'<th scope="row">{model_name(results, label)}<small>{escape(about)}</small></th>'


def _cell(value: str, interval: str) -> str:
    return f"<td>{value}<small>{interval}</small></td>" if interval else f"<td>{value}</td>"


def _nearest_k(results: Results) -> int | None:
    """The number of neighbours nearest to what the papers quote, of those there are."""
    statistics = set(results.select("knn").statistic)
    neighbours = [int(text.removeprefix("top1_k")) for text in statistics if re.fullmatch(r"top1_k\d+", text)]
    return min(neighbours, key=lambda k: (abs(k - _USUAL_K), k), default=None)


def _last(results: Results, label: str, analysis: str, statistic: str, text: Callable[[float], str]) -> Cell:
    """A statistic at a model's last layer, or where it has no layers; a dash where it is undefined."""
    rows = results.select(analysis, statistic)
    rows = rows[rows.model == label].sort_values("layer")
    if rows.empty:
        return _NONE
    row: pd.Series = rows.iloc[-1]
    if math.isnan(row.value):
        return _NONE
    low, high = float(row.ci_low), float(row.ci_high)
    interval = "" if math.isnan(low) else f"[{text(low)}, {text(high)}]"
    return text(float(row.value)), interval


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _one(value: float) -> str:
    return f"{value:.1f}"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _four(value: float) -> str:
    return f"{value:.4f}"
