"""`report.html`: what was run, the key numbers, explorers, every figure, what was left out, and all numbers.

One file. Without JavaScript it is a report to be read; with it attention, tokens and the table can be explored.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from kamim_analysis.errors import UserError
from kamim_analysis.results import Results

from ._caption import caption
from ._explorer import Blocks, content_hash, file_text, script, section, viridis
from ._explorer_attention import attention_data
from ._explorer_table import table_data
from ._explorer_tokens import token_data
from ._figure import FigureModule, numbers_of
from ._headline import dot_styles, headline_table, model_name
from ._page import PAGE, POLICY
from ._sizes import STYLES
from ._style import resolution

_NUMBER_COLUMNS = ["model", "analysis", "layer", "statistic", "value", "ci_low", "ci_high", "images"]

_EXPLORERS = {
    "attention": (
        "What does a patch attend to?",
        "Click a patch of the picture, or move with the arrow keys: its attention in every model, layer and head. "
        "Yellow patches receive most of it. Entropy H is that of this patch's attention over that of uniform attention "
        "(1: it attends to all alike, 0: to a single patch); px is its distance, the mean way from the patch to what "
        "it attends to.",
    ),
    "tokens": (
        "Which tokens lie together?",
        "Point at a dot: its patch, its picture, and the same patch in the other models. Or move from patch to patch "
        "with the arrow keys. In a t-SNE neighbours have similar tokens, but sizes of clusters and distances between "
        "them mean nothing; principal planes show the two directions of greatest variance.",
    ),
}
#: what a page may take; browsers open more, but people mail it
LIMIT_BYTES = 40_000_000
# of the page around the maps that is not yet written when these are chosen
_SPARE_BYTES = 200_000

# of the type of figures on the page, which is that of its small print
_TYPE_CSS_PIXELS = 13.3
_POINTS_PER_INCH = 72


def report(
    results: Results, modules: Mapping[str, FigureModule], pictures: Mapping[str, Path], *, tried: Sequence[str]
) -> str:
    """The page. `pictures`: the PNG of each figure there is; `tried`: figures that were to be drawn this time."""
    shown = {name: module for name, module in modules.items() if name in pictures}
    absent = {name: module for name, module in modules.items() if name not in pictures}
    articles = [_figure(results, name, module, pictures[name]) for name, module in shown.items()]
    before = [_section("numbers", "Key numbers", headline_table(results) + _weights(results))]
    figures = [_section("figures", "Figures", "\n".join([_contents(shown), *articles]))]
    everything = [_section("all", "Everything", _all_numbers(results) + _manifest(results))]
    taken = sum(map(len, [*before, *figures, *everything]))
    explorers, data, unexplored = _explorers(results, taken)
    left_out = _left_out(results, absent, tried, unexplored)
    style = file_text("_page.css") + file_text("_explorer.css") + dot_styles(results)
    code = script()
    return PAGE.substitute(
        title=_title(results),
        style=style,
        script=code,
        policy=POLICY.substitute(style=content_hash(style), script=content_hash(code)),
        summary=_summary(results),
        contents=_parts([*explorers, *(["left-out"] if left_out else [])]),
        body="\n".join([*before, *explorers.values(), *figures, left_out, *everything]),
        data=data,
    )


def _explorers(results: Results, taken: int) -> tuple[dict[str, str], str, list[str]]:
    """Sections by anchor, the elements that hold their data, and what cannot be explored, with reasons."""
    blocks, numbers = Blocks(), table_data(results)
    tokens = token_data(results, blocks)
    budget = LIMIT_BYTES - _SPARE_BYTES - taken - blocks.size - len(json.dumps(numbers))
    found = {"attention": attention_data(results, blocks, budget), "tokens": tokens}
    sections = {name: section(name, *_EXPLORERS[name]) for name, data in found.items() if not isinstance(data, str)}
    missing = [f"{_EXPLORERS[name][0]}: {reason}" for name, reason in found.items() if isinstance(reason, str)]
    data = {name: None if isinstance(value, str) else value for name, value in found.items()}
    shared = {"pictures": blocks.picture_urls, "viridis": viridis()}
    return sections, blocks.elements({"explorer-data": {**shared, **data}, "number-data": numbers}), missing


def _parts(extra: Sequence[str]) -> str:
    """Links to the sections; those of explorers, which the script shows, are hidden until it runs."""
    names = {"numbers": "Key numbers", "attention": "Attention", "tokens": "Tokens", "figures": "Figures",
             "left-out": "Left out", "all": "Everything"}  # fmt: skip
    shown = [name for name in names if name in extra or name in ("numbers", "figures", "all")]
    items = [
        f'<li{" data-script hidden" * (name in _EXPLORERS)}><a href="#{name}">{names[name]}</a></li>' for name in shown
    ]
    return f'<nav class="parts" aria-label="Sections"><ul>\n{chr(10).join(items)}\n</ul></nav>'


def _title(results: Results) -> str:
    return escape(" · ".join(results.models)) if len(results.models) <= 4 else f"{len(results.models)} models"


def _summary(results: Results) -> str:
    """One line on what was run."""
    manifest = results.manifest
    models = len(results.models)
    versions = [f"{name} {manifest['versions'][name]}" for name in ("torch", "timm") if name in manifest["versions"]]
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
    width, height = _shown_size(png)
    data = base64.b64encode(png.read_bytes()).decode("ascii")
    title = escape(module.TITLE)
    alternative = escape(f"{module.TITLE}, for {', '.join(results.models)}. {module.HOW_TO_READ}")
    return (
        f'<article id="{name}">\n<h3>{title}</h3>\n'
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f'<img width="{width}" height="{height}" alt="{alternative}" src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{escape(_caption(results, module, png))}</figcaption></figure>\n</article>"
    )


def _shown_size(png: Path) -> tuple[int, int]:
    """CSS pixels of width and height: figures of all styles have type of one size on the page."""
    try:
        with Image.open(png) as picture:
            style = STYLES.get(picture.info.get("Style", ""), STYLES["paper"])
            scale = _TYPE_CSS_PIXELS / (style.points / _POINTS_PER_INCH * style.dpi)
            size = round(picture.width * scale), round(picture.height * scale)
            picture.verify()  # an earlier one may be damaged, which a browser shows as nothing or half
    except (OSError, SyntaxError) as error:
        raise UserError(
            f"figure {png.stem} is damaged ({png.name}: {' '.join(str(error).split())[:80]}); draw it again: kamim "
            f"figures DIR --figures {png.stem}, or without --figures all of them"
        ) from error
    return size


def _caption(results: Results, module: FigureModule, png: Path) -> str:
    """What stands beside the figure in a file of its own, less the title, which is above it here."""
    file = png.with_suffix(".txt")
    if file.is_file():
        return file.read_text(encoding="utf-8").strip().removeprefix(f"{module.TITLE}. ")
    return caption(results, module, numbers_of(results, module))


def _left_out(
    results: Results, absent: Mapping[str, FigureModule], tried: Sequence[str], unexplored: Sequence[str]
) -> str:
    """Figures and explorers that are not there and analyses that were skipped, with reasons; nothing where all is."""
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
    if unexplored:
        items = "\n".join(f"<li>{escape(reason)}</li>" for reason in unexplored)
        parts.append(f"<h3>Not to be explored</h3>\n<ul>\n{items}\n</ul>")
    if analyses:
        parts.append(f"<h3>Analyses skipped</h3>\n<ul>\n{chr(10).join(analyses)}\n</ul>")
    return _section("left-out", "Left out", "\n".join(parts)) if parts else ""


def _reason(results: Results, name: str, module: FigureModule, tried: Sequence[str]) -> str:
    """Why a figure is not there: each model's reason."""
    if name not in tried:
        return "not drawn yet"
    if not module.NEEDS:
        return str(getattr(module, "LACKING", "nothing to draw"))
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
        '<div data-explorer="numbers" data-script hidden></div>\n'
        '<details id="numbers-static">\n'
        f"<summary>All {len(table)} numbers (means over heads; single heads are in metrics.csv)</summary>\n"
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
