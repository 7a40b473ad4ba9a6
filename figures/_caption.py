"""Plain sentences that can stand under a figure in a paper: what is shown, of which models, on which images."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import pandas as pd

from kamim_analysis.protocol import items
from kamim_analysis.results import Results

from ._figure import FigureModule
from ._style import looks, resolution


def caption(results: Results, module: FigureModule, numbers: pd.DataFrame) -> str:
    """What stands under a figure, less its title. `numbers`: those it shows, which tell its models and intervals."""
    labels = labels_in(results, numbers)
    own = [module.caption(results)] if hasattr(module, "caption") else []
    parts = [
        *own,
        module.HOW_TO_READ,
        _models(results, labels),
        _data(results, labels, _images(results, numbers, module)),
    ]
    if not module.EXAMPLES and "ci_low" in numbers and numbers["ci_low"].notna().any():
        parts.append(_intervals(numbers[numbers["ci_low"].notna()]))
    return " ".join([*parts, f"Source: {module.SOURCE}."])


def _intervals(numbers: pd.DataFrame) -> str:
    """How the intervals were found: those of several seeds, which their protocol tells, are over both."""
    seeds = [items(text).get("seeds", "1") != "1" for text in numbers.get("protocol", [""] * len(numbers))]
    # a difference of two accuracies is no share
    names = [""] * len(numbers) if "difference" in numbers else numbers.get("statistic", [""] * len(numbers))
    shares = [bool(_SHARE.match(name)) and not several for name, several in zip(names, seeds, strict=True)]
    if all(shares):
        return "Intervals: 95% score intervals (Wilson) over images."
    return (
        f"Intervals: 95% percentile bootstrap over images{' and seeds' * any(seeds)}"
        f"{', of accuracies score intervals (Wilson)' * any(shares)}."
    )


def labels_in(results: Results, numbers: pd.DataFrame) -> list[str]:
    """The models that a table of numbers names, in the order of the command."""
    columns = [column for column in numbers if column in _LABEL_COLUMNS]
    named = {str(label) for column in columns for label in numbers[column].unique()}
    return [label for label in results.models if label in named]


# of which each image is right or wrong
_SHARE = re.compile(r"top\d+(_|$)|majority$")
# of a model, or of a pair of them
_LABEL_COLUMNS = ("model", "other_model", "model_a", "model_b")


def _models(results: Results, labels: Sequence[str]) -> str:
    """Labels with their architecture, random controls marked as such."""
    architectures = {label: architecture(results.model(label)) for label in labels}
    alike = len(set(architectures.values())) == 1 and len(labels) > 1
    told = []
    for label in labels:
        control = ["random weights, a control"] if looks(results)[label].control else []
        beside = ", ".join([*([] if alike else [architectures[label]]), *control])
        told.append(f"{label} ({beside})" if beside else label)
    first = f"Models, all {architectures[labels[0]]}" if alike else f"Model{'s' * (len(labels) != 1)}"
    return f"{first}: {', '.join(told)}."


def architecture(model: Mapping[str, Any]) -> str:
    """timm's name; where sizes were chosen that the name does not have, its family with those.

    >>> architecture({"architecture": "vit_small_patch16_224", "model_args": {"img_size": 192}})
    'vit_small_patch16_224'
    >>> sizes = {"img_size": 224, "patch_size": 14, "embed_dim": 384, "depth": 12, "num_heads": 6}
    >>> architecture({"architecture": "vit_base_patch16_224", "model_args": sizes})
    'vit of 384 channels, 12 layers, 6 heads and 14-px patches'
    """
    name, arguments = str(model["architecture"]), model.get("model_args") or {}
    parts = [text.format(arguments[key]) for key, text in _SIZES.items() if key in arguments]
    if not parts:
        return name
    family = re.split(r"_(?=tiny|small|medium|base|large|huge|giant|so\d)", name)[0]
    *most, last = parts
    return f"{family} of " + (f"{', '.join(most)} and {last}" if most else last)


# arguments that change what a timm name says, and how they are told
_SIZES = {
    "embed_dim": "{} channels", "depth": "{} layers", "depths": "{} layers", "num_heads": "{} heads",
    "patch_size": "{}-px patches", "window_size": "windows of {}",
}  # fmt: skip


def _images(results: Results, numbers: pd.DataFrame, module: FigureModule) -> str:
    """How many images are shown, of how many: analyses may look at some of them only, or find nothing in others."""
    whole = results.manifest["data"]["images"]
    if module.EXAMPLES:
        return f"a few of {_count(whole)}"
    seen = sorted({int(count) for count in numbers["images"].dropna()}) if "images" in numbers else []
    if not seen or seen == [whole]:
        return _count(whole)
    fewest, most = seen[0], seen[-1]
    return f"{f'{fewest} to {most}' if fewest < most else most} of {_count(whole)}"


def _count(images: int) -> str:
    return f"{images} image{'s' * (images != 1)}"


def _data(results: Results, labels: Sequence[str], images: str) -> str:
    """Which images, how many, and at what resolution and grid of patches."""
    data = results.manifest["data"]
    # the rest of a path says where somebody keeps the images, not what they are
    source = PurePath(data["source"])
    name = source.name if source.is_absolute() else str(data["source"])
    return f"Data: {name}, {images}, {_sizes(results, labels)}."


def _sizes(results: Results, labels: Sequence[str]) -> str:
    """One resolution and grid, or which models had which."""
    by_size: dict[str, list[str]] = {}
    for label in labels:
        by_size.setdefault(_size(results.model(label)), []).append(label)
    if len(by_size) == 1:
        return next(iter(by_size))
    return "; ".join(f"{size} for {', '.join(some)}" for size, some in by_size.items())


def _size(model: Mapping[str, Any]) -> str:
    rows, columns = model["grid"]
    return f"{resolution(model['image_size'])} in {rows}\N{MULTIPLICATION SIGN}{columns} patches"
