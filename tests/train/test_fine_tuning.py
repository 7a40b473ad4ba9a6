"""Fine-tuning: rates that fall with depth, stochastic depth, and an encoder that opens as any other."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.layers import DropPath

from kamim_analysis import encoders
from kamim_analysis.errors import UserError
from kamim_analysis.opening import load_encoder
from kamim_analysis.results import Results
from kamim_analysis.train.evaluated import train_and_judge
from kamim_analysis.train.layer_rates import layer_decay_scales, set_drop_path
from kamim_analysis.train.loop import begin, train
from kamim_analysis.train.objectives.fine_tuning import FineTuning
from kamim_analysis.train.progress import Progress
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.schedule import Schedule, build_optimizer
from kamim_analysis.train.settings import load_recipe, recipe_path

Make = Callable[..., Recipe]
PLAIN = "--objective.augmentation none --objective.mixing none".split()


@pytest.fixture
def tune(classify: Make) -> Make:
    def recipe(*overrides: str) -> Recipe:
        return classify(*overrides, name="fine_tuning")

    return recipe


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / (run / "last").read_text().strip() / "model.safetensors")


def small(architecture: str, **options: Any) -> Any:
    """Three blocks, or a Swin's two stages of two."""
    sizes: dict[str, Any] = {"img_size": 64, "embed_dim": 16, "depth": 3, "num_heads": 2}
    if architecture.startswith("swin"):
        sizes = {"img_size": 64, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    return encoders.build(architecture, sizes | options)


def test_the_papers_recipes_hold_the_papers_settings() -> None:
    for name in ("fine_tuning", "linear_probe"):
        recipe = load_recipe(recipe_path(name))
        optim, objective = recipe.optim, recipe.objective
        assert (optim.batch_size, optim.epochs, optim.warmup_epochs, optim.learning_rate) == (2048, 100, 10, 5e-3)
        assert (optim.weight_decay, optim.betas, optim.clip_norm) == (0.05, (0.9, 0.999), float("inf"))
        assert (objective.pooling, objective.augmentation, objective.mixing) == ("mean", "paper", "both")
        assert (objective.erasing, objective.erasing_scale, objective.erasing_ratio) == (0.5, (0.02, 0.33), (0.3, 3.3))
        assert objective.label_smoothing == recipe.encoder.drop_path == 0
    assert recipe.objective.norm == "none"
    assert load_recipe(recipe_path("fine_tuning")).objective == FineTuning(layer="last")


@pytest.mark.parametrize("decay", [0.65, 1.0])
def test_the_rate_of_a_layer_is_the_decay_to_the_power_of_its_depth(tune: Make, decay: float) -> None:
    recipe = tune("--objective.layer_decay", str(decay), "--optim.decay_biases_and_norms", "false")
    objective = recipe.objective.build(begin(recipe))
    optimizer = build_optimizer(objective, recipe.optim, objective.rate_scales)
    Schedule(optimizer, recipe.optim, steps_per_epoch=10).set(Progress(12, 10, recipe.optim.epochs))
    (peak,) = {group["lr"] for group in build_scheduled(recipe, 12)}
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    decayed = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(peak)
    for name, weight in objective.named_parameters():
        parts = name.split(".")
        power = {"blocks": 3 - int(parts[3]) if parts[2] == "blocks" else 0, "norm": 0}.get(parts[2], 4)
        power = 0 if parts[1] == "head" else power
        assert rates[id(weight)] == pytest.approx(peak * decay**power), name
        assert decayed[id(weight)] == (0.05 if weight.ndim > 1 else 0), name


def build_scheduled(recipe: Recipe, step: int) -> list[dict[str, Any]]:
    """The groups of a model without scales, at a step."""
    optimizer = build_optimizer(torch.nn.Linear(1, 1), recipe.optim)
    Schedule(optimizer, recipe.optim, steps_per_epoch=10).set(Progress(step, 10, recipe.optim.epochs))
    return optimizer.param_groups


@pytest.mark.parametrize(
    "architecture", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"]
)
def test_layer_decay_by_family(architecture: str) -> None:
    encoder = small(architecture)
    scales = layer_decay_scales(encoder, 0.5)
    blocks = encoders.anatomy(encoder).blocks
    assert scales.keys() == dict(encoder.named_parameters()).keys()
    for block in blocks:
        inside = {scale for name, scale in scales.items() if name.startswith(f"{block.path}.")}
        assert inside == {0.5 ** (len(blocks) + 1 - block.layer)}
    assert scales["patch_embed.proj.weight"] == 0.5 ** (len(blocks) + 1)
    assert scales.get("norm.weight", 1) == 1


@pytest.mark.parametrize(
    "architecture", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"]
)
@pytest.mark.parametrize("built_with", [0.0, 0.5])
def test_stochastic_depth_is_timms(architecture: str, built_with: float) -> None:
    options = {"embed_dim": 24, "patch_size": 16} if "eva" in architecture else {}
    ours, theirs = (
        small(architecture, drop_path_rate=built_with, **options),
        small(architecture, drop_path_rate=0.3, **options),
    )
    set_drop_path(ours, 0.3)
    chances = [
        {path: module.drop_prob for path, module in model.named_modules() if isinstance(module, DropPath)}
        for model in (ours, theirs)
    ]
    assert len(chances[1]) > 3
    assert chances[0] == pytest.approx(chances[1])
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    set_drop_path(ours, 0.0)
    assert not [module for module in ours.modules() if isinstance(module, DropPath)]


@pytest.mark.parametrize(("layer", "norm"), [("last", "final"), ("last", "none"), ("2", "trained")])
def test_every_weight_that_matters_learns_and_no_other(tune: Make, layer: str, norm: str) -> None:
    recipe = tune("--objective.layer", layer, "--objective.norm", norm, "--encoder.drop_path", "0.9", *PLAIN)
    objective = recipe.objective.build(begin(recipe)).train()
    batch = {"image": torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8), "label": torch.tensor([0, 1, 0, 1])}
    objective(batch).total.backward()
    without = {name for name, weight in objective.named_parameters() if weight.grad is None}
    assert without == {name for name, weight in objective.named_parameters() if not weight.requires_grad}
    beyond = "model.encoder.blocks.2." if layer == "2" else "none"
    expected = {name for name, _ in objective.named_parameters() if name.startswith(beyond)}
    expected |= {f"model.encoder.norm.{part}" for part in ("weight", "bias") if norm != "final"}
    assert without == expected


