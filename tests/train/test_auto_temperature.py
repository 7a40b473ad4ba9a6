"""`temperature: auto` against a bisection on the weights themselves, and how a run records it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import bisect

from kamim_analysis.density import density_weights, temperature_for
from kamim_analysis.errors import UserError
from kamim_analysis.train.auto_temperature import find_temperature, with_temperature
from kamim_analysis.train.loop import begin, train
from kamim_analysis.train.objectives.kamim import KAMIM
from kamim_analysis.train.objectives.simmim import SimMIM
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.samples import TrainingSamples, first_samples
from kamim_analysis.train.settings import load_recipe
from kamim_analysis.train.views import Augmentation

Recipes = Callable[..., Recipe]
AUTO = ("--objective.temperature", "auto")


def percentile_of_weights(density: torch.Tensor, temperature: float, share: float) -> float:
    """Of the weights by equation 2, one picture at a time, in float64: the value that this share do not exceed."""
    weights = []
    for picture in density.reshape(-1, *density.shape[-2:]).double():
        exponentials = [math.exp(float(value) / temperature) for value in picture.flatten()]
        weights += [value / min(exponentials) for value in exponentials]
    return sorted(weights)[math.ceil(share * len(weights)) - 1]


@pytest.mark.parametrize("shape", [(3, 6, 5), (2, 2, 4, 7), (8, 8)])
@pytest.mark.parametrize(("share", "target"), [(0.95, 10.0), (0.5, 1.5), (0.99, 100.0)])
def test_temperature_by_bisection_on_the_weights(shape: tuple[int, ...], share: float, target: float) -> None:
    density = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    expected = bisect(lambda t: percentile_of_weights(density, t, share) - target, 0.02, 50, xtol=1e-12)
    np.testing.assert_allclose(temperature_for(density, share, target), expected, rtol=1e-6)


def test_a_picture_with_a_tenth_of_its_patches_at_full_density() -> None:
    density = torch.zeros(1, 10, 10)
    density[0, 0] = 1
    np.testing.assert_allclose(temperature_for(density, 0.95, 10.0), 1 / math.log(10), rtol=1e-12)
    with pytest.raises(UserError, match="the density of 90% of the patches is the least of their picture"):
        temperature_for(density, 0.9, 10.0)


def test_the_first_epoch_s_weights_reach_the_target(tiny_recipe: Recipes) -> None:
    # a density without the many ties of a map, so that the percentile is that one and no other
    recipe = tiny_recipe(*AUTO, "--objective.target_p95_weight", "7", "--objective.detector", "Variance")
    start = begin(recipe)
    found = find_temperature(recipe, start)
    view = recipe.objective.view(Augmentation.of(recipe.data), start.encoder)
    samples = TrainingSamples(start.pictures, view, recipe.seed)
    density = torch.stack([samples[0, index][0]["density"] for index in range(32)])
    np.testing.assert_allclose(percentile_of_weights(density, found, 0.95), 7, rtol=1e-5)
    weights = density_weights(density, found)
    assert float((weights <= 7 * (1 + 1e-5)).float().mean()) >= 0.95


def test_the_sample_is_what_the_run_sees_first(tiny_recipe: Recipes) -> None:
    pictures = begin(tiny_recipe()).pictures
    first = first_samples(pictures, 10, seed=3)
    assert first == [(0, index) for index in np.random.default_rng([3, 0]).permutation(32)[:10]]
    assert sorted(first_samples(pictures, 1000, seed=3)) == [(0, index) for index in range(32)]


def test_a_run_records_its_temperature_and_resumes_with_it(tiny_recipe: Recipes, tmp_path: Path) -> None:
    automatic = tiny_recipe(*AUTO, "--max_steps", "2")
    train(automatic, tmp_path / "run")
    recorded = load_recipe(tmp_path / "run" / "config.yaml").objective
    assert isinstance(recorded, KAMIM)
    assert recorded.temperature == "auto"
    assert recorded.found_temperature == find_temperature(automatic, begin(automatic))

    config = tmp_path / "run" / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace(f"found_temperature: {recorded.found_temperature}", "found_temperature: 0.123"))
    assert config.read_text() != text
    trained = train(replace(automatic, max_steps=None), tmp_path / "run")
    assert trained.objective.temperature == 0.123  # what the run recorded, whatever the data would give now
    assert trained.complete
    description = json.loads((tmp_path / "run" / "encoder.json").read_text())
    assert description["training"]["objective"]["init_args"]["found_temperature"] == 0.123


def test_a_run_is_the_one_with_the_same_number_and_goes_on_bit_for_bit(tiny_recipe: Recipes, tmp_path: Path) -> None:
    automatic = tiny_recipe(*AUTO)
    found = find_temperature(automatic, begin(automatic))
    for name, recipes in {
        "auto": [automatic],
        "killed": [replace(automatic, max_steps=3), automatic],
        "number": [tiny_recipe("--objective.temperature", repr(found))],
    }.items():
        for recipe in recipes:
            train(recipe, tmp_path / name)
    losses = {
        name: [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("auto", "killed", "number")
    }
    assert losses["auto"] == losses["killed"] == losses["number"]
    assert len(losses["auto"]) == 8


def test_another_target_is_another_run(tiny_recipe: Recipes, tmp_path: Path) -> None:
    train(tiny_recipe(*AUTO, "--max_steps", "1"), tmp_path / "run")
    with pytest.raises(UserError, match=r"already holds another run \(objective.target_p95_weight: 10.0 -> 20.0\)"):
        train(tiny_recipe(*AUTO, "--objective.target_p95_weight", "20"), tmp_path / "run")


def test_a_density_without_differences_is_refused_and_leaves_nothing(tiny_recipe: Recipes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set a temperature, or choose a detector or map style that marks more pixels"):
        train(tiny_recipe(*AUTO, "--objective.detector", "Uniform"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_recipes_are_left_alone(tiny_recipe: Recipes, tmp_path: Path) -> None:
    for recipe in (tiny_recipe(), tiny_recipe(name="simmim_photographs")):
        assert with_temperature(recipe, tmp_path, begin(recipe)) is recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*AUTO, "--objective.target_p95_weight", "1"), "objective.target_p95_weight is 1.0; it must be above 1"),
        ((*AUTO, "--objective.target_p95_weight", ".inf"), "objective.target_p95_weight is inf"),
        ((*AUTO, "--objective.found_temperature", "0"), "found_temperature is 0.0; it must be greater than 0"),
        (("--objective.found_temperature", "0.1"), "found_temperature belongs to temperature auto, so set it to null"),
        (("--objective.temperature", "0"), "objective.temperature is 0.0; it must be greater than 0"),
        (("--objective.temperature", "hot"), "Expected a typing.Literal.'auto'"),
    ],
)
def test_settings_that_cannot_be(tiny_recipe: Recipes, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny_recipe(*overrides)
    assert "\n" not in str(caught.value)


def test_a_temperature_that_is_not_found_yet_is_none(build: Any) -> None:
    with pytest.raises(ValueError, match="temperature auto is not found yet"):
        build(KAMIM(temperature="auto", mask_unit=16))


@pytest.mark.parametrize("temperature", [0.01, 0.25])
def test_kamim_with_the_uniform_control_is_simmim_bit_for_bit(
    tiny_recipe: Recipes, tmp_path: Path, temperature: float
) -> None:
    uniform = tiny_recipe("--objective.detector", "Uniform", "--objective.temperature", str(temperature))
    simmim = replace(uniform, objective=SimMIM(mask_unit=16))
    losses = {}
    for name, recipe in {"uniform": uniform, "simmim": simmim}.items():
        trained = train(recipe, tmp_path / name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines], trained.objective.model.state_dict()
    assert losses["uniform"][0] == losses["simmim"][0]
    for name, weight in losses["uniform"][1].items():
        assert torch.equal(weight, losses["simmim"][1][name]), name


def test_random_points_are_the_same_for_a_sample_and_change_neither_crop_nor_mask(tiny_recipe: Recipes) -> None:
    def samples(detector: str) -> list[dict[str, torch.Tensor]]:
        recipe = tiny_recipe("--objective.detector", detector)
        start = begin(recipe)
        view = recipe.objective.view(Augmentation.of(recipe.data), start.encoder)
        found = TrainingSamples(start.pictures, view, recipe.seed)
        return [found[at][0] for at in ((0, 3), (0, 4), (1, 3))]

    first, again, fast = samples("Random"), samples("Random"), samples("FAST")
    for one, same, other in zip(first, again, fast, strict=True):
        assert one.keys() == same.keys() == other.keys()
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert all(torch.equal(one[name], other[name]) for name in one if name != "density")
    assert not torch.equal(first[0]["density"], first[1]["density"])
    assert not torch.equal(first[0]["density"], first[2]["density"])
