"""`temperature: auto`: the temperature that gives weights of a wanted size on the data at hand."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from kamim_analysis import processes
from kamim_analysis.density import temperature_for
from kamim_analysis.errors import UserError

from . import run_directory
from .objectives._masked import Weighted
from .recipe import Recipe
from .samples import TrainingSamples, first_samples
from .settings import load_recipe
from .start import Start
from .views import Augmentation

log = logging.getLogger(__name__)

#: pictures that are looked at: at w_ps 8 and 192 px that makes 147,456 weights
PICTURES = 256
QUANTILE = 0.95


def with_temperature(recipe: Recipe, out: Path, start: Start) -> Recipe:
    """The recipe itself, or where its temperature is `auto`, with the one of the run in `out`, or one found now.

    Raises UserError where no temperature gives the weights that are asked for.
    """
    objective = recipe.objective
    if not isinstance(objective, Weighted) or objective.temperature != "auto":
        return recipe
    found = _recorded(out) or objective.found_temperature
    if found is None:
        found = find_temperature(recipe, start)
        if processes.is_first():
            log.info(
                "temperature auto: %.4g, at which the 95th percentile of the weights of %d training pictures is %g",
                found, min(PICTURES, len(start.pictures)), objective.target_p95_weight,
            )  # fmt: skip
    return replace(recipe, objective=replace(objective, found_temperature=found))


def _recorded(out: Path) -> float | None:
    """What an earlier start of the run found."""
    config = out / run_directory.CONFIG
    objective = load_recipe(config).objective if config.is_file() else None
    return objective.found_temperature if isinstance(objective, Weighted) else None


def find_temperature(recipe: Recipe, start: Start) -> float:
    """The temperature for the first pictures that the run will see, cropped as it will see them.

    They are the first 256 of the first epoch's order, or all, each with one weight for each weight patch. Draws nothing
    from the global random state.
    """
    objective = recipe.objective
    assert isinstance(objective, Weighted)
    view = objective.view(Augmentation.of(recipe.data), start.encoder)
    samples = TrainingSamples(start.pictures, view, recipe.seed)
    first = first_samples(start.pictures, PICTURES, recipe.seed)
    # one after the other: their densities are small, the pictures themselves need not be kept
    found = [samples.batch([at]).get("density") for at in first]
    densities = [density for density in found if density is not None]
    if not densities:
        raise UserError(
            f"objective.temperature is auto, but {type(objective).__name__} weights no loss by keypoints here; set a "
            "number, or objective.keypoint_weights true"
        )
    return temperature_for(torch.cat(densities), QUANTILE, objective.target_p95_weight)
