"""CKA of every layer with every layer, within models and between them."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kamim_analysis.bootstrap import mean_interval
from kamim_analysis.cka import cka_by_image
from kamim_analysis.results import Results

from ._layer_maps import draw_maps, maps_of
from ._style import styled

TITLE = "Similarity of layers: CKA"
ORDER = 43
SOURCE = "Nguyen et al., arXiv 2010.15327"
NEEDS = ("similarity",)
EXAMPLES = False
HOW_TO_READ = (
    "At 1, two layers tell pictures apart in the same way, up to rotation and scale of their features; at 0, what one "
    "tells apart has nothing to do with what the other does; a bright block is a run of layers that change little."
)


@styled
def draw(results: Results) -> Figure | None:
    """Image features of every two layers; models against themselves on the diagonal."""
    found = {label: results.arrays("similarity", label) for label in results.models}
    found = {label: arrays for label, arrays in found.items() if "grams" in arrays}
    if not found:
        return None
    widths: list[float] = []
    maps = maps_of(found, lambda one, other: _cka(one, other, widths))
    images = int(max(arrays["gram_images"] for arrays in found.values()))
    note = f"unbiased linear CKA of mean-pooled patch tokens of {images} images"
    if widths:
        note += f"\n95% confidence intervals: \N{PLUS-MINUS SIGN}{np.median(widths):.2f} in the middle, "
        note += f"\N{PLUS-MINUS SIGN}{max(widths):.2f} at most"
    return draw_maps(results, maps, quantity="CKA", note=note)


def _cka(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]], widths: list[float]) -> NDArray[Any] | None:
    """The map, and half the widths of its intervals, those of a layer with itself left out."""
    if one["gram_images"] != other["gram_images"]:
        return None
    parts = cka_by_image(one["grams"], other["grams"], int(one["gram_images"]))
    values, low, high = mean_interval(parts)
    halves = (high - low)[~np.isnan(high - low)] / 2
    widths += list(halves[halves > 1e-9])
    return values
