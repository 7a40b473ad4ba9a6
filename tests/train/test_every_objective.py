"""What holds of every pretraining objective that is found in train/objectives, each with its small recipe made tiny."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from kamim_analysis import plugins
from kamim_analysis.commands.train import train_and_monitor
from kamim_analysis.opening import load_encoder
from kamim_analysis.train.loop import begin, train
from kamim_analysis.train.objectives._classification import Classification
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.samples import Order, TrainingSamples, load_samples
from kamim_analysis.train.settings import parse_recipe, recipe_path
from kamim_analysis.train.views import Augmentation

PACKAGE = "kamim_analysis.train.objectives"
#: an epoch is four steps of eight pictures; stochastic depth draws anew for every micro-batch
TINY = (
    "--encoder.image_size 32 --encoder.patch_size 8 --encoder.drop_path 0 --encoder.width 16 --encoder.depth 2 "
    "--encoder.heads 2 --optim.batch_size 8 --optim.epochs 2 --optim.warmup_epochs 0.5 --efficiency.workers 0 "
    "--log_every 1 --monitor.every_epochs 2 --monitor.images 24"
).split()
#: what fits 32 px where a recipe's own sizes do not, or saves time; an objective that is not named goes without
SIZES = {
    "attmask": "--objective.local_crops 1 --objective.local_size 16 --objective.head_width 16 "
    "--objective.head_bottleneck 8 --objective.head_outputs 32",
    "latent_mim": "--objective.visible 5 --objective.decoder_width 16 --objective.decoder_depth 1 "
    "--objective.decoder_heads 2 --objective.projector_width 32",
    "mae": "--objective.decoder_width 16 --objective.decoder_depth 1 --objective.decoder_heads 2",
}
#: settings without which micro-batches cannot add up: Latent MIM's similarity constraint squares a mean over images
ADDS_UP = {"latent_mim": "--objective.similarity_weight 0"}
#: trains each recipe file in the directory named after it, in every process of one launch
LAUNCHED = """
import sys
from pathlib import Path
from kamim_analysis.train.loop import train
from kamim_analysis.train.settings import load_recipe
for config in map(Path, sys.argv[1:]):
    train(load_recipe(config), config.with_suffix(""))
"""


def is_pretraining(name: str) -> bool:
    """Whether the plug-in's own class, named as its file, learns without labels."""
    values = vars(plugins.load(PACKAGE, name, "objective")).items()
    (own,) = (value for key, value in values if key.lower() == name.replace("_", ""))
    return not issubclass(own, Classification)


NAMES = [name for name in plugins.names(PACKAGE) if is_pretraining(name)]


class Runs(NamedTuple):
    """An objective's recipe with further overrides, and its run to the end, watched."""

    recipe: Callable[..., Recipe]
    run: Path


def name_of(runs: Runs) -> str:
    """The objective's."""
    return runs.run.parent.name.rstrip("0123456789")


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    """The tiny recipe of an objective on thirty-two pictures of two classes."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 96)):
        (folder / label).mkdir()
        for i in range(16):
            pixels = draw.integers(low, low + 160, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((48, 48)).save(folder / label / f"{i}.png")

    def recipe(name: str, *overrides: str) -> Recipe:
        config = ["--config", str(recipe_path(f"{name}_photographs")), "--data.source", str(folder)]
        return parse_recipe([*config, *TINY, *SIZES.get(name, "").split(), *overrides])

    return recipe


@pytest.fixture(scope="module", params=NAMES)
def runs(request: pytest.FixtureRequest, recipe_of: Callable[..., Recipe], tmp_path_factory: Any) -> Runs:
    def recipe(*overrides: str) -> Recipe:
        return recipe_of(request.param, *overrides)

    run = tmp_path_factory.mktemp(request.param) / "whole"
    train_and_monitor(recipe(), run)
    return Runs(recipe, run)


@pytest.fixture(scope="module")
def two_processes(recipe_of: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of every objective by two processes, all in one launch: directories by the objective's name."""
    from kamim_analysis.train.settings import as_yaml

    folder = tmp_path_factory.mktemp("two")
    configs = [folder / f"{name}.yaml" for name in NAMES]
    for name, config in zip(NAMES, configs, strict=True):
        config.write_text(as_yaml(recipe_of(name, "--max_steps", "3")), encoding="utf-8")
    (folder / "launched.py").write_text(LAUNCHED, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(folder / "launched.py"), *map(str, configs)], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / (run / "last").read_text().strip()
    return load_file(folder / "model.safetensors")


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run) if "loss" in line]


