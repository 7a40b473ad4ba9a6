"""What people explore in the report: attention of every patch, tokens in their planes, every number. Data alone.

All of it stands inside the page: JSON for what is small, and for maps and points bytes that are compressed by zlib and
written in base64, each in a script element that nothing runs. `_explorer*.js` read them there.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from io import BytesIO
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kamim_analysis.results import Results

from ._planes import class_name
from ._style import looks

_SCRIPTS = ("page", "maps", "chosen", "matrix", "attention", "tokens", "table")


class Blocks:
    """Named pieces of data that the page carries, and the pictures that several explorers show: each once."""

    def __init__(self) -> None:
        self._blocks: dict[str, str] = {}
        self._pictures: dict[str, int] = {}
        self.picture_urls: list[str] = []

    def add(self, name: str, packed: bytes) -> None:
        """Compressed bytes by a name, which is the element's id."""
        self._blocks[name] = base64.b64encode(packed).decode("ascii")

    def picture(self, pixels: NDArray[np.uint8]) -> int:
        """Number of a picture, [H, W, 3]."""
        key = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        if key not in self._pictures:
            self._pictures[key] = len(self.picture_urls)
            stream = BytesIO()
            Image.fromarray(pixels).save(stream, "PNG", optimize=True)
            self.picture_urls.append("data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii"))
        return self._pictures[key]

    @property
    def size(self) -> int:
        """Bytes of the page that blocks and pictures take so far."""
        return sum(map(len, [*self._blocks.values(), *self.picture_urls])) + 100 * len(self._blocks)

    def elements(self, data: Mapping[str, Any]) -> str:
        """Script elements that hold the data and run nothing."""
        parts = [_element(name, "application/octet-stream", text) for name, text in self._blocks.items()]
        parts += [_element(name, "application/json", as_json(value)) for name, value in data.items()]
        return "\n".join(parts)


def _element(name: str, kind: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>'


def as_json(value: Any) -> str:
    """JSON that can stand in a script element: no sign of it can end the element or open a comment.

    >>> as_json({"label": "</script><!-- & \N{SNOWMAN}"})
    '{"label":"\\\\u003c/script\\\\u003e\\\\u003c!-- \\\\u0026 \\\\u2603"}'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def packed(content: bytes) -> bytes:
    """Compressed so that a browser's DecompressionStream("deflate") reads it."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL + 1)
    return compressor.compress(content) + compressor.flush()


def file_text(name: str) -> str:
    """A file of this folder that is no module."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def script() -> str:
    """What the page runs: the files one after another, in a scope of their own."""
    parts = [file_text(f"_explorer_{name}.js") for name in _SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "\nstart();\n})();"


def content_hash(text: str) -> str:
    """How a Content-Security-Policy names a script or style that may stand in the page."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") + "'"


def viridis() -> list[str]:
    """The colour scale of the maps, 256 colours, perceptually uniform."""
    colours = matplotlib.colormaps["viridis"](np.arange(256), bytes=True)
    return [bytes(colour[:3]).hex() for colour in colours]


class ModelLook(NamedTuple):
    """How a model is named in the explorers."""

    label: str
    colour: str
    control: bool


def model_looks(results: Results) -> dict[str, ModelLook]:
    """By label."""
    return {label: ModelLook(label, look.colour, look.control) for label, look in looks(results).items()}


def shown_pictures(
    results: Results, blocks: Blocks, labels: NDArray[Any], pixels: NDArray[np.uint8] | None
) -> list[dict[str, Any]]:
    """Number, None where it was not kept, and class of each picture."""
    numbers: Sequence[int | None] = [None] * len(labels) if pixels is None else [blocks.picture(p) for p in pixels]
    names = [class_name(results, int(label)) for label in labels]
    return [{"picture": number, "name": name} for number, name in zip(numbers, names, strict=True)]


def section(anchor: str, title: str, text: str) -> str:
    """A section that shows itself once the script runs."""
    return (
        f'<section id="{anchor}" data-script hidden>\n<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n'
        f'<div class="app" data-explorer="{anchor}"></div>\n</section>'
    )
