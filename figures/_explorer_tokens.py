"""Tokens as points for the page: t-SNE and principal planes, each point with its patch and picture."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kamim_analysis.results import Results

from ._explorer import Blocks, model_looks, packed, shown_pictures
from ._planes import class_look, order_of_appearance

_TOP = 65535
#: planes that were fitted together share a frame: switching between them shows what attention moves
_FRAMES = {
    "all": (("all_after", "PCA after self-attention, all pictures"),),
    "two": (
        ("two_before", "PCA before self-attention, two pictures"),
        ("two_after", "PCA after self-attention, two pictures"),
    ),
    "one": (
        ("one_before", "PCA before self-attention, one picture"),
        ("one_after", "PCA after self-attention, one picture"),
    ),
}
Arrays = dict[str, NDArray[Any]]
Plane = tuple[str, int, NDArray[Any]]


def token_data(results: Results, blocks: Blocks) -> dict[str, Any] | str:
    """What the token explorer reads, with its blocks added; or why there is none."""
    arrays = {label: results.arrays("tokens", label) for label in results.models}
    order = order_of_appearance(
        named[key] for named in arrays.values() for key in ("tsne_labels", "self_attention_labels") if key in named
    )
    models = [found for label in arrays if (found := _model(results, blocks, label, arrays[label], order))]
    return {"models": models} if models else "no model was analysed with token_tsne or self_attention_tokens"


def _model(results: Results, blocks: Blocks, label: str, arrays: Arrays, order: list[int]) -> dict[str, Any] | None:
    entry = results.model(label)
    frames = [*_tsne(arrays, entry["layers"]), *_principal(arrays)]
    if not frames:
        return None
    name = f"points-{results.models.index(label)}"
    placed = [(title, layer, plane) for frame in frames for title, layer, plane in in_frame(frame)]
    blocks.add(name, packed(b"".join(plane.tobytes() for _, _, plane in placed)))
    # the same pictures in the same order, of which the principal planes show more
    key = "self_attention" if "self_attention_labels" in arrays else "tsne"
    labels = arrays[f"{key}_labels"]
    pictures = shown_pictures(results, blocks, labels, arrays.get(f"{key}_pixels"))
    for picture, number in zip(pictures, labels, strict=True):
        picture["colour"], picture["marker"] = class_look(order.index(int(number)))
    return {
        **model_looks(results)[label]._asdict(),
        "block": name,
        "grid": entry["grid"],
        "depth": entry["layers"],
        "pictures": pictures,
        "planes": [
            {"title": title, "layer": layer, "images": plane.shape[0], "tokens": plane.shape[1]}
            for title, layer, plane in placed
        ],
    }


def _tsne(arrays: Arrays, last: int) -> list[list[Plane]]:
    return [[("t-SNE, last layer", last, arrays["tsne"])]] if "tsne" in arrays else []


def _principal(arrays: Arrays) -> list[list[Plane]]:
    layers = [int(layer) for layer in arrays.get("self_attention_layers", ())]
    return [
        [(f"{title}, {where}", layer, arrays[f"{key}{layer}"]) for key, title in planes]
        for planes in _FRAMES.values()
        for where, layer in zip(("last layer", "second-last layer"), reversed(layers), strict=False)
    ]


def in_frame(frame: list[Plane]) -> list[Plane]:
    """Planes of one frame as numbers from 0 to 65535, one scale for both axes, y upwards."""
    points = np.concatenate([plane.reshape(-1, 2) for _, _, plane in frame])
    low, high = points.min(0), points.max(0)
    side = float((high - low).max()) or 1.0
    corner = (low + high - side) / 2
    return [
        (title, layer, np.rint((plane - corner) / side * _TOP).clip(0, _TOP).astype("<u2"))
        for title, layer, plane in frame
    ]
