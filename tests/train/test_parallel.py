"""Two processes: resumed, resharded, in half precision, judged; and what lies in parts."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kamim_analysis.opening import load_encoder
from kamim_analysis.results import METRICS
from kamim_analysis.train.evaluated import train_and_judge
from kamim_analysis.train.loop import train
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.settings import as_yaml, parse_recipe, recipe_path

#: the encoder is one without the dropout of timm's relative positions, whose draws are each process's own
PRETRAINING = (
    "--encoder.name vit_tiny --encoder.patch_size 8 --encoder.image_size 32 --encoder.width 16 --encoder.depth 2 "
    "--encoder.heads 2 --optim.batch_size 8 --optim.epochs 2 --efficiency.workers 0 --monitor.every_epochs 0 "
    "--log_every 1"
).split()
CLASSIFIER = (
    "--objective.layer last --objective.mixing none --optim.batch_size 8 --optim.epochs 2 --optim.warmup_epochs 0.5 "
    "--efficiency.workers 0 --monitor.every_epochs 1 --log_every 1 --efficiency.parallel fsdp"
).split()
# what lies in parts against what is whole, then RECIPE OUT RECIPE OUT ...
LAUNCHED = """
import sys
from pathlib import Path
import torch
from torch import nn
from kamim_analysis import processes
from kamim_analysis.commands.train import train_and_monitor
from kamim_analysis.train import dtensors
from kamim_analysis.train.ema import follow
from kamim_analysis.train.schedule import clip
from kamim_analysis.train.settings import load_recipe
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3), nn.Linear(3, 1, bias=False))  # one row: one process has none

def sharded():
    return fully_shard(made(), mesh=init_device_mesh("cpu", (2,)))

with processes.joined():
    for each in (False, True):
        alone, parted = made(), sharded()
        for whole, part in zip(alone.parameters(), parted.parameters()):
            whole.grad = torch.randn_like(whole)
            part.grad = dtensors.placed(whole.grad.clone(), part)  # which may share memory with it
            assert torch.equal(dtensors.whole(part.grad), whole.grad)
            assert dtensors.local([part])[0].numel() < whole.numel() or whole.numel() == 1 or len(whole) == 1
        totals = [clip(model.parameters(), 1.5, each=each) for model in (alone, parted)]
        torch.testing.assert_close(*totals)
        for whole, part in zip(alone.parameters(), parted.parameters()):
            torch.testing.assert_close(dtensors.whole(part.grad), whole.grad)
    teachers, students = (made(), sharded()), (made(), sharded())
    for part, whole in zip(students[1].parameters(), students[0].parameters()):
        whole.data += 1
        dtensors.local([part.detach()])[0].add_(1)
    for teacher, student in zip(teachers, students):
        follow(teacher, student, 0.9)
    for whole, part in zip(*(teacher.parameters() for teacher in teachers)):
        torch.testing.assert_close(dtensors.whole(part), whole)
    # within: processes that have left each other may not find together again
    for config, out in zip(map(Path, sys.argv[1::2]), map(Path, sys.argv[2::2])):
        train_and_monitor(load_recipe(config), out)
    print("came to the end")
