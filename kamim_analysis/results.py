"""What an analysis leaves on disk, and what figures and the report are drawn from: no model, no images, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .bootstrap import mean_interval
from .errors import UserError
from .output import MANIFEST

COLUMNS = ["model", "analysis", "layer", "head", "statistic", "value", "ci_low", "ci_high", "images", "protocol"]
METRICS, COMPARISON = "metrics.csv", "comparison.csv"
_SAMPLES = "samples"

Samples = dict[tuple[str, str, int | None], NDArray[np.float32]]
"""Each image's own value, [images] in the order of the data, by analysis, statistic and layer (mean over heads)."""


class Row(NamedTuple):
    """One number of metrics.csv, less the model. `head` None means: mean over heads, or no heads at all."""

    analysis: str
    layer: int | None
    head: int | None
    statistic: str
    value: float
    ci_low: float
    ci_high: float
    images: int
    protocol: str = ""
    """What a reader must know to compare the number with another (`protocol.protocol`)."""


def rows_of(
    analysis: str,
    statistic: str,
    values: NDArray[np.floating],
    *,
    layers: Sequence[int | None],
    head: int | None = None,
    protocol: str = "",
) -> list[Row]:
    """Rows for per-image values [images, layers]: mean over images with bootstrap interval, one for each layer."""
    mean, low, high = mean_interval(values)
    return [
        Row(analysis, layer, head, statistic, float(mean[i]), float(low[i]), float(high[i]), len(values), protocol)
        for i, layer in enumerate(layers)
    ]


def rows_by_head(
    analysis: str, statistic: str, values: Sequence[NDArray[np.floating]], layers: Sequence[int] | None = None
) -> list[Row]:
    """Rows for per-image values of each layer, a list over `layers` (1, 2, ... unless given) of [images, heads].

    For each layer first the mean over heads (head None), then every head from 0.
    """
    rows = []
    for layer, by_head in zip(layers or range(1, len(values) + 1), values, strict=True):
        rows += rows_of(analysis, statistic, by_head.mean(1, keepdims=True), layers=[layer])
        mean, low, high = mean_interval(by_head)
        rows += [
            Row(analysis, layer, h, statistic, float(mean[h]), float(low[h]), float(high[h]), len(by_head))
            for h in range(by_head.shape[1])
        ]
    return rows


@dataclass(frozen=True)
class Results:
    """A directory that `kamim analyze` wrote."""

    directory: Path

    @classmethod
    def open(cls, directory: str | Path) -> Results:
        """Raises UserError when the directory holds no results."""
        directory = Path(directory)
        for name in (METRICS, MANIFEST):
            if not (directory / name).is_file():
                raise UserError(f"{str(directory)!r} holds no analysis: {name} is missing; run kamim analyze first")
        return cls(directory)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv: one row for each number, in the columns `COLUMNS`; layer and head are nullable integers."""
        # only numbers can be missing: a model called NA or 007 keeps its name
        texts = ("model", "analysis", "statistic", "protocol")
        table = pd.read_csv(
            self.directory / METRICS,
            dtype={"layer": "Int64", "head": "Int64"} | dict.fromkeys(texts, "str"),
            keep_default_na=False,
            na_values={name: [""] for name in COLUMNS if name not in texts},
        )
        # results of before numbers carried their protocol have no such column
        return table if "protocol" in table else table.assign(protocol="")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """manifest.json: versions, seeds, data, weights, command."""
        manifest: dict[str, Any] = json.loads((self.directory / MANIFEST).read_text(encoding="utf-8"))
        return manifest

    @property
    def models(self) -> list[str]:
        """Labels, in the order of the command."""
        return [model["label"] for model in self.manifest["models"]]

    def model(self, label: str) -> dict[str, Any]:
        """What the manifest says of a model."""
        entry: dict[str, Any] = self.manifest["models"][self.models.index(label)]
        return entry

    def arrays(self, file: str, label: str) -> dict[str, NDArray[Any]]:
        """The arrays of one model in `file`.npz by name; empty where the analysis did not run for it."""
        path = self.directory / f"{file}.npz"
        if not path.is_file():
            return {}
        prefix = f"{self.models.index(label)}."
        with np.load(path, allow_pickle=False) as archive:
            return {key.removeprefix(prefix): archive[key] for key in archive.files if key.startswith(prefix)}

    def samples(self, label: str) -> Samples:
        """Each image's own values of one model, for paired comparisons; empty in results of before they were kept."""
        found: Samples = {}
        for key, values in self.arrays(_SAMPLES, label).items():
            analysis, statistic, layer = key.split(".")
            found[analysis, statistic, int(layer) if layer else None] = values
        return found

    @cached_property
    def comparison(self) -> pd.DataFrame:
        """comparison.csv: differences between models on the same images (`comparison.COLUMNS`); empty for one model."""
        path = self.directory / COMPARISON
        if not path.is_file():
            return pd.DataFrame()
        names = dict.fromkeys(("model_a", "model_b", "analysis", "statistic"), "str")
        return pd.read_csv(path, dtype={"layer": "Int64", **names}, keep_default_na=False, na_values={"layer": [""]})

    def select(self, analysis: str, statistic: str | None = None, *, heads: bool = False) -> pd.DataFrame:
        """Rows of one analysis (and statistic): means over heads, or with `heads` those of single heads."""
        table = self.metrics
        chosen = table[(table.analysis == analysis) & (table["head"].notna() == heads)]
        return chosen if statistic is None else chosen[chosen.statistic == statistic]


def write(
    directory: Path,
    manifest: dict[str, Any],
    rows: Mapping[str, Sequence[Row]],
    arrays: Mapping[str, Mapping[str, Mapping[str, NDArray[Any]]]],
    samples: Mapping[str, Samples] | None = None,
) -> None:
    """Write metrics.csv, the arrays, each image's values and the manifest.

    `rows` and `samples`: by label; `arrays`: by file, label and name.
    """
    table = pd.DataFrame([(label, *row) for label, some in rows.items() for row in some], columns=COLUMNS)
    table = table.astype({"layer": "Int64", "head": "Int64"})
    table.to_csv(directory / METRICS, index=False)
    labels = [model["label"] for model in manifest["models"]]
    flat = {
        label: {f"{analysis}.{statistic}.{'' if layer is None else layer}": values
                for (analysis, statistic, layer), values in some.items()}
        for label, some in (samples or {}).items()
    }  # fmt: skip
    for file, by_label in [*arrays.items(), (_SAMPLES, flat)]:
        named = {f"{labels.index(label)}.{k}": v for label, some in by_label.items() for k, v in some.items()}
        if named:
            np.savez_compressed(directory / f"{file}.npz", **named)  # type: ignore[arg-type]
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
