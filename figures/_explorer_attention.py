"""Attention of every patch, layer and head for the page: in as many steps as leave the page below its limit."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kamim_analysis.results import Results

from ._explorer import Blocks, model_looks, packed, shown_pictures

#: of an entry over the largest of its row, by the square root. Eyes tell few colours of a map apart.
STEPS = (64, 48, 32, 24, 16, 12, 8)
_PICTURES = (8, 4, 2, 1)
#: what 255 stands for in the results
_TOP_CODE = 255
#: of the logarithm of a row's largest value to base 2: a third of a percent
_OCTAVE_STEPS = 128
_BASE64 = 4 / 3
Arrays = dict[str, NDArray[Any]]


class _Kept(NamedTuple):
    """What is known of a model's maps once they were looked at: they are too large to hold those of all models."""

    labels: NDArray[Any]
    pixels: NDArray[np.uint8]
    layers: list[dict[str, Any]]
    sample: list[NDArray[np.uint8]]
    """Codes of a few layers of the first picture."""
    times: float
    """Entries of all layers of a picture over those of the sample."""


def attention_data(results: Results, blocks: Blocks, budget_bytes: int) -> dict[str, Any] | str:
    """What the attention explorer reads, with its blocks added; or why there is none."""
    kept = {label: found for label in results.models if (found := _look(results, label))}
    if not kept:
        return "no model was analysed with explorer"
    chosen = _choose(results, kept, budget_bytes)
    if chosen is None:
        return "the maps of these models are too large for a page, even of one picture"
    steps, pictures, compressed = chosen
    models = []
    for number, (label, found) in enumerate(kept.items()):
        for picture, content in enumerate(compressed[label]):
            blocks.add(f"maps-{number}-{picture}", content)
        models.append(
            {
                **model_looks(results)[label]._asdict(),
                "image": results.model(label)["image_size"],
                "pictures": shown_pictures(results, blocks, found.labels[:pictures], found.pixels[:pictures]),
                "layers": found.layers,
            }
        )
    most = max(len(found.labels) for found in kept.values())
    return {"steps": steps, "octave": _OCTAVE_STEPS, "kept": most, "models": models}


def _look(results: Results, label: str) -> _Kept | None:
    arrays = results.arrays("explorer", label)
    if "labels" not in arrays or not len(arrays["labels"]):
        return None
    last = results.model(label)["layers"]
    layers, entries = [], 0
    for layer in range(1, last + 1):
        height, width, cell = arrays[f"grid{layer}"].tolist()
        codes = arrays[f"codes{layer}"]
        layers.append({"heads": codes.shape[1], "grid": [height, width], "cell": cell})
        entries += codes[0].size
    # copies: a view would keep the maps of all pictures alive
    sample = [arrays[f"codes{layer}"][0].copy() for layer in sorted({1, (last + 1) // 2, last})]
    return _Kept(arrays["labels"], arrays["pixels"], layers, sample, entries / sum(codes.size for codes in sample))


def _choose(
    results: Results, kept: dict[str, _Kept], budget_bytes: int
) -> tuple[int, int, dict[str, list[bytes]]] | None:
    """Steps, pictures and the compressed maps of the finest choice that fits: fewer steps before fewer pictures."""
    most = max(len(found.labels) for found in kept.values())
    for pictures in sorted({min(count, most) for count in _PICTURES}, reverse=True):
        for steps in STEPS:
            if _estimate(kept, steps, pictures) > budget_bytes:
                continue
            compressed = {label: _compress(results, label, steps, pictures) for label in kept}
            if sum(len(content) for some in compressed.values() for content in some) * _BASE64 <= budget_bytes:
                return steps, pictures, compressed
    return None


def _estimate(kept: dict[str, _Kept], steps: int, pictures: int) -> float:
    """Bytes of the page that the maps will take, about."""
    return _BASE64 * sum(
        sum(len(packed(coarse(codes, steps))) for codes in found.sample)
        * found.times
        * min(pictures, len(found.labels))
        for found in kept.values()
    )


def _compress(results: Results, label: str, steps: int, pictures: int) -> list[bytes]:
    """A block for each picture: codes of all layers, then the numbers of all rows, low bytes before high bytes."""
    arrays, layers = results.arrays("explorer", label), results.model(label)["layers"]
    return [
        packed(b"".join(coarse(arrays[f"codes{layer}"][picture], steps) for layer in range(1, layers + 1)) + numbers)
        for picture, numbers in enumerate(_numbers(arrays, layers, pictures))
    ]


def coarse(codes: NDArray[np.uint8], steps: int) -> bytes:
    """Codes 0 to 255 as 0 to steps - 1: a byte each, or two in a byte where they fit, the first one high."""
    table = np.round(np.arange(_TOP_CODE + 1) * (steps - 1) / _TOP_CODE).astype(np.uint8)
    flat = table[codes].reshape(-1)
    if steps > 16:
        return flat.tobytes()
    flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
    return (flat[::2] << 4 | flat[1::2]).tobytes()


def _numbers(arrays: Arrays, layers: int, pictures: int) -> Iterator[bytes]:
    """For each picture and layer: largest entries, entropies and distances, as the page shows them."""
    rounded: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
        "largest": lambda values: -_OCTAVE_STEPS * np.log2(values.astype(np.float64).clip(2.0**-24)),
        "entropy": lambda values: 10_000 * values,
        "distance": lambda values: 10 * values,
    }
    for picture in range(min(pictures, len(arrays["labels"]))):
        flat = [
            np.rint(number(arrays[f"{name}{layer}"][picture])).astype("<u2").reshape(-1)
            for layer in range(1, layers + 1)
            for name, number in rounded.items()
        ]
        both = np.concatenate(flat).view(np.uint8).reshape(-1, 2)
        yield both.T.tobytes()
