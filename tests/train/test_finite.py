"""Gradients that become NaN or infinite at one step of a real run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kamim_analysis.errors import UserError
from kamim_analysis.train import loop
from kamim_analysis.train.objective_module import ObjectiveModule
from kamim_analysis.train.objectives._objective import Objective
from kamim_analysis.train.objectives.attmask import AttMask
from kamim_analysis.train.progress import Progress
from kamim_analysis.train.recipe import Optim, Recipe
from kamim_analysis.train.samples import Order, TrainingSamples
from kamim_analysis.train.schedule import build_optimizer

Tiny = Callable[..., Recipe]
Breaking = Callable[[int, float], None]


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Breaking:
    """Makes one weight's gradient `value` at one step, in its last micro-batch, whenever that step is done."""

    def at(step: int, value: float) -> None:
        now = [0]

        def begin_step(_self: ObjectiveModule, progress: Progress) -> None:
            now[0] = progress.step + 1

        def build(model: Any, *others: Any) -> Any:
            weight = next(model.encoder.parameters())
            weight.register_hook(lambda gradient: gradient * (value if now[0] == step else 1))
            return build_optimizer(model, *others)

        monkeypatch.setattr(ObjectiveModule, "begin_step", begin_step)
        monkeypatch.setattr(loop, "build_optimizer", build)

    return at


