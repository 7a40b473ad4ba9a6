"""Masked pictures and what models make of them (KAMIM, figure 2)."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kamim_analysis.results import Results

from ._pictures import PictureSheet
from ._style import styled

TITLE = "Reconstructions of masked pictures"
ORDER = 2
SOURCE = "KAMIM, figure 2"
NEEDS = ("reconstruction",)
EXAMPLES = True
HOW_TO_READ = (
    "A model sees the masked picture and predicts all of it; pasted is the prediction in the masked area with the "
    "visible pixels put back, to be compared with the original."
)
_GIVEN, _MADE = ("original", "masked"), ("predicted", "pasted")


@styled
def draw(results: Results) -> Figure | None:
    """Columns are pictures. Models that saw the same pictures under the same mask share those rows."""
    found = {label: results.arrays("reconstructions", label) for label in results.models}
    pixels = {label: arrays["pixels"] for label, arrays in found.items() if "pixels" in arrays}
    if not pixels:
        return None
    rows = _rows(pixels)
    sheet = PictureSheet([text for text, _ in rows], max(len(pictures) for _, pictures in rows))
    for line, (_, pictures) in zip(sheet.rows, rows, strict=True):
        for axes, picture in zip(line, pictures, strict=False):
            axes.imshow(picture, interpolation="nearest")
    return sheet.figure


def _rows(pixels: dict[str, NDArray[Any]]) -> list[tuple[str, NDArray[Any]]]:
    """Name and pictures of each row, from [images, original/masked/predicted/pasted, H, W, 3] by label."""
    rows: list[tuple[str, NDArray[Any]]] = []
    previous = None
    for label, some in pixels.items():
        given = some[:, : len(_GIVEN)]
        if previous is None or not np.array_equal(given, previous):
            rows += [(kind, given[:, i]) for i, kind in enumerate(_GIVEN)]
        rows += [(f"{label}\n{kind}", some[:, len(_GIVEN) + i]) for i, kind in enumerate(_MADE)]
        previous = given
    return rows
