"""Results that are computed again: what a manifest asks for, what has changed since, and whether numbers are the same.

A manifest may come from a stranger: what it holds is checked, and nothing in it is believed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .errors import UserError
from .invocation import Invocation
from .output import MANIFEST
from .plain_data import json_of

#: the commands whose manifests can be run again; none of them writes anything but its --out
REPEATABLE = ("analyze", "compare", "knn", "fast_probe", "aggregate")
#: numbers that differ by less than this share of the larger, or by less than `_LEAST`, differ by rounding
ROUNDING, _LEAST = 1e-4, 1e-6
_KEY = ["model", "analysis", "layer", "head", "statistic", "protocol"]
_NUMBERS = ["value", "ci_low", "ci_high", "images"]


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest at `path`, or in that directory of results. Raises UserError for anything else."""
    config = path / "config.yaml" if path.is_dir() else path
    if config.suffix in (".yaml", ".yml") and config.is_file():
        raise UserError(
            f"{str(config)!r} is the recipe of a training, which kamim train --config {str(config)!r} --out NEW runs "
            f"again; kamim rerun takes the {MANIFEST} of an analysis"
        )
    path = path / MANIFEST if path.is_dir() else path
    try:
        manifest = json_of(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"no manifest at {str(path)!r}: {error.strerror}; give RESULTS/{MANIFEST}") from error
    except ValueError as error:
        raise UserError(
            f"{str(path)!r} is no readable JSON ({type(error).__name__}); give RESULTS/{MANIFEST}"
        ) from error
    if not isinstance(manifest, dict) or "command" not in manifest:
        raise UserError(f"{str(path)!r} is no manifest of an analysis; give RESULTS/{MANIFEST}")
    return manifest


def invocation_of(manifest: Mapping[str, Any], path: Path) -> Invocation:
    """What a manifest asks to be run. Raises UserError unless it is one of `REPEATABLE`, completely told."""
    if "rerun" not in manifest:
        raise UserError(
            f"{str(path)!r} is of an earlier version, which did not record what a rerun needs; give kamim by hand what "
            "stands there as 'command'"
        )
    asked = manifest["rerun"]
    if asked is None:
        raise UserError(
            f"{str(path)!r} was written by no command that can be run again; a training's rerun is kamim train "
            "--config RUN/config.yaml --out NEW"
        )
    if not _is_invocation(asked):
        raise UserError(f"{str(path)!r} is damaged: 'rerun' does not tell command, arguments and directory")
    if asked["command"] not in REPEATABLE:
        raise UserError(f"{str(path)!r} asks for {asked['command']!r}; only {', '.join(REPEATABLE)} are run again")
    return Invocation(asked["command"], tuple(asked["arguments"]), asked["directory"])


def _is_invocation(asked: object) -> bool:
    if not isinstance(asked, dict) or asked.keys() != {"command", "arguments", "directory"}:
        return False
    if not isinstance(asked["arguments"], list):
        return False
    return all(
        isinstance(text, str) and "\0" not in text
        for text in (asked["command"], asked["directory"], *asked["arguments"])
    )


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between a manifest and `manifest.surroundings` now, in words: versions, device and so on by name."""
    earlier, current = _flat({name: then.get(name) for name in now}), _flat(now)
    return [
        f"{name} was {_told(earlier.get(name))}, is {_told(current.get(name))}"
        for name in {**earlier, **current}
        if earlier.get(name) != current.get(name)
    ]


def _flat(told: Mapping[str, Any]) -> dict[str, Any]:
    versions = told.get("versions")
    return {name: value for name, value in told.items() if name != "versions"} | (
        versions if isinstance(versions, dict) else {}
    )


def _told(value: object) -> str:
    return "none" if value is None else ascii(value).strip("'")[:80]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How the numbers of a rerun compare with the original's."""

    rows: int
    """Numbers that both have."""
    lost: int
    """Rows that only the original has, by model, analysis, layer, head, statistic and protocol."""
    gained: int
    """Rows that only the rerun has."""
    unequal: int
    """Of the rows that both have, those whose value, interval or number of images is not the very same."""
    beyond_rounding: int
    """Of those, the ones that differ by more than rounding explains."""
    outside: int
    """Rows whose new value lies outside the original's interval."""
    largest: str
    """The row whose value differs most, as a share of the larger of the two; empty where none does."""

    @property
    def holds(self) -> bool:
        """Whether the numbers are the same, but for rounding."""
        return not (self.lost or self.gained or self.beyond_rounding)

    def __str__(self) -> str:
        if self.holds and not self.unequal:
            return f"identical: all {self.rows} numbers are the original's"
        verdict = "equal to rounding" if self.holds else "different"
        parts = [f"{self.unequal} of {self.rows} numbers differ, {self.beyond_rounding} beyond rounding"]
        parts += [f"the largest difference is that of {self.largest}"] if self.largest else []
        parts.append(f"{self.outside or 'none'} of the new values outside the original's interval")
        if self.lost or self.gained:
            parts.append(f"{self.lost} rows are the original's alone, {self.gained} the rerun's alone")
        return f"{verdict}: {'; '.join(parts)}"


