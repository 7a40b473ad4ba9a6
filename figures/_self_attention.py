"""What figures 8 to 10 take from a model: planes of one of its layers."""

from typing import Any, NamedTuple

from numpy.typing import NDArray

from kamim_analysis.results import Results


class LayerPlanes(NamedTuple):
    """Planes of tokens [images, N, 2] by name (`one_before`, `one_after`, ...), at one layer of a model."""

    title: str
    planes: dict[str, NDArray[Any]]
    labels: NDArray[Any]


def layer_planes(results: Results, *, second_last: bool = False) -> dict[str, LayerPlanes]:
    """Planes by label at the last layer, or the one before where there is one; only models that were analysed so."""
    found = {}
    for label in results.models:
        arrays = results.arrays("tokens", label)
        if "self_attention_layers" in arrays:
            layers = arrays["self_attention_layers"]
            layer = int(layers[0] if second_last else layers[-1])
            planes = {key: arrays[f"{key}{layer}"] for key in _NAMES}
            title = f"layer {layer} of {int(layers[-1])}"
            found[label] = LayerPlanes(title, planes, arrays["self_attention_labels"])
    return found


_NAMES = ("one_before", "one_after", "two_before", "two_after", "all_after")
