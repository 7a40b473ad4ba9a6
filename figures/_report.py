"""`report.html`: what was run, the key numbers, every figure, what was left out, and all numbers. One file."""

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from kamim_analysis.results import Results

from ._figure import FigureModule
from ._headline import headline_table, model_name
from ._page import PAGE, STYLE
from ._style import DPI, resolution

_NUMBER_COLUMNS = ["model", "analysis", "layer", "statistic", "value", "ci_low", "ci_high", "images"]

# 120 to the inch: their 8-point type is as large as the small print of the page
_CSS_PIXELS_PER_PIXEL = 120 / DPI


def report(
    results: Results, modules: Mapping[str, FigureModule], pictures: Mapping[str, Path], *, tried: Sequence[str]
) -> str:
    """The page. `pictures`: the PNG of each figure there is; `tried`: figures that were to be drawn this time."""
    shown = {name: module for name, module in modules.items() if name in pictures}
    absent = {name: module for name, module in modules.items() if name not in pictures}
    articles = [_figure(results, name, module, pictures[name]) for name, module in shown.items()]
    body = [
        _section("numbers", "Key numbers", headline_table(results) + _weights(results)),
        _section("figures", "Figures", "\n".join([_contents(shown), *articles])),
        _left_out(results, absent, tried),
        _section("all", "Everything", _all_numbers(results) + _manifest(results)),
    ]
    return PAGE.substitute(title=_title(results), style=STYLE, summary=_summary(results), body="\n".join(body))


def _title(results: Results) -> str:
    return escape(" · ".join(results.models)) if len(results.models) <= 4 else f"{len(results.models)} models"


def _summary(results: Results) -> str:
    """One line on what was run."""
    manifest = results.manifest
    models = len(results.models)
    versions = [f"{package} {version}" for package, version in manifest["versions"].items()]
    parts = [
        f"{models} model{'s' * (models != 1)} on {_data(results)}",
        _resolutions(results),
        f"seed {manifest['seed']}",
        ", ".join([f"kamim-analysis {manifest['kamim_analysis']}", *versions]),
        manifest["created"].partition("T")[0],
    ]
    return escape(" · ".join(map(str, parts)))


def _data(results: Results) -> str:
    data = results.manifest["data"]
    return f"{data['images']} images of {data['source']}"


def _resolutions(results: Results) -> str:
    """One resolution, or which models had which."""
    by_size: dict[str, list[str]] = {}
    for label in results.models:
        by_size.setdefault(resolution(results.model(label)["image_size"]), []).append(label)
    if len(by_size) == 1:
        return next(iter(by_size))
    return ", ".join(f"{size} ({', '.join(labels)})" for size, labels in by_size.items())


def _section(anchor: str, title: str, content: str) -> str:
    return f'<section id="{anchor}">\n<h2>{title}</h2>\n{content}\n</section>'


def _weights(results: Results) -> str:
    """What had to be guessed, resized or left out to open a model: a reader should know it before the numbers."""
    items = [
        f"<li>{model_name(results, label)}: {escape(note)}</li>"
        for label in results.models
        for note in results.model(label).get("notes", ())
    ]
    return f"\n<h3>About the weights</h3>\n<ul>\n{chr(10).join(items)}\n</ul>" if items else ""


def _contents(shown: Mapping[str, FigureModule]) -> str:
    items = "\n".join(f'<li><a href="#{name}">{escape(module.TITLE)}</a></li>' for name, module in shown.items())
    return f'<nav aria-label="Figures"><ol>\n{items}\n</ol></nav>' if shown else "<p>None could be drawn.</p>"


def _figure(results: Results, name: str, module: FigureModule, png: Path) -> str:
    content = png.read_bytes()
    # a PNG's first chunk holds width and height; shown at one scale, all figures have type of one size
    width, height = (round(pixels * _CSS_PIXELS_PER_PIXEL) for pixels in struct.unpack(">II", content[16:24]))
    data = base64.b64encode(content).decode("ascii")
    title = escape(module.TITLE)
    alternative = escape(f"{module.TITLE}, for {', '.join(results.models)}. {module.HOW_TO_READ}")
    return (
        f'<article id="{name}">\n<h3>{title}</h3>\n<p>{escape(module.HOW_TO_READ)}</p>\n'
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f'<img width="{width}" height="{height}" alt="{alternative}" src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{_caption(results, module)}</figcaption></figure>\n</article>"
    )


def _caption(results: Results, module: FigureModule) -> str:
    what = f"a few of {_data(results)}" if module.EXAMPLES else f"{_data(results)}, 95% bootstrap intervals over images"
    return escape(f"As in {module.SOURCE} · {what} · {_resolutions(results)}")


def _left_out(results: Results, absent: Mapping[str, FigureModule], tried: Sequence[str]) -> str:
    """Figures that are not there and analyses that were skipped, with reasons; nothing where all is there."""
    figures = [
        f"<li>{escape(module.TITLE)} (<code>{name}</code>): {escape(_reason(results, name, module, tried))}</li>"
        for name, module in absent.items()
    ]
    analyses = [
        f"<li>{model_name(results, label)}: <code>{escape(analysis)}</code>, {escape(reason)}</li>"
        for label in results.models
        for analysis, reason in results.model(label).get("skipped", {}).items()
    ]
    parts = []
    if figures:
        parts.append(f"<h3>Figures not drawn</h3>\n<ul>\n{chr(10).join(figures)}\n</ul>")
    if analyses:
        parts.append(f"<h3>Analyses skipped</h3>\n<ul>\n{chr(10).join(analyses)}\n</ul>")
    return _section("left-out", "Left out", "\n".join(parts)) if parts else ""


def _reason(results: Results, name: str, module: FigureModule, tried: Sequence[str]) -> str:
    """Why a figure is not there: each model's reason."""
    if name not in tried:
        return "not drawn yet"
    reasons = []
    for label in results.models:
        skipped = results.model(label).get("skipped", {})
        found = [skipped[need] for need in module.NEEDS if need in skipped]
        reasons.append(f"{label}: {'; '.join(found) or 'nothing of ' + ', '.join(module.NEEDS) + ' to draw'}")
    return " · ".join(reasons)


def _all_numbers(results: Results) -> str:
    """Every row of metrics.csv that is not of a single head."""
    table = results.metrics
    table = table.loc[table["head"].isna(), _NUMBER_COLUMNS]
    head = "".join(f'<th scope="col">{column.replace("_", " ")}</th>' for column in _NUMBER_COLUMNS)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{_text(value)}</td>" for value in row) + "</tr>"
        for row in table.itertuples(index=False, name=None)
    )
    return (
        f"<details>\n<summary>All {len(table)} numbers (means over heads; single heads are in metrics.csv)</summary>\n"
        '<div class="scroll" tabindex="0" role="region" aria-label="All numbers"><table class="numbers">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n</details>\n"
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.5g}"
    # pandas' missing layer prints as <NA>
    return "" if str(value) == "<NA>" else escape(str(value))


def _manifest(results: Results) -> str:
    text = json.dumps(results.manifest, indent=2, ensure_ascii=False)
    return f"<details>\n<summary>Manifest</summary>\n<pre>{escape(text)}</pre>\n</details>"