def agreement(original: pd.DataFrame, again: pd.DataFrame) -> Agreement:
    """Compare two tables of metrics.csv row by row, whatever their order."""
    keyed = [_numbered(table) for table in (original, again)]
    both = keyed[0].merge(keyed[1], on=[*_KEY, "nth"], how="outer", suffixes=("", "_again"), indicator="found")
    matched = both[both.found == "both"]
    first, second = (matched[[f"{name}{end}" for name in _NUMBERS]].to_numpy(np.float64) for end in ("", "_again"))
    equal = (first == second) | (np.isnan(first) & np.isnan(second))
    size = np.maximum(np.abs(first), np.abs(second))
    close = equal | (np.abs(second - first) <= np.maximum(ROUNDING * size, _LEAST))
    outside = (second[:, 0] < first[:, 1]) | (second[:, 0] > first[:, 2])
    return Agreement(
        rows=len(matched),
        lost=int((both.found == "left_only").sum()),
        gained=int((both.found == "right_only").sum()),
        unequal=int((~equal).any(1).sum()),
        beyond_rounding=int((~close).any(1).sum()),
        # an interval without width leaves no room for rounding
        outside=int((outside & ~close[:, 0]).sum()),
        largest=_largest(matched, first[:, 0], second[:, 0]),
    )


def _numbered(table: pd.DataFrame) -> pd.DataFrame:
    """With a number for rows that have the same names, lest each be matched with all the others."""
    return table.assign(nth=table.groupby(_KEY, dropna=False).cumcount())


def _largest(rows: pd.DataFrame, first: NDArray[np.float64], second: NDArray[np.float64]) -> str:
    size = np.maximum(np.abs(first), np.abs(second))
    share = np.divide(np.abs(second - first), size, out=np.zeros_like(size), where=size > 0)
    # a number that became none, or the other way round, differs most
    share[np.isnan(first) != np.isnan(second)] = np.inf
    share = np.nan_to_num(share, nan=0.0, posinf=np.inf)
    if not share.any():
        return ""
    at = int(share.argmax())
    row = rows.iloc[at]
    where = "" if pd.isna(row["layer"]) else f" at layer {row['layer']}"
    return f"{row['model']!a}, {row['analysis']}.{row['statistic']}{where}: {first[at]:.8g}, now {second[at]:.8g}"


def warnings_of_models(entries: Sequence[Any], digests: Mapping[str, str]) -> list[str]:
    """A line for each model whose weights file is not the one that the manifest tells of; `digests`: by label."""
    then = {entry.get("label"): entry.get("sha256") for entry in entries if isinstance(entry, dict)}
    return [
        f"weights of {label!r} had SHA-256 {_told(then.get(label))[:12]}, have {digest[:12]}"
        for label, digest in digests.items()
        if then.get(label) != digest
    ]
