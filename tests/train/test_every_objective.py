"""What holds of every pretraining objective that is found in train/objectives, each with its small recipe made tiny."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
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
from kamim_analysis.train.settings import as_yaml, parse_recipe, recipe_path
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
#: three steps that are proportional to the gradients, not to their signs as AdamW's are; and an encoder without the
#: dropout that timm's relative positions come with
GENTLE = (
    "--max_steps 3 --monitor.every_epochs 0 --encoder.name vit_tiny --optim.learning_rate 1 "
    "--optim.warmup_learning_rate 1 --optim.min_learning_rate 1 --optim.weight_decay 0 --optim.weight_decay_end null"
).split()
#: trains each recipe file in the directory named after it, in every process of one launch; several also in two parts
LAUNCHED = """
import sys
from dataclasses import replace
from pathlib import Path
from kamim_analysis import processes
from kamim_analysis.train import loop
from kamim_analysis.train.settings import load_recipe

def gently(*arguments):
    optimizer = build_optimizer(*arguments)
    for group in optimizer.param_groups:
        group["eps"] = 1.0
    return optimizer

build_optimizer, loop.build_optimizer = loop.build_optimizer, gently
for config in map(Path, sys.argv[1:]):
    recipe = load_recipe(config)
    loop.train(recipe, config.with_suffix(""))
    for steps in (1, recipe.max_steps) if processes.count() > 1 else ():
        loop.train(replace(recipe, max_steps=steps), config.with_name(config.stem + "-parts"))
"""


def is_pretraining(name: str) -> bool:
    """Whether the plug-in's own class, named as its file, learns without labels."""
    values = vars(plugins.load(PACKAGE, name, "objective")).items()
    (own,) = (value for key, value in values if key.lower() == name.replace("_", ""))
    return not issubclass(own, Classification)


#: by one process, and by two with whole weights each and with weights in parts
HOWS = ("one", "ddp", "fsdp")
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
def launched(recipe_of: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every objective by one process and by two in both ways, in two launches: directories OBJECTIVE-HOW, and
    OBJECTIVE-HOW-parts of those by two that were stopped after a step."""
    folder = tmp_path_factory.mktemp("launched")
    configs: dict[str, list[str]] = {}
    for name, how in product(NAMES, HOWS):
        config = folder / f"{name}-{how}.yaml"
        recipe = recipe_of(name, *GENTLE, "--efficiency.parallel", "fsdp" if how == "fsdp" else "ddp")
        config.write_text(as_yaml(recipe), encoding="utf-8")
        configs.setdefault("one" if how == "one" else "two", []).append(str(config))
    script = folder / "launched.py"
    script.write_text(LAUNCHED, encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for launcher, chosen in (([], configs["one"]), (torchrun, configs["two"])):
        command = [sys.executable, *launcher, str(script), *chosen]
        done = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
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


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_log_the_numbers_of_one(name: str, how: str, launched: Path) -> None:
    one, two = (lines(launched / f"{name}-{which}") for which in ("one", how))
    assert len(one) == 3
    for expected, found in zip(one, two, strict=True):
        del expected["images_per_second"], found["images_per_second"]
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_leave_the_weights_of_one(
    name: str, how: str, launched: Path, recipe_of: Callable[..., Recipe]
) -> None:
    """Teachers, centres and all: within 1e-5 of how far all have gone, and 1e-4 of how far each has."""
    recipe = recipe_of(name, *GENTLE)
    initial = recipe.objective.build(begin(recipe)).model.state_dict()
    one, two = (weights(launched / f"{name}-{which}") for which in ("one", how))
    assert one.keys() == two.keys() == initial.keys()
    gone = {key: float((weight.double() - initial[key]).norm()) for key, weight in one.items()}
    apart = {key: float((weight.double() - two[key]).norm()) for key, weight in one.items()}
    assert math.hypot(*apart.values()) <= 1e-5 * math.hypot(*gone.values())
    for key, weight in one.items():
        assert apart[key] <= 1e-4 * gone[key] + 2e-7 * float(weight.norm()), key  # and float32's own rounding
    assert sum(way > 0 for way in gone.values()) > 0.6 * len(gone)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_resume_in_mid_epoch_bit_for_bit(name: str, how: str, launched: Path) -> None:
    whole, parts = launched / f"{name}-{how}", launched / f"{name}-{how}-parts"
    assert losses(parts) == losses(whole)
    for key, weight in weights(whole).items():
        assert torch.equal(weight, weights(parts)[key]), key


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
