"""Time of pre-training for Table 4 of KAMIM: from the logs of runs, each against the SimMIM run of the same recipe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float
from numpy import ndarray

from kamim_analysis.errors import UserError
from kamim_analysis.plain_data import json_of, yaml_of

from ._facts import Number, facts_of_model

_LOG, _CONFIG, _ENCODER = "metrics.jsonl", "config.yaml", "encoder.json"


@dataclass(frozen=True)
class Run:
    """A finished run of `kamim train`."""

    directory: str
    recipe: Mapping[str, Any]
    facts: Mapping[str, str]
    seconds: Float[ndarray, " entries"]
    """Seconds for each picture, one for each entry of the log but the first, which has the start's cost in it."""


def read_run(directory: Path) -> Run | None:
    """A directory's run, or None where it holds none that ended. Raises UserError for files that are not a run's."""
    if not all((directory / name).is_file() for name in (_LOG, _CONFIG, _ENCODER)):
        return None
    try:
        recipe = yaml_of((directory / _CONFIG).read_text(encoding="utf-8"))
        encoder = json_of((directory / _ENCODER).read_text(encoding="utf-8"))
        entries = [json_of(line) for line in (directory / _LOG).read_text(encoding="utf-8").splitlines()]
        rates = [entry["images_per_second"] for entry in entries if "images_per_second" in entry]
        facts, _ = facts_of_model({**encoder, "label": directory.name, "training": recipe})
        seconds = 1 / np.array(rates[1:], np.float64)
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"run {str(directory)!r} cannot be read: {_CONFIG}, {_ENCODER} or {_LOG} is not what kamim train writes "
            f"({reason})"
        ) from error
    return Run(str(directory), recipe, facts, seconds)


def epoch_times(runs: Sequence[Run]) -> list[Number]:
    """Each run's time against that of the SimMIM run of otherwise the same recipe; none where there is no such run."""
    numbers = []
    for run in runs:
        alike = [other for other in runs if other.facts["method"] == "SimMIM" and _rest(other) == _rest(run)]
        if alike and run is alike[0]:
            numbers.append(_number(run, 1.0, math.nan, math.nan))
        elif alike and len(run.seconds) and len(alike[0].seconds):
            numbers.append(_number(run, *time_ratio(run.seconds, alike[0].seconds)))
    return numbers


def time_ratio(
    seconds: Float[ndarray, " entries"], of_simmim: Float[ndarray, " others"], *, resamples: int = 1000
) -> tuple[float, float, float]:
    """Mean time for a picture against SimMIM's, with its 95% percentile bootstrap interval over entries of both logs.

    Above 0; 1.06: an epoch takes 6% longer.

    >>> time_ratio(np.array([0.2, 0.2]), np.array([0.1, 0.1]))
    (2.0, 2.0, 2.0)
    """
    draw = np.random.default_rng(0)
    means = [draw.choice(times, (resamples, len(times))).mean(1) for times in (seconds, of_simmim)]
    low, high = np.quantile(means[0] / means[1], [0.025, 0.975])
    return float(seconds.mean() / of_simmim.mean()), float(low), float(high)


def _rest(run: Run) -> dict[str, Any]:
    """A recipe less what may differ between two runs whose times are compared."""
    return {key: value for key, value in run.recipe.items() if key not in ("objective", "seed", "monitor")}


def _number(run: Run, value: float, low: float, high: float) -> Number:
    return Number(
        model=Path(run.directory).name,
        results=run.directory,
        statistic="ratio_to_simmim",
        value=value,
        low=low,
        high=high,
        images=0,
        facts={**run.facts, "evaluation": "epoch_time"},
        by_label=False,
    )
