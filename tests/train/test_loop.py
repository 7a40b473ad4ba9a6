"""The loop: resume, accumulation, checkpoints, what is written."""

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kamim_analysis.errors import UserError
from kamim_analysis.opening import load_encoder
from kamim_analysis.train.loop import train
from kamim_analysis.train.recipe import Recipe

Tiny = Callable[..., Recipe]


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / (run / "last").read_text().strip()
    return load_file(folder / "model.safetensors")


def assert_same(left: Path, right: Path) -> None:
    first, second = weights(left), weights(right)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def test_resuming_in_mid_epoch_gives_the_uninterrupted_runs_weights(tiny_recipe: Tiny, tmp_path: Path) -> None:
    options = ["--efficiency.workers", "2", "--encoder.drop_path", "0.3"]
    train(tiny_recipe(*options), tmp_path / "whole")
    train(tiny_recipe(*options, "--max_steps", "3"), tmp_path / "parts")
    torch.rand(5)  # whatever else the process drew
    train(tiny_recipe(*options, "--efficiency.workers", "0"), tmp_path / "parts")
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_killed_run_goes_on_from_its_last_checkpoint(tiny_recipe: Tiny, tmp_path: Path) -> None:
    recipe = tiny_recipe("--checkpoint_every", "2", "--optim.epochs", "12")
    train(recipe, tmp_path / "whole")
    process = multiprocessing.get_context("spawn").Process(target=train, args=(recipe, tmp_path / "killed"))
    process.start()
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "last").is_file() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert (tmp_path / "killed" / "last").is_file()
    train(recipe, tmp_path / "killed")
    assert_same(tmp_path / "whole", tmp_path / "killed")
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 49))


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_accumulation_does_not_change_the_loss(tiny_recipe: Tiny, tmp_path: Path) -> None:
    train(tiny_recipe("--max_steps", "6"), tmp_path / "one")
    train(tiny_recipe("--max_steps", "6", "--efficiency.accumulate", "4"), tmp_path / "four")
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_two_processes_give_the_losses_of_one(tiny_recipe: Tiny, tmp_path: Path) -> None:
    recipe = tiny_recipe("--max_steps", "3")
    train(recipe, tmp_path / "one")
    config = str(tmp_path / "one" / "config.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = ["kamim_analysis", "train", "--config", config, "--out", str(tmp_path / "two")]
    subprocess.run([*launch, *command], check=True, capture_output=True, timeout=300)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_watching_does_not_change_the_training(tiny_recipe: Tiny, tmp_path: Path) -> None:
    seen = []

    def monitor(model: torch.nn.Module, step: int, _log: object) -> None:
        torch.rand(step)
        seen.append(step)

    options = ["--encoder.drop_path", "0.3", "--monitor.every_epochs", "1"]
    train(tiny_recipe(*options), tmp_path / "watched", monitor)
    train(tiny_recipe(*options), tmp_path / "alone")
    assert seen == [4, 8]
    assert_same(tmp_path / "watched", tmp_path / "alone")


def test_the_loss_falls(tiny_recipe: Tiny, tmp_path: Path) -> None:
    train(tiny_recipe("--optim.epochs", "30", "--optim.learning_rate", "0.003"), tmp_path / "run")
    curve = losses(tmp_path / "run")
    assert sum(curve[-10:]) < 0.8 * sum(curve[:10])


def test_what_a_run_leaves(tiny_recipe: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_recipe("--checkpoint_every", "1", "--keep_checkpoints", "3"), run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step-{n:08d}" for n in (6, 7, 8)]
    assert not list(run.rglob("*.partial"))
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "learning_rate", "images_per_second", "gradient_norm", "masked_l1"} <= line.keys()
    assert list((run / "tensorboard").iterdir())


def test_plain_timm_opens_the_encoder(tiny_recipe: Tiny, tmp_path: Path) -> None:
    import timm

    run = tmp_path / "run"
    train(tiny_recipe("--max_steps", "1"), run)
    made = json.loads((run / "encoder.json").read_text())
    encoder = timm.create_model(
        made["architecture"], checkpoint_path=run / "encoder.safetensors", num_classes=0, **made["model_args"]
    )
    ours = weights(run)
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, ours[f"encoder.{name}"])


def test_a_run_killed_before_its_encoder_was_written_gets_it(tiny_recipe: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_recipe("--max_steps", "1"), run)
    whole = (run / "encoder.safetensors").read_bytes()
    (run / "encoder.safetensors").unlink()
    train(tiny_recipe("--max_steps", "1"), run)
    assert (run / "encoder.safetensors").read_bytes() == whole


def test_the_control_of_a_run_is_its_own_initialisation(tiny_recipe: Tiny, tmp_path: Path) -> None:
    rates = ["--optim.warmup_learning_rate", "1e-9", "--optim.warmup_epochs", "1"]
    train(tiny_recipe("--max_steps", "1", *rates), tmp_path / "run")  # a first step of next to nothing
    control = load_encoder(f"random:{tmp_path / 'run'}")
    ours = weights(tmp_path / "run")
    for name, weight in control.state_dict().items():
        torch.testing.assert_close(weight, ours[f"encoder.{name}"], rtol=0, atol=1e-8)


def test_a_directory_of_another_run_is_refused(tiny_recipe: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_recipe("--max_steps", "1"), run)
    before = (run / "config.yaml").read_text()
    with pytest.raises(
        UserError, match=r"already holds another run \(objective.temperature: 0.25 -> 0.5; seed: 0 -> 1\)"
    ):
        train(tiny_recipe("--seed", "1", "--objective.temperature", "0.5"), run)
    assert (run / "config.yaml").read_text() == before


def test_a_refusal_leaves_nothing_behind(tiny_recipe: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fewer than one batch"):
        train(tiny_recipe("--optim.batch_size", "64"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_many_unreadable_pictures_end_the_run_with_an_error(
    tiny_recipe: Tiny, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "dark" / "0.png").write_text("no picture")
    with pytest.raises(UserError, match=r"1 of 32 images \(3.1%\) could not be read"):
        train(tiny_recipe(), tmp_path / "strict")
    assert (tmp_path / "strict" / "encoder.safetensors").is_file()
    train(tiny_recipe("--data.max_unreadable", "0.05"), tmp_path / "lenient")


def test_a_half_written_checkpoint_is_not_used(tiny_recipe: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_recipe("--max_steps", "3"), run)
    shutil.copytree(run / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000005.partial")
    train(tiny_recipe(), run)
    train(tiny_recipe(), tmp_path / "whole")
    assert_same(run, tmp_path / "whole")


def test_code_in_a_run_directory_is_never_executed(tiny_recipe: Tiny, tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-00000003"
    train(tiny_recipe("--max_steps", "3"), run)

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"optimizer": Payload()}, folder / "state.pt")
    train(tiny_recipe("--max_steps", "4"), run)  # beside what is read
    for name in ("model.safetensors", "optimizer.safetensors", "checkpoint.json"):
        shutil.copytree(run, tmp_path / name)
        torch.save(Payload(), tmp_path / name / "checkpoints" / "step-00000004" / name)
        train(tiny_recipe("--max_steps", "4"), tmp_path / name)
    (folder / "checkpoint.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    with pytest.raises(UserError, match="was written by an earlier version"):
        train(tiny_recipe("--max_steps", "4"), run)
    assert not (tmp_path / "executed").exists()
