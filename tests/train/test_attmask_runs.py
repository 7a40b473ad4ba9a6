"""Runs of AttMask: resume, processes, what is left behind, what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from kamim_analysis.errors import UserError
from kamim_analysis.opening import load_encoder
from kamim_analysis.train.loop import begin, train
from kamim_analysis.train.objectives.attmask import AttMask
from kamim_analysis.train.recipe import Recipe

Tiny = Callable[..., Recipe]
OPTIONS = (
    "--objective.local_size 16 --objective.head_width 24 --objective.head_bottleneck 8 --objective.head_outputs 20 "
    "--objective.freeze_last_layer 1"
).split()


@pytest.fixture
def recipe(tiny_recipe: Tiny) -> Tiny:
    """A tiny run: four steps an epoch, two epochs."""
    return lambda *overrides: tiny_recipe(*OPTIONS, *overrides, name="attmask_photographs")


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / (run / "last").read_text().strip() / "model.safetensors")


def numbers(run: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_resuming_in_mid_epoch_gives_the_uninterrupted_runs_weights(recipe: Tiny, tmp_path: Path) -> None:
    whole = recipe("--encoder.drop_path", "0.3")
    train(whole, tmp_path / "whole")
    train(replace(whole, max_steps=6), tmp_path / "parts")
    torch.rand(5)  # whatever else the process drew
    train(whole, tmp_path / "parts")
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert first.keys() == second.keys()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    assert numbers(tmp_path / "whole", "teacher_diversity") == numbers(tmp_path / "parts", "teacher_diversity")


def test_prototypes_rest_in_the_first_epoch(recipe: Tiny, tmp_path: Path) -> None:
    """With the optimizer's decay too: what gets no gradient is not touched."""
    states = []
    for steps in ("1", "4", "5"):
        train(recipe("--max_steps", steps), tmp_path / "run")
        states.append({name: value for name, value in weights(tmp_path / "run").items() if "last_layer" in name})
    (first, fourth, fifth), names = states, [name for name in states[0] if name.startswith("head.")]
    assert len(names) == 2
    assert all(torch.equal(first[name], fourth[name]) for name in names)
    assert not any(torch.equal(fourth[name], fifth[name]) for name in names)


def test_losses_do_not_depend_on_micro_batches_and_processes(recipe: Tiny, tmp_path: Path) -> None:
    # stochastic depth is each process's own
    whole = recipe("--encoder.drop_path", "0.0", "--max_steps", "5")
    train(whole, tmp_path / "one")
    train(replace(whole, efficiency=replace(whole.efficiency, accumulate=4)), tmp_path / "four")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = ["kamim_analysis", "train", "--config", str(tmp_path / "one" / "config.yaml")]
    subprocess.run([*launch, *command, "--out", str(tmp_path / "two")], check=True, capture_output=True, timeout=300)
    for name in ("loss", "patch_loss", "teacher_entropy", "teacher_diversity", "masked_share"):
        for other in ("four", "two"):
            assert numbers(tmp_path / other, name) == pytest.approx(numbers(tmp_path / "one", name), rel=1e-4)
    for name, weight in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], weight, rtol=1e-2, atol=1e-4)


def test_what_a_run_leaves_opens_as_teacher_and_as_student(recipe: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe("--max_steps", "5", "--objective.momentum", "0.5"), run)
    state, images = weights(run), torch.randn(2, 3, 32, 32)
    for spec, prefix in ((str(run), "encoder."), (f"{run}@teacher", "encoder."), (f"{run}@student", "student.")):
        opened = load_encoder(spec).state_dict()
        assert all(torch.equal(weight, state[prefix + name]) for name, weight in opened.items())
    assert not torch.equal(state["encoder.pos_embed"], state["student.pos_embed"])
    made = json.loads((run / "encoder.json").read_text())
    plain = timm.create_model(
        made["architecture"], checkpoint_path=run / "encoder.safetensors", num_classes=0, **made["model_args"]
    ).eval()
    assert torch.equal(plain(images), load_encoder(str(run))(images))


def test_the_control_of_a_run_is_what_teacher_and_student_start_from(recipe: Tiny, tmp_path: Path) -> None:
    short = recipe("--max_steps", "1", "--optim.warmup_learning_rate", "1e-9", "--optim.warmup_epochs", "1")
    train(short, tmp_path / "run")
    state = weights(tmp_path / "run")
    for name, weight in load_encoder(f"random:{tmp_path / 'run'}").state_dict().items():
        for prefix in ("encoder.", "student."):
            torch.testing.assert_close(state[prefix + name], weight, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder.name", "swin_tiny"], "swin_tiny has no cls token; AttMask needs a ViT, as vit_small"),
        (["--objective.cls_temperature", "[0.04, 0]"], r"cls_temperature is \(0.04, 0.0\); it must be two numbers"),
        (["--objective.local_scale", "[0.5, 0.1]"], "two shares of the area, the lesser first"),
        (["--objective.momentum", "1.5"], "momentum is 1.5; it must be between 0 and 1"),
        (["--objective.head_outputs", "1"], "head_outputs is 1; it must be at least 2"),
        (["--objective.local_crops", "-1"], "local_crops is -1; it must be at least 0"),
        (["--objective.masking", "attmask_hi"], "did you mean 'attmask_hint'"),
    ],
)
def test_settings_that_cannot_be_are_refused(recipe: Tiny, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(*options)


def test_encoders_that_cannot_be_are_refused(recipe: Tiny) -> None:
    with pytest.raises(UserError, match=r"vit_relpos_small_patch16_224 crops of two sizes .* as vit_small"):
        begin(recipe("--encoder.name", "vit_relpos_small_patch16_224"))
    without_cls = begin(recipe("--encoder.name", "vit_base_patch16_siglip_224"))
    with pytest.raises(UserError, match="has no cls token; AttMask needs a ViT with one"):
        AttMask().build(without_cls)
