"""What an analysis leaves on disk, and what figures and the report are drawn from: no model, no images, no torch."""

from __future__ import annotations

import hashlib
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
from .output import MANIFEST, naming
from .plain_data import digest_of, json_of
from .results_reading import is_manifest, read_arrays, read_metrics

COLUMNS = ["model", "analysis", "layer", "head", "statistic", "value", "ci_low", "ci_high", "images", "protocol"]
METRICS, COMPARISON = "metrics.csv", "comparison.csv"
_SAMPLES = "samples"
#: of the manifest: SHA-256 of each file of numbers by name, and of all else that stands in the manifest
_DIGESTS = "sha256"

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
    values: NDArray[np.floating] | NDArray[np.bool_],
    *,
    layers: Sequence[int | None],
    head: int | None = None,
    protocol: str = "",
) -> list[Row]:
    """Rows for per-image values [images, layers]: mean over images with `mean_interval`, one for each layer."""
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
    """A directory that `kamim analyze` wrote.

    >>> from tempfile import TemporaryDirectory
    >>> rows = rows_of("knn", "top1_k20", np.array([[1.0], [0.0]]), layers=[12])  # of two pictures, at one layer
    >>> with TemporaryDirectory() as folder:
    ...     write(Path(folder), {"models": [{"label": "KAMIM"}]}, {"KAMIM": rows}, {})
    ...     results = Results.open(folder)
    ...     results.select("knn", "top1_k20").value.tolist(), results.models
    ([0.5], ['KAMIM'])
    """

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
        """metrics.csv: one row for each number, in the columns `COLUMNS`; layer and head are nullable integers.

        Raises UserError, as all that reads a file of the directory does, where it is not what was written.
        """
        path = self._intact(METRICS)
        try:
            return read_metrics(path, COLUMNS, self.models)
        except (OverflowError, TypeError, ValueError) as error:
            raise self._damaged(METRICS) from error

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """manifest.json: versions, seeds, data, weights, command."""
        try:
            manifest = json_of((self.directory / MANIFEST).read_bytes())
        except ValueError:
            manifest = None
        if not is_manifest(manifest):
            raise self._damaged(MANIFEST)
        digests = manifest.get(_DIGESTS, {})
        # results of before had no check sums
        if _DIGESTS in manifest and (
            not isinstance(digests, dict) or digests.get(MANIFEST) != digest_of(manifest, without=_DIGESTS)
        ):
            raise self._damaged(MANIFEST)
        told: dict[str, Any] = manifest
        return told

    def _intact(self, name: str) -> Path:
        """A file that is as it was written; once for each reader, so that large ones are read twice at most."""
        path = self.directory / name
        noted = self._digests.get(name)
        if noted is not None and name not in self._known_intact:
            if _digest(path) != noted:
                raise self._damaged(name)
            self._known_intact.add(name)
        return path

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        """What the files were when they were written; empty in results of before."""
        digests: dict[str, str] = self.manifest.get(_DIGESTS, {})
        return digests

    @cached_property
    def _known_intact(self) -> set[str]:
        return set()

    def _damaged(self, name: str) -> UserError:
        return UserError(
            f"{str(self.directory / name)!r} is damaged, or was changed after it was written; put back a copy, or run "
            "the command that wrote it again"
        )

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
        name = f"{file}.npz"
        if not (self.directory / name).is_file():
            return {}
        prefix = f"{self.models.index(label)}."
        path = self._intact(name)
        try:
            return read_arrays(path, prefix)
        except Exception as error:  # whatever zipfile, zlib and NumPy raise
            raise self._damaged(name) from error

    def samples(self, label: str) -> Samples:
        """Each image's own values of one model, for paired comparisons; empty in results of before they were kept."""
        found: Samples = {}
        for key, values in self.arrays(_SAMPLES, label).items():
            try:
                analysis, statistic, layer = key.split(".")
                found[analysis, statistic, int(layer) if layer else None] = values
            except ValueError as error:
                raise self._damaged(f"{_SAMPLES}.npz") from error
        return found

    @cached_property
    def comparison(self) -> pd.DataFrame:
        """comparison.csv: differences between models on the same images (`comparison.COLUMNS`); empty for one model."""
        if not (self.directory / COMPARISON).is_file():
            return pd.DataFrame()
        names = dict.fromkeys(("model_a", "model_b", "analysis", "statistic"), "str")
        path = self._intact(COMPARISON)
        # only numbers can be missing: the difference of undefined ones is
        numbers = ("layer", "a", "b", "difference", "ci_low", "ci_high", "effect_size", "p_value", "p_holm")
        missing = {name: [""] for name in numbers}
        try:
            return pd.read_csv(path, dtype={"layer": "Int64", **names}, keep_default_na=False, na_values=missing)
        except (OverflowError, TypeError, ValueError) as error:
            raise self._damaged(COMPARISON) from error

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
    """Write metrics.csv, the arrays, each image's values and the manifest with the check sums of all.

    `rows` and `samples`: by label; `arrays`: by file, label and name.
    """
    table = pd.DataFrame([(label, *row) for label, some in rows.items() for row in some], columns=COLUMNS)
    table = table.astype({"layer": "Int64", "head": "Int64"})
    with naming(directory / METRICS):
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
            with naming(directory / f"{file}.npz"):
                np.savez_compressed(directory / f"{file}.npz", **named)  # type: ignore[arg-type]
    said = json.dumps(_with_digests(manifest, directory), indent=2)
    with naming(directory / MANIFEST):
        (directory / MANIFEST).write_text(f"{said}\n", encoding="utf-8")


def _with_digests(manifest: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The manifest with the SHA-256 of the files beside it and its own."""
    digests = {path.name: _digest(path) for path in sorted(directory.iterdir()) if path.suffix in (".csv", ".npz")}
    plain: dict[str, Any] = json.loads(json.dumps(manifest))
    return plain | {_DIGESTS: digests | {MANIFEST: digest_of(plain, without=_DIGESTS)}}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