def state(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and the optimizer's moments and counts after a step."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    found = load_file(folder / "model.safetensors")
    return found | {f"optimizer {name}": value for name, value in load_file(folder / "optimizer.safetensors").items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("accumulate", ["1", "2"])
def test_a_skipped_step_changes_nothing(
    tiny_recipe: Tiny, tmp_path: Path, breaks: Breaking, value: float, accumulate: str
) -> None:
    options = ["--checkpoint_every", "1", "--keep_checkpoints", "9", "--efficiency.accumulate", accumulate]
    loop.train(tiny_recipe(*options, "--max_steps", "2"), tmp_path / "clean")
    breaks(3, value)
    loop.train(tiny_recipe(*options, "--on_nonfinite", "skip"), tmp_path / "run")
    assert same(state(tmp_path / "run", 2), state(tmp_path / "clean", 2))
    assert same(state(tmp_path / "run", 3), state(tmp_path / "run", 2))
    assert not same(state(tmp_path / "run", 4), state(tmp_path / "run", 3))
    assert all(value.isfinite().all() for value in state(tmp_path / "run", 8).values())
    told = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line.get("skipped_steps") for line in told] == [None, None, 1, None, None, None, None, None]
    assert told[2]["loss"] is None
    assert told[2]["gradient_norm"] is None
    (report,) = lines(tmp_path / "run" / "nonfinite.jsonl")
    assert report["step"] == 3
    # that of step 2 may still be being written
    assert Path(report["last_checkpoint"]).name in ("step-00000001", "step-00000002")
    assert Path(report["last_checkpoint"]).is_dir()
    assert math.isfinite(report["loss"])


def test_the_mean_of_a_line_leaves_a_skipped_step_out(tiny_recipe: Tiny, tmp_path: Path, breaks: Breaking) -> None:
    breaks(3, math.nan)
    skip = ["--on_nonfinite", "skip", "--max_steps", "4"]
    loop.train(tiny_recipe(*skip), tmp_path / "each")
    loop.train(tiny_recipe(*skip, "--log_every", "4"), tmp_path / "together")
    each = [line["loss"] for line in lines(tmp_path / "each" / "metrics.jsonl")]
    (together,) = lines(tmp_path / "together" / "metrics.jsonl")
    assert together["loss"] == pytest.approx((each[0] + each[1] + each[3]) / 3, rel=1e-6)
    assert together["skipped_steps"] == 1


def test_stop_tells_the_pictures_and_comes_to_the_same_step_again(
    tiny_recipe: Tiny, pictures: Path, tmp_path: Path, breaks: Breaking, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    original = TrainingSamples.__getitem__
    monkeypatch.setattr(TrainingSamples, "__getitem__", lambda self, at: read.append(at) or original(self, at))
    breaks(6, math.nan)
    recipe = tiny_recipe("--checkpoint_every", "5", "--efficiency.accumulate", "2")
    for _ in range(2):
        read.clear()
        with pytest.raises(UserError, match=r"step 6: the gradient's norm is nan, .*/step-00000005.*--force") as error:
            loop.train(recipe, tmp_path / "run")
        assert "\n" not in str(error.value)
        (report,) = lines(tmp_path / "run" / "nonfinite.jsonl")
        assert [(report["epoch"], index) for index in report["indices"]] == read[-8:]
    assert report["epoch"] == 1
    assert all((pictures / name).is_file() for name in report["pictures"])
    assert (tmp_path / "run" / "last").read_text().strip() == "step-00000005"
    assert loop.train(tiny_recipe("--on_nonfinite", "skip"), tmp_path / "run").complete


def test_a_rate_that_is_far_too_high_is_one_line(tiny_recipe: Tiny, tmp_path: Path) -> None:
    rates = ["--optim.learning_rate", "1e37", "--optim.warmup_learning_rate", "1e36", "--checkpoint_every", "1"]
    with pytest.raises(UserError, match=r"the gradient's norm is (nan|inf), the loss"):
        loop.train(tiny_recipe(*rates), tmp_path / "run")
    folders = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    (report,) = lines(tmp_path / "run" / "nonfinite.jsonl")
    # the checkpoint of the step itself would be passed by a resumed run
    assert f"step-{report['step']:08d}" not in folders
    assert all(value.isfinite().all() for value in state(tmp_path / "run", report["step"] - 1).values())


def test_the_fused_step_is_that_of_adamw() -> None:
    """Ten steps by the formula (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2) in float64, the fifth left out."""
    weight = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
    holder = torch.nn.ParameterList([weight])
    optimizer: Any = build_optimizer(holder, Optim(learning_rate=0.1, weight_decay=0.05))
    own, first, second, count = weight.detach().double(), 0, 0, 0
    for step in range(10):
        gradient = torch.tensor([0.3, -0.2, 0.1]) * (step + 1)
        weight.grad = gradient.clone()
        optimizer.found_inf = torch.tensor(float(step == 4))
        optimizer.step()
        if step == 4:
            continue
        count += 1
        first = 0.9 * first + 0.1 * gradient.double()
        second = 0.999 * second + 0.001 * gradient.double() ** 2
        moved = first / (1 - 0.9**count) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        own = own - 0.1 * 0.05 * own - 0.1 * moved
    torch.testing.assert_close(weight.detach().double(), own, rtol=1e-5, atol=1e-6)


def test_samples_of_a_step_are_those_of_all_processes() -> None:
    def order(rank: int, processes: int = 2) -> Order:
        return Order(length=30, batch_size=12, seed=3, accumulate=3, processes=processes, rank=rank)

    told = order(0).samples_of(4)
    streams = [iter(order(rank)) for rank in (0, 1)]
    seen = [[sample for stream in streams for sample in next(stream)] for _ in range(12)]
    assert told == order(1).samples_of(4) == [sample for micro in seen[9:12] for sample in micro]
    assert {epoch for epoch, _index in told} == {1}
    assert sorted(told) == sorted(order(0, processes=1).samples_of(4))


def test_centres_do_not_follow_what_is_not_finite(build: Callable[[Objective], Any]) -> None:
    module = build(AttMask(head_width=16, head_bottleneck=8, head_outputs=32))
    module._means = [torch.rand(3, 32)]
    module.end_step(Progress(0, 10, 2))
    names = ("cls_centre", "patch_centre", "cls_mean")
    before = [getattr(module.model, name).clone() for name in names]
    broken = torch.rand(3, 32)
    broken[1, 5] = math.nan
    module._means = [torch.rand(3, 32), broken]
    module.end_step(Progress(1, 10, 2))
    for name, value in zip(names, before, strict=True):
        assert torch.equal(getattr(module.model, name), value), name
    module._means = [torch.ones(3, 32)]
    module.end_step(Progress(2, 10, 2))
    share = 1 - module.settings.centre_momentum
    torch.testing.assert_close(module.model.cls_centre, before[0] + share * (1 - before[0]))