"""
Make = Callable[..., Recipe]


class Runs(NamedTuple):
    """Recipes, and runs that two processes trained."""

    recipe: Make
    folder: Path
    printed: str


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A recipe on thirty-two pictures of two classes: an epoch of four steps of eight. `unreadable`: some are not."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 96)):
        (folder / "pictures" / label).mkdir(parents=True)
        for i in range(16):
            pixels = draw.integers(low, low + 160, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((48, 48)).save(folder / "pictures" / label / f"{i}.png")
    shutil.copytree(folder / "pictures", folder / "unreadable")
    for i in (3, 4, 5):
        (folder / "unreadable" / "dark" / f"{i}.png").write_text("not a picture")

    def recipe(*overrides: str, name: str = "kamim_photographs", source: str = "pictures") -> Recipe:
        tiny = PRETRAINING if name.endswith("_photographs") else CLASSIFIER
        chosen = ["--config", str(recipe_path(name)), "--data.source", str(folder / source)]
        return parse_recipe([*chosen, *tiny, *overrides])

    return recipe


def changing(recipe_of: Make, steps: int, how: str) -> Recipe:
    """A recipe to go on with, so many steps in all; micro-batches follow of themselves."""
    settings = ["--efficiency.micro_batch", "3", "--monitor.every_epochs", "1", "--monitor.images", "24"]
    return recipe_of("--max_steps", str(steps), "--efficiency.parallel", how, *settings)


def classifying(recipe_of: Make, name: str, folder: Path) -> Recipe:
    """A probe or fine-tuning of a run of this file."""
    return recipe_of("--objective.model", str(folder / "pretrained"), "--encoder.drop_path", "0", name=name)


@pytest.fixture(scope="module")
def runs(recipe_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs of this file by two processes, one after the other, in one launch."""
    folder = tmp_path_factory.mktemp("runs")
    train(changing(recipe_of, 2, "fsdp"), folder / "changing")  # one process has no parts
    shutil.copytree(folder / "changing", folder / "pretrained")
    wanted: list[tuple[Recipe, str]] = []
    for how in ("ddp", "fsdp"):
        parallel = ("--efficiency.parallel", how)
        dropping = (*parallel, "--encoder.drop_path", "0.3", "--efficiency.accumulate", "2")
        for out, steps in ((f"whole-{how}", "8"), (f"parts-{how}", "3"), (f"parts-{how}", "8")):
            wanted.append((recipe_of(*dropping, "--max_steps", steps), out))
        half = ("--max_steps", "4", "--efficiency.precision", "bf16")
        wanted.append((recipe_of(*parallel, *half), f"half-{how}"))
    wanted += [(changing(recipe_of, 4, "ddp"), "changing"), (changing(recipe_of, 6, "fsdp"), "changing")]
    wanted.append((recipe_of("--data.max_unreadable", "0.5", source="unreadable"), "unreadable"))
    wanted += [(classifying(recipe_of, name, folder), name) for name in ("linear_probe", "fine_tuning")]
    arguments = [folder / "launched.py"]
    arguments[0].write_text(LAUNCHED, encoding="utf-8")
    for number, (recipe, out) in enumerate(wanted):
        arguments += [folder / f"{number}.yaml", folder / out]
        arguments[-2].write_text(as_yaml(recipe), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command, environment = [*launcher, *map(str, arguments)], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "destroy_process_group" not in done.stderr
    return Runs(recipe_of, folder, done.stdout)


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / (run / "last").read_text().strip()
    return load_file(folder / "model.safetensors")


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run) if "loss" in line]


def test_clipping_following_and_moving_of_parts_are_those_of_wholes(runs: Runs) -> None:
    assert runs.printed.count("came to the end") == 2


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_resume_in_mid_epoch_bit_for_bit(how: str, runs: Runs) -> None:
    whole, parts = (runs.folder / f"{name}-{how}" for name in ("whole", "parts"))
    assert losses(parts) == losses(whole)
    assert len(losses(whole)) == 8
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(parts)[name]), name


def test_a_run_goes_on_with_another_number_of_processes(runs: Runs, tmp_path: Path) -> None:
    """Two steps by one process, two by two with whole weights, two with parts, and two by one again."""
    run = runs.folder / "changing"
    assert load_encoder(str(run)).architecture == "vit_tiny_patch16_224"
    for name, weight in load_file(run / "encoder.safetensors").items():
        assert torch.equal(weight, weights(run)[f"encoder.{name}"]), name
    train(changing(runs.recipe, 8, "ddp"), run)
    train(runs.recipe(), tmp_path / "alone")
    assert losses(run) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    assert [line["step"] for line in lines(run) if "monitor/knn/top1_k1/layer02" in line] == [4, 6]


def test_what_one_process_cannot_read_does_not_part_them(runs: Runs, tmp_path: Path) -> None:
    train(runs.recipe("--data.max_unreadable", "0.5", source="unreadable"), tmp_path / "one")
    assert losses(runs.folder / "unreadable") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


def test_half_precision_is_alike_in_both_ways(runs: Runs, tmp_path: Path) -> None:
    train(runs.recipe("--max_steps", "4"), tmp_path / "full")
    full = losses(tmp_path / "full")
    for run in (runs.folder / "half-ddp", runs.folder / "half-fsdp"):
        assert losses(run) == pytest.approx(full, rel=0.02)
        assert losses(run) != pytest.approx(full, rel=1e-5)
        assert all(weight.dtype == torch.float32 for weight in weights(run).values())


@pytest.mark.parametrize("name", ["linear_probe", "fine_tuning"])
def test_a_classifier_in_parts_is_judged_as_one_that_is_whole(name: str, runs: Runs, tmp_path: Path) -> None:
    train_and_judge(classifying(runs.recipe, name, runs.folder), tmp_path / "one")
    assert runs.printed.count(f"{name.replace('_', ' ')} of layer 2, top-1") == 1
    assert losses(runs.folder / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    found = [pd.read_csv(run / "results" / METRICS).value for run in (tmp_path / "one", runs.folder / name)]
    assert found[0].between(0, 1).all()
    pd.testing.assert_series_equal(*found)
