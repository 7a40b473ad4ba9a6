"""How figures look: one width and type, one look for each model throughout, and files that repeat bit for bit."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from kamim_analysis import plugins
from kamim_analysis.results import Results

from ._sizes import STYLES, Style

#: Okabe and Ito's colours, which colour-blind readers can tell apart; their yellow is too faint for lines on white
BLUE, RED, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
# five markers and six colours have no common divisor, so pairs repeat after thirty only
MARKERS = ("o", "s", "^", "D", "v")
INK, GRAY, PALE = "#222222", "#6E6E6E", "#DDDDDD"
_CONTROL_GRAYS = ("#6E6E6E", "#9A9A9A", "#3F3F3F")
_FONT = "DejaVu Sans"  # comes with matplotlib, so figures are the same on every machine
# of that font, in ems: the average letter and a line
_CHARACTER_EMS, _LINE_EMS = 0.65, 1.4
_POINTS_PER_INCH = 72
_ON_SCREEN = 1.04
# of a legend, in ems beside an entry and in lines
_LEGEND_PAD_EMS, _LEGEND_PAD_LINES = 2.8, 0.8
_MARGIN_INCHES = 0.08
_current: ContextVar[Style] = ContextVar("style", default=STYLES["paper"])


class Look(NamedTuple):
    """How a model appears in every figure."""

    colour: str
    marker: str
    line: str
    control: bool


def looks(results: Results) -> dict[str, Look]:
    """Look of each model by label: trained ones in colours, random controls gray and dashed."""
    found: dict[str, Look] = {}
    for label in results.models:
        control = results.model(label)["spec"].startswith("random:")
        rank = sum(look.control == control for look in found.values())
        palette = _CONTROL_GRAYS if control else COLOURS
        marker = MARKERS[len(found) % len(MARKERS)]
        found[label] = Look(palette[rank % len(palette)], marker, "--" if control else "-", control)
    return found


@contextmanager
def drawn_for(name: str) -> Iterator[None]:
    """Whatever is drawn and saved inside is made for this style; outside, and without it, for a paper.

    Raises UserError for a style that does not exist.

    >>> with drawn_for("talk"):
    ...     print(width_inches(), small_points())
    10.0 12.0
    """
    token = _current.set(STYLES[plugins.check(name, list(STYLES), "style")])
    try:
        yield
    finally:
        _current.reset(token)


def style() -> Style:
    """The style that figures are being drawn in."""
    return _current.get()


def width_inches() -> float:
    """The full width of a figure: that of the text."""
    return style().width_inches


def column_inches() -> float:
    """The width of a figure with a single panel: that of a column."""
    return style().column_inches


def small_points() -> float:
    """Size of the type at ticks and in notes."""
    return style().small_points


def scaled(length: float | int) -> float:
    """A marker's size or a line's width that suits a paper, as it suits the style."""
    return length * style().marker_scale


def character_inches() -> float:
    """Width of a letter, about."""
    return _CHARACTER_EMS * style().points / _POINTS_PER_INCH


def line_inches() -> float:
    """Height of a line of type."""
    return _LINE_EMS * style().points / _POINTS_PER_INCH


def text_inches(text: str, points: float | None = None) -> float:
    """Width of a line of type, with room for a screen, where letters are whole pixels wide."""
    font = FontProperties(family=_FONT, size=points or style().points)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)  # a dollar is no formula
    return _ON_SCREEN * float(width) / _POINTS_PER_INCH


def wrapped(text: str, inches: float, points: float | None = None) -> str:
    """Words in as many lines as a width asks for; lines that are there already stay apart.

    >>> print(wrapped("bands: 95% confidence interval over images", 1.5))
    bands: 95% confidence
    interval over images
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines.append("")
        for word in paragraph.split(" "):
            longer = f"{lines[-1]} {word}".lstrip()
            if lines[-1] and text_inches(longer, points) > inches:
                lines.append(word)
            else:
                lines[-1] = longer
    return "\n".join(lines)


def settings() -> Any:
    """matplotlib's settings in the current style."""
    points = style().points
    return {
        "font.family": _FONT,
        "font.size": points,
        "axes.labelsize": points,
        "axes.titlesize": points,
        "legend.fontsize": points,
        "legend.frameon": False,
        "figure.constrained_layout.h_pad": 0.06,
        "figure.constrained_layout.w_pad": 0.06,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "lines.linewidth": style().line_points,
        "pdf.fonttype": 42,  # TrueType, which publishers ask for and editors can change
    }


def styled(draw: Callable[[Results], Figure | None]) -> Callable[[Results], Figure | None]:
    """Draw in the house style, and leave the caller's matplotlib settings as they were."""

    @wraps(draw)
    def in_style(results: Results) -> Figure | None:
        with rc_context(settings()):
            return draw(results)

    return in_style


