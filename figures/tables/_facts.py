"""Measured numbers with the facts by which a table finds them: from metrics.csv, its protocol and the manifest."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kamim_analysis.protocol import items
from kamim_analysis.results import Results

from ._names import data_set, encoder, method_of_label
from ._pretraining import pretraining

#: every fact by which numbers are found, compared or described, and how a reader is told of it
TITLES = {
    "evaluation": "evaluation",
    "method": "method",
    "data": "data set",
    "encoder": "encoder",
    "patch": "patch size (px)",
    "layer": "layer",
    "pooling": "pooling",
    "norm": "norm",
    "resolution": "resolution (px)",
    "crop": "crop",
    "interpolation": "interpolation",
    "k": "k",
    "v": "images a class",
    "temperature": "temperature",
    "train": "training pictures",
    "test": "images judged",
    "seeds": "seeds",
    "learning_rate": "learning rate",
    "epochs": "epochs",
    "batch_size": "batch size",
    "weight_decay": "weight decay",
    "augmentation": "augmentation",
    "mixing": "mixing",
    "mask_ratio": "mask ratio",
    "pretraining_data": "pre-trained on",
    "pretraining_epochs": "pre-training epochs",
    "pretraining_resolution": "pre-training resolution (px)",
    "pretraining_batch_size": "pre-training batch size",
    "pretraining_learning_rate": "pre-training learning rate",
    "pretraining_mask_ratio": "share hidden in pre-training",
    "mask_unit": "mask unit (px)",
    "mask_probability": "share of crops masked",
    "visible": "visible patches",
    "gap": "gap (px)",
    "local_crops": "local crops",
    "prototypes": "prototypes",
    "weight_patch": "w_ps",
    "keypoint_temperature": "T",
    "detector": "detector",
    "map_style": "keypoint map",
}
NOT_TOLD = "not told"
# told of every number, and said to be missing where it is
REQUIRED = ("layer", "pooling", "norm", "resolution", "seeds")
_WITHOUT = {
    "reconstruction": ("layer", "pooling", "norm"),
    "epoch_time": ("layer", "pooling", "norm", "resolution", "data", "seeds"),
}
_SUFFIX = re.compile(r"_([kv])(\d+)(?=_|$)")


def title(key: str) -> str:
    """How a reader is told of a fact, which may be one of an evaluation's own."""
    return TITLES.get(key, key.replace("_", " "))


@dataclass(frozen=True, kw_only=True)
class Number:
    """A measured number, in the unit of metrics.csv."""

    model: str
    results: str
    """The directory, as the command line gave it."""
    statistic: str
    """Less its `_k20`, its `_v5` and its pooling, which are facts."""
    value: float
    low: float
    high: float
    images: int
    facts: Mapping[str, str]
    by_label: bool
    """Whether the method is known by the model's label alone."""

    def told(self, key: str) -> str | None:
        """A fact, or None where neither the results nor the weights tell it."""
        return self.facts.get(key)

    @property
    def protocol(self) -> dict[str, str]:
        """What a reader must know to compare the number with another, what is not told included, in order."""
        without = ("method", *_WITHOUT.get(self.facts["evaluation"], ()))
        told = dict.fromkeys([*TITLES, *self.facts])
        shown = [key for key in told if key not in without and (key in self.facts or key in REQUIRED)]
        return {key: self.facts.get(key, NOT_TOLD) for key in shown}


def numbers_in(directory: Path) -> list[Number]:
    """Every number of a results directory but those of single heads. Raises UserError where there are no results."""
    results = Results.open(directory)
    rows = results.metrics
    rows = rows[rows["head"].isna() & rows["value"].notna()]
    data = results.manifest["data"]
    common = {"data": data_set(str(data["source"]), data.get("classes"))}
    if isinstance(results.manifest.get("pooling"), str):  # the command's; a number's own protocol goes before
        common["pooling"] = results.manifest["pooling"]
    entries = {label: results.model(label) for label in results.models}
    of_model = {label: facts_of_model(entry) for label, entry in entries.items()}
    numbers = []
    for row in rows.to_dict("records"):
        facts, by_label = of_model[row["model"]]
        number = _number(row, entries[row["model"]], common | facts, by_label, str(directory))
        numbers.append(number)
    return numbers


def facts_of_model(entry: Mapping[str, Any]) -> tuple[dict[str, str], bool]:
    """What a manifest's entry tells of a model, and whether its method is known by its label alone."""
    facts = {"encoder": encoder(entry)}
    if "image_size" in entry:
        facts["resolution"] = _size(entry["image_size"])
    arguments = entry.get("model_args") or {}
    patch = entry.get("patch_size") or arguments.get("patch_size")
    if patch and "swin" not in str(entry["architecture"]):  # a Swin's are of its last stage
        facts["patch"] = _size(patch)
    pretrained, by_label = _pretraining(entry, facts["encoder"])
    return facts | pretrained, by_label


def _pretraining(entry: Mapping[str, Any], encoder_name: str) -> tuple[dict[str, str], bool]:
    """What the weights tell of their pretraining; where they tell nothing, the method that the label names."""
    label, training = str(entry["label"]), entry.get("training")
    if str(entry.get("spec", "")).startswith("random:"):
        name = label if label.startswith("random:") else f"{label} (random weights)"
        return {"method": name, "pretraining_data": "none", "pretraining_epochs": "0"}, False
    if not training:
        named = method_of_label(label, encoder_name)
        return {"method": named or label}, named is not None
    return pretraining(training), False


def _number(
    row: Mapping[Any, Any], entry: Mapping[str, Any], facts: Mapping[str, str], by_label: bool, directory: str
) -> Number:
    told = items(row.get("protocol") or "")
    told.pop("per_class", None)  # v, which the statistic's name tells
    if "resolution" in told:
        told["resolution"] = told["resolution"].removesuffix("px").strip()
    layer = {} if pd.isna(row["layer"]) else {"layer": f"{row['layer']} of {entry['layers']}"}
    statistic, images = str(row["statistic"]), int(row["images"])
    own = {"evaluation": str(row["analysis"]), **layer, **dict(_SUFFIX.findall(statistic))}
    return Number(
        model=str(row["model"]),
        results=directory,
        # of several poolings all but the first end with their name
        statistic=_SUFFIX.sub("", statistic).removesuffix(f"_{told.get('pooling')}"),
        value=float(row["value"]),
        low=float(row["ci_low"]),
        high=float(row["ci_high"]),
        images=images,
        facts={**facts, "test": str(images), **told, **own},
        by_label=by_label,
    )


def _size(sides: int | Sequence[int]) -> str:
    """One side of a square, both of others."""
    height, width = (sides, sides) if isinstance(sides, int) else sides
    return str(height) if height == width else f"{height} x {width}"
