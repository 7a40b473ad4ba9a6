"""What detectors cost, and how large the weights are that their densities make."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from .density import density_weights, temperature_for
from .errors import UserError
from .keypoint_maps import find_detector
from .keypoints._detector import Detector, KeypointDetector
from .keypoints._drawing import Style
from .runtime import one_thread

#: the share of weights below the percentile that stands for the large ones
QUANTILE = 0.95


@dataclass(frozen=True)
class Choice:
    """A detector, and how its keypoints are marked where it has any."""

    name: str
    detector: Detector
    style: Style

    @property
    def has_style(self) -> bool:
        """Whether the style makes a difference."""
        return isinstance(self.detector, KeypointDetector)


def choices(names: Iterable[str], styles: Sequence[Style]) -> list[Choice]:
    """Every detector in every style that makes a difference. Raises UserError for an unknown detector."""
    found = [Choice(name, find_detector(name), style) for name in names for style in styles]
    return [choice for choice in found if choice.has_style or choice.style == styles[0]]


def weight_statistics(weights: Float[Tensor, "b gy gx"]) -> dict[str, float]:
    """Mean, median, 95th percentile and maximum of weights, and the share that are exactly 1, the least there is."""
    values = weights.double().numpy()
    median, p95 = (float(np.quantile(values, share, method="inverted_cdf")) for share in (0.5, QUANTILE))
    return {
        "mean": float(values.mean()),
        "median": median,
        "p95": p95,
        "max": float(values.max()),
        "share_at_1": float((values == 1).mean()),
    }


def survey(
    crops: Sequence[UInt8[ndarray, "y x 3"]],
    choice: Choice,
    *,
    weight_patches: Iterable[int],
    temperatures: Sequence[float],
    target_p95: float,
) -> Iterator[dict[str, Any]]:
    """A row of numbers for each size of weight patches and each temperature.

    `milliseconds` is the median over the crops of the processor time to detect and to mark, in one thread: what other
    programs take does not count, nor what decoding and cropping take. `temperature_for_p95` is what `temperature: auto`
    finds for these crops: not a number where there is none.
    """
    for weight_patch in weight_patches:
        density, milliseconds = _timed_density(crops, choice, weight_patch)
        try:
            automatic = temperature_for(density, QUANTILE, target_p95)
        except UserError:
            automatic = float("nan")
        for temperature in temperatures:
            yield {
                "detector": choice.name,
                "style": choice.style if choice.has_style else "",
                "milliseconds": milliseconds,
                "weight_patch": weight_patch,
                "temperature": temperature,
                **weight_statistics(density_weights(density, temperature)),
                "temperature_for_p95": automatic,
            }


def _timed_density(
    crops: Sequence[UInt8[ndarray, "y x 3"]], choice: Choice, weight_patch: int
) -> tuple[Float[Tensor, "b gy gx"], float]:
    """Densities, and the median processor time of one in milliseconds."""
    densities, seconds = [], []
    with one_thread():
        choice.detector.density(crops[0], choice.style, weight_patch)  # OpenCV's object is made at the first call
        for crop in crops:
            since = time.process_time()
            densities.append(choice.detector.density(crop, choice.style, weight_patch))
            seconds.append(time.process_time() - since)
    return torch.from_numpy(np.stack(densities)), 1000 * float(np.median(seconds))
