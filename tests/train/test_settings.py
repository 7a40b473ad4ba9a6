"""Recipes from YAML and command line, and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kamim_analysis.errors import UserError
from kamim_analysis.keypoints.akaze import AKAZE
from kamim_analysis.keypoints.fast import FAST
from kamim_analysis.keypoints.sift import SIFT
from kamim_analysis.train.objectives.kamim import KAMIM
from kamim_analysis.train.recipe_files import About, read
from kamim_analysis.train.settings import as_yaml, differences, load_recipe, parse_recipe, recipe_names, recipe_path


def parse(*overrides: str, name: str = "kamim_photographs") -> Any:
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
        (("--objective", "Foo"), "unknown objective 'Foo'; there are: .*FineTuning, KAMIM, .*SimMIM"),
        (("--objective.detector", "Foo"), "unknown detector 'Foo'; there are: .*FAST, .*ORB, .*SIFT"),
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


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """A recipe file of the user's."""

    def file(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return file


Write = Callable[[str, str], Path]


def test_a_file_holds_what_differs_from_its_base(write: Write) -> None:
    path = write("own.yaml", "base: kamim_photographs\noptim: {epochs: 7}\nobjective: {init_args: {temperature: 0.5}}")
    assert load_recipe(path) == parse("--optim.epochs", "7", "--objective.temperature", "0.5")
    overridden = parse_recipe(["--config", str(path), "--optim.epochs", "9"])
    assert (overridden.optim.epochs, overridden.optim.batch_size) == (9, 32)


def test_bases_chain_and_lie_beside_the_file(write: Write) -> None:
    write("first.yaml", "base: simmim_photographs\nseed: 1\noptim: {epochs: 5}")
    write("second.yaml", "base: first.yaml\nseed: 2")
    recipe = load_recipe(write("third.yaml", "base: second.yaml\noptim: {batch_size: 8}"))
    assert (recipe.seed, recipe.optim.epochs, recipe.optim.batch_size, recipe.optim.warmup_epochs) == (2, 5, 8, 0.5)
    assert read(write("third.yaml", "base: second.yaml")).bases == ("second.yaml", "first.yaml", "simmim_photographs")


def test_another_objective_keeps_what_it_has_in_common(write: Write) -> None:
    """SimMIM's mask_unit; but not KAMIM's temperature under SimMIM, which has none."""
    kamim = load_recipe(write("kamim.yaml", "base: simmim_photographs\nobjective: {class_path: KAMIM}"))
    assert kamim.objective == KAMIM(mask_unit=16)
    back = load_recipe(write("simmim.yaml", "base: kamim_photographs\nobjective: SimMIM"))
    assert back == parse(name="simmim_photographs")
    # MAE's mask_ratio is its own, with another default
    mae = load_recipe(write("mae.yaml", "base: kamim_photographs\nobjective: {class_path: MAE}"))
    assert (mae.objective.mask_ratio, mae.objective.temperature) == (0.75, 0.25)


def test_another_detector_has_its_own_settings(write: Write) -> None:
    """With FAST's threshold, 99 of 255, AKAZE finds nothing."""
    own = "objective: {init_args: {detector: {class_path: FAST, init_args: {threshold: 99}}}}"
    write("fast.yaml", f"base: kamim_photographs\n{own}")
    assert FAST().threshold != AKAZE().threshold
    for base in ("kamim_photographs", "fast.yaml"):
        for text in ("AKAZE", "{class_path: AKAZE}"):
            path = write("akaze.yaml", f"base: {base}\nobjective: {{init_args: {{detector: {text}}}}}")
            assert load_recipe(path).objective.detector == AKAZE()
    for override in (("--objective.detector", "AKAZE"), ("--objective.detector=AKAZE",)):
        assert parse(*override).objective.detector == AKAZE()
        some = parse_recipe(["--config", str(write("fast.yaml", f"base: kamim_photographs\n{own}")), *override])
        assert some.objective.detector == AKAZE()
    assert parse("--objective.detector", "AKAZE", "--objective.detector.octaves", "2").objective.detector == AKAZE(
        octaves=2
    )
    more = "base: fast.yaml\nobjective: {init_args: {detector: {init_args: {nonmax_suppression: false}}}}"
    assert load_recipe(write("more.yaml", more)).objective.detector == FAST(threshold=99, nonmax_suppression=False)


def test_another_objective_may_be_chosen_beside_a_recipe() -> None:
    """As in a file: what both have from a common parent stays."""
    assert parse("--objective", "SimMIM") == parse(name="simmim_photographs")
    mae = parse("--objective", "MAE", "--objective.temperature", "0.5").objective
    assert (mae.mask_ratio, mae.temperature) == (0.75, 0.5)


def test_about_is_no_setting_and_numbers_are_not_inherited(write: Write) -> None:
    write(
        "one.yaml",
        "base: mae_photographs\nabout: {paper: P, cell: C, reported: {a: 1.5}, evaluate: {a: x}, gflop: 2.5, note: N}",
    )
    path = write("two.yaml", "base: one.yaml\nabout: {cell: D, evaluate: {b: y}}")
    assert read(path).about == About(paper="P", cell="D", evaluate={"a": "x", "b": "y"}, gflop=2.5)
    assert load_recipe(path) == parse(name="mae_photographs")
    assert "about" not in as_yaml(load_recipe(path))
    assert "base" not in as_yaml(load_recipe(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: kamim_photograph", r"'base': unknown recipe 'kamim_photograph'; did you mean 'kamim_photographs'"),
        ("base: none.yaml", r"cannot read recipe '.*none.yaml': No such file"),
        ("base: 3", "'base' is 3, neither a shipped recipe's name nor a file"),
        ("base: own.yaml", "leads back to a file that is based on it: 'own.yaml' -> 'own.yaml'"),
        ("base: loop.yaml", "'base' of '.*loop.yaml' leads back .*: 'own.yaml' -> 'loop.yaml' -> 'own.yaml'"),
        ("about: {papers: x}", "'about' has no 'papers'; there are: paper, cell, reported"),
        ("about: {cell: 3}", "'about.cell' is 3, not a str"),
        ("about: x", "'about' is 'x', not a mapping"),
        ("bogus: 1", "own.yaml': no setting 'bogus'; there are: objective, data"),
        ("optim: {epoch: 1}", "own.yaml': no setting 'optim.epoch'; did you mean 'epochs'"),
        ("base: mae_photographs\noptim: {epochs: x}", r"own.yaml' \(base: mae_photographs\): .*optim.epochs.*int"),
        ("- 1", "own.yaml' holds a list, not settings by name"),
        ("optim: {", "own.yaml' is no YAML: .*line 1"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_it(text: str, message: str, write: Write) -> None:
    write("loop.yaml", "base: own.yaml")
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(write("own.yaml", text))
    assert "\n" not in str(caught.value)


def test_differences_name_what_changes_results_and_nothing_else() -> None:
    changed = parse("--optim.epochs", "7", "--max_steps", "5", "--efficiency.workers", "9", "--monitor.images", "8")
    assert differences(parse(), changed) == ["optim.epochs: 4 -> 7"]