def column_figure() -> Figure:
    """A figure for a single panel, which notes and legends will make higher."""
    return Figure(figsize=(column_inches(), style().plot_inches), layout="constrained")


def panel_grid(rows: int) -> Figure:
    """A figure for so many rows of small panels over one axis, which notes and legends will make higher."""
    return Figure(figsize=(width_inches(), rows * style().panel_inches + line_inches()), layout="constrained")


def plot_axes(axes: Axes) -> Axes:
    """The axes, less what is not data: no upper and right border, a pale grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRAY)
    # ticks come into being when the figure is drawn, out of the style's reach: they are told their size here
    axes.tick_params(labelsize=small_points(), labelcolor=INK, color=GRAY, length=scaled(3), width=scaled(0.8))
    axes.grid(color=PALE, linewidth=scaled(0.5))
    axes.set_axisbelow(True)
    return axes


def note_above(figure: Figure, text: str) -> None:
    """Small print over the whole figure, which grows for it: what lines, bands and dots are."""
    lines = wrapped(text, figure.get_figwidth() - 2 * _MARGIN_INCHES, small_points())
    figure.set_figheight(figure.get_figheight() + (lines.count("\n") + 1) * line_inches())
    x = _MARGIN_INCHES / figure.get_figwidth()
    figure.suptitle(lines, x=x, ha="left", fontsize=small_points(), color=GRAY)


def name(text: str, characters: int = 60) -> str:
    """A label or class name, broken into lines after separators, to be set as it stands: a dollar is no formula.

    >>> print(name("random:vit_small_patch16_224", 18))
    random:vit_small_
    patch16_224
    """
    lines = [""]
    for part in re.findall(rf"[^\s_:/.,-]{{1,{characters}}}[\s_:/.,-]*|[\s_:/.,-]+", text):
        if len(lines[-1]) + len(part.rstrip()) > characters and lines[-1]:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines).replace("$", r"\$")


def resolution(size: Sequence[int]) -> str:
    """Height and width of an image in pixels, as text; one number for a square.

    >>> resolution([192, 192]), resolution([192, 160])
    ('192 px', '192×160 px')
    """
    height, width = size
    return f"{height} px" if height == width else f"{height}\N{MULTIPLICATION SIGN}{width} px"


def legend_below(
    figure: Figure, handles: Sequence[Any], texts: Sequence[str], *, lines: bool = True, columns: int | None = None
) -> None:
    """One legend for the figure, which grows for it; by default in as many columns as its texts leave room for.

    `lines`: whether lines are explained, which must be long enough to tell dashed ones.
    """
    handle_ems = 2.6 if lines else 1.0
    beside = (handle_ems + _LEGEND_PAD_EMS) * style().points / _POINTS_PER_INCH
    room = figure.get_figwidth() - 2 * _MARGIN_INCHES
    widths = [text_inches(text) + beside for text in texts]
    columns = columns or _columns(widths, room)
    fits = _total(widths, columns) <= room
    characters = max(int((room / columns - beside) / character_inches()), 8)
    names = [name(text, len(text) + 1 if fits else characters) for text in texts]
    rows = -(-len(names) // columns)
    heights = [sum(text.count("\n") + 1.3 for text in names[i : i + rows]) for i in range(0, len(names), rows)]
    figure.set_figheight(figure.get_figheight() + (max(heights) + _LEGEND_PAD_LINES) * line_inches())
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=handle_ems)


def _columns(widths: Sequence[float], room: float) -> int:
    """The most columns that fit, or fewer that are as even and give no more rows."""
    most = next((count for count in range(len(widths), 1, -1) if _total(widths, count) <= room), 1)
    rows = -(-len(widths) // most)
    return -(-len(widths) // rows)


def _total(widths: Sequence[float], columns: int) -> float:
    """Width of a legend whose entries fill one column after the other, as matplotlib sets them."""
    return sum(max(map(float, part)) for part in np.array_split(np.asarray(widths), columns))


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.pdf; the same figure gives the same bytes."""
    stem.with_name(f"{stem.name}.png").write_bytes(png(figure))
    with rc_context(settings()):
        figure.savefig(stem.with_name(f"{stem.name}.pdf"), metadata={"CreationDate": None})


def png(figure: Figure) -> bytes:
    """The figure as a PNG, which says what style it was drawn in: the report shows type of all styles in one size."""
    said = next(name for name, one in STYLES.items() if one == style())
    stream = BytesIO()
    with rc_context(settings()):
        figure.savefig(stream, format="png", dpi=style().dpi, metadata={"Style": said})
    return stream.getvalue()