def test_there_is_an_objective() -> None:
    assert {"simmim", "kamim"} <= set(NAMES)
    assert "linear_probe" not in NAMES


def test_resuming_in_mid_epoch_gives_the_uninterrupted_runs_bits(runs: Runs, tmp_path: Path) -> None:
    for steps in ("3", "6", "8"):  # within an epoch, across its end, and to the end
        torch.rand(5)  # whatever else the process drew
        train(runs.recipe("--max_steps", steps), tmp_path / "parts")
    whole, parts = weights(runs.run), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, parts[name]), name
    assert losses(tmp_path / "parts") == losses(runs.run)


def test_accumulation_does_not_change_the_loss(runs: Runs, tmp_path: Path) -> None:
    whole, settings = runs.run, ["--max_steps", "6"]
    if name_of(runs) in ADDS_UP:
        settings += ADDS_UP[name_of(runs)].split()
        whole = tmp_path / "whole"
        train(runs.recipe(*settings), whole)
    train(runs.recipe(*settings, "--efficiency.accumulate", "4"), tmp_path / "four")
    assert losses(tmp_path / "four") == pytest.approx(losses(whole)[:6], rel=1e-5)


def test_two_processes_give_the_losses_of_one(runs: Runs, two_processes: Path) -> None:
    assert losses(two_processes / name_of(runs)) == pytest.approx(losses(runs.run)[:3], rel=1e-5)


@torch.no_grad()
def test_the_encoder_opens_with_plain_timm_and_as_a_model(runs: Runs) -> None:
    made = json.loads((runs.run / "encoder.json").read_text())
    path = runs.run / "encoder.safetensors"
    plain = timm.create_model(made["architecture"], checkpoint_path=path, num_classes=0, **made["model_args"])
    images, trained = torch.randn(2, 3, 32, 32), weights(runs.run)
    opened = load_encoder(str(runs.run))
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, trained[f"encoder.{name}"]), name
    assert torch.equal(plain.eval()(images), opened(images))


def test_the_control_of_a_run_is_its_initialisation(runs: Runs) -> None:
    recipe = runs.recipe()
    module = recipe.objective.build(begin(recipe))
    control = load_encoder(f"random:{runs.run}").state_dict()
    initial, trained = module.encoder.state_dict(), weights(runs.run)
    assert control.keys() == initial.keys()
    for name, weight in initial.items():
        assert torch.equal(weight, control[name]), name
    assert any(not torch.equal(weight, trained[f"encoder.{name}"]) for name, weight in initial.items())


def test_trained_weights_get_a_gradient_and_teachers_none(runs: Runs) -> None:
    recipe = runs.recipe()
    start = begin(recipe)
    module = recipe.objective.build(start)
    samples = TrainingSamples(
        start.pictures, recipe.objective.view(Augmentation.of(recipe.data), module.encoder), seed=0
    )
    batch, _failed = next(load_samples(samples, Order(length=32, batch_size=8, seed=0), workers=0, pin=False))
    loss = module(batch)
    assert loss.total.shape == ()
    assert not any(value.requires_grad for value in loss.parts.values())
    loss.total.backward()
    for name, weight in module.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name
    branches = [module.model.get_submodule(prefix[:-1]) for prefix in module.describe({}).get("branches", {}).values()]
    assert all(encoder in [module.encoder, *branches] for encoder in module.trained_encoders)
    for teacher in (branch for branch in branches if branch not in module.trained_encoders):
        assert not any(weight.requires_grad for weight in teacher.parameters())


def test_it_is_watched(runs: Runs) -> None:
    (watched,) = (line for line in lines(runs.run) if any(name.startswith("monitor/") for name in line))
    assert watched["step"] == 8
    assert 0 <= watched["monitor/knn/top1_k1/layer02"] <= 1
