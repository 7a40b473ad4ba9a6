"""Recipes from YAML and command line, and back."""

from pathlib import Path

import pytest

from kamim_analysis.errors import UserError
from kamim_analysis.keypoints.sift import SIFT
from kamim_analysis.train.objectives.kamim import KAMIM
from kamim_analysis.train.settings import as_yaml, differences, load_recipe, parse_recipe, recipe_names, recipe_path


def parse(*overrides: str, name: str = "kamim_photographs") -> object:
    return parse_recipe(["--config", str(recipe_path(name)), *overrides])


@pytest.mark.parametrize("name", recipe_names())
def test_a_complete_recipe_reloads_as_itself(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path(name))
    (tmp_path / "recipe.yaml").write_text(as_yaml(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_paper_recipes_hold_the_papers_settings() -> None:
    recipe = load_recipe(recipe_path("kamim_vit_b16_in1k"))
    assert recipe.objective == KAMIM()
    assert (recipe.objective.mask_unit, recipe.objective.mask_ratio) == (32, 0.6)
    assert (recipe.objective.weight_patch, recipe.objective.temperature) == (8, 0.25)
    optim = recipe.optim
    assert (optim.batch_size, optim.epochs, optim.warmup_epochs, optim.learning_rate) == (2048, 100, 10, 8e-4)
    assert (optim.weight_decay, optim.betas, optim.clip_norm) == (0.05, (0.9, 0.999), 1.0)
    assert (optim.min_learning_rate, optim.warmup_learning_rate) == (1e-5, 1e-6)
    assert optim.decay_biases_and_norms
    assert (recipe.data.crop_scale, recipe.data.vertical_flip) == ((0.67, 1.0), 0.5)


def test_the_two_methods_recipes_differ_in_the_objective_alone() -> None:
    for data in ("vit_b16_in1k", "photographs"):
        simmim, kamim = (load_recipe(recipe_path(f"{method}_{data}")) for method in ("simmim", "kamim"))
        assert all(line.startswith("objective") for line in differences(simmim, kamim))


def test_overrides_compose_with_earlier_ones() -> None:
    recipe = parse(
        "--objective.detector", "SIFT", "--objective.detector.sigma", "1.2", "--objective.temperature", "0.5"
    )
    assert recipe.objective.detector == SIFT(sigma=1.2)
    assert (recipe.objective.temperature, recipe.objective.mask_unit) == (0.5, 16)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("--objective", "Foo"), "unknown objective 'Foo'; there are: FineTuning, KAMIM, LinearProbe, SimMIM"),
        (("--objective.detector", "Foo"), "unknown detector 'Foo'; there are: FAST, ORB, SIFT"),
        (("--objective.heat", "1"), "Option 'heat' is not accepted"),
        (("--optim.rate", "1"), "unrecognized arguments: --optim.rate 1"),
        (("--optim.epochs", "many"), "optim.epochs.*Expected a int.*many"),
        (("--optim.epochs", "0"), "optim.epochs is 0; it must be greater than 0"),
        (("--objective.temperature", "-1"), "objective.temperature is -1.0"),
        (("--optim.warmup_epochs", "99"), "warmup_epochs 99.0 is not less than optim.epochs 4"),
        (("--encoder.image_size", "65"), "does not divide encoder.image_size 65"),
        (("--encoder.patch_size", "7"), "encoder.patch_size 7 does not divide encoder.image_size 64"),
        (("--encoder.name", "vit_tin"), "no architecture 'vit_tin'; did you mean 'vit_tiny'"),
        (("--efficiency.precision", "fp8"), "efficiency.precision"),
    ],
)
def test_a_mistake_is_one_line(override: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(*override)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_yaml_is_refused(tmp_path: Path) -> None:
    text = recipe_path("simmim_photographs").read_text() + "bogus: 1\n"
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match="bogus"):
        load_recipe(tmp_path / "recipe.yaml")


def test_differences_name_what_changes_results_and_nothing_else() -> None:
    changed = parse("--optim.epochs", "7", "--max_steps", "5", "--efficiency.workers", "9", "--monitor.images", "8")
    assert differences(parse(), changed) == ["optim.epochs: 4 -> 7"]