def test_resuming_gives_the_uninterrupted_run(tune: Make, tmp_path: Path) -> None:
    options = "--encoder.drop_path 0.3 --objective.layer_decay 0.7 --efficiency.accumulate 2".split()
    train(tune(*options), tmp_path / "whole")
    train(tune(*options, "--max_steps", "4"), tmp_path / "parts")
    torch.rand(3)
    train(tune(*options), tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(values, parts[name]) for name, values in whole.items())


def test_what_it_learned_is_what_the_run_opens_as(tune: Make, model: Path, tmp_path: Path) -> None:
    """The accuracy again, from the encoder as anyone opens it and the head; light and dark are easily told apart."""
    run = tmp_path / "run"
    recipe = tune(*PLAIN, "--optim.epochs", "20", "--optim.learning_rate", "0.003")
    train_and_judge(recipe, run)
    found = Results.open(run / "results")
    (row,) = found.metrics.itertuples()
    assert (row.analysis, row.layer, row.statistic, row.value) == ("fine_tuning", 3, "top1", 1.0)
    assert "layer_decay=1.0; drop_path=0.0" in row.protocol
    (entry,) = found.manifest["models"]
    assert entry["training"]["objective"]["class_path"] == "KAMIM"
    assert entry["evaluation_recipe"]["objective"]["class_path"] == "FineTuning"

    made = json.loads((run / "encoder.json").read_text())
    assert made["training"]["objective"]["class_path"] == "FineTuning"
    assert made["pretraining"]["objective"]["class_path"] == "KAMIM"
    images = torch.randn(3, 3, 32, 32)
    before = load_encoder(str(model))(images)
    for opened in (load_encoder(str(run)), load_encoder(str(run / "encoder.safetensors"))):
        assert not torch.allclose(opened(images), before, atol=1e-3)
        for name, values in opened.state_dict().items():
            assert torch.equal(values, weights(run)[f"encoder.{name}"])


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if "loss" in line]


def test_two_processes_give_the_losses_of_one(tune: Make, tmp_path: Path) -> None:
    recipe = tune(*PLAIN, "--objective.norm", "none", "--optim.epochs", "1")  # the final norm learns nothing
    train(recipe, tmp_path / "one")
    config = str(tmp_path / "one" / "config.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = ["kamim_analysis", "train", "--config", config, "--out", str(tmp_path / "two")]
    done = subprocess.run([*launch, *command], check=True, capture_output=True, text=True, timeout=300)
    assert done.stdout.count("fine tuning of layer 3") == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert Results.open(tmp_path / "two" / "results").metrics.value[0] <= 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--objective.layer_decay", "1.5"], "objective.layer_decay is 1.5; it must be between 0 and 1"),
        (["--encoder.drop_path", "1.5"], "encoder.drop_path is 1.5; it must be at least 0 and less than 1"),
    ],
)
def test_a_mistaken_setting_is_one_line(tune: Make, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tune(*overrides)
