"""Batches: the same samples whatever dies, what is raised when it goes on dying, and what is left at the end."""

import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from kamim_analysis.data import Unreadable, open_pictures
from kamim_analysis.errors import UserError
from kamim_analysis.train import loop
from kamim_analysis.train.batches import Batches
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.samples import Order, TrainingSamples
from kamim_analysis.train.views import View

ORDER = Order(length=32, batch_size=8, seed=0, accumulate=2, first_step=2)


class Mean(View):
    """A number that tells pictures apart, and one that is drawn."""

    def __call__(self, picture: Any) -> dict[str, torch.Tensor]:
        return {"image": torch.tensor(picture.mean()), "drawn": torch.rand(())}


@pytest.fixture
def batches_of(pictures: Path) -> Iterator[Callable[..., Batches]]:
    """Batches of four of the pictures, two to a step, from the third step on; closed at the end."""
    made = []

    def make(view: Any = Mean, *, workers: int = 2, **options: Any) -> Batches:
        data = open_pictures(str(pictures), "train")
        samples = TrainingSamples(data, view(), seed=0)
        made.append(Batches(samples, ORDER, Unreadable(len(data)), torch.device("cpu"), workers=workers, **options))
        return made[-1]

    yield make
    for batches in made:
        batches.close()


def kill_a_worker(by: signal.Signals = signal.SIGKILL) -> None:
    worker = multiprocessing.active_children()[-1]
    assert worker.pid is not None
    os.kill(worker.pid, by)
    worker.join()


def assert_equal(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


def test_the_same_samples_follow_when_workers_die(
    batches_of: Callable[..., Batches], caplog: pytest.LogCaptureFixture
) -> None:
    alone = batches_of(workers=0)
    expected = [next(alone) for _ in range(32)]
    batches, got = batches_of(), []
    for number in range(32):
        got.append(next(batches))
        # within a step and at its beginning; each death is met within the eight batches that are loaded ahead
        if number in (2, 12, 21):
            kill_a_worker()
    assert_equal(got, expected)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    for line in lines:
        assert "was killed by SIGKILL: the system may be out of memory" in line
        assert "\n" not in line


def test_all_workers_may_die_at_once(batches_of: Callable[..., Batches]) -> None:
    alone, batches = batches_of(workers=0), batches_of()
    expected, got = [next(alone) for _ in range(4)], [next(batches)]
    kill_a_worker()
    kill_a_worker()
    assert_equal([*got, *(next(batches) for _ in range(3))], expected)


def test_a_death_interrupts_nothing_but_the_wait_for_a_batch(batches_of: Callable[..., Batches]) -> None:
    earlier = iter(DataLoader([1, 2, 3], num_workers=1))  # type: ignore[arg-type]
    assert next(earlier).item() == 1  # torch's handler of SIGCHLD stands from now on
    del earlier
    assert callable(signal.getsignal(signal.SIGCHLD))
    batches = batches_of()
    next(batches)
    kill_a_worker()
    time.sleep(0.2)  # Python runs a handler between two instructions
    next(batches)


def test_a_run_whose_workers_are_killed_has_the_losses_of_one_left_alone(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--efficiency.workers", "2", "--efficiency.accumulate", "2", "--max_steps", "6"]
    options += ["--encoder.drop_path", "0.3"]  # draws from the state that new workers must not touch
    loop.train(tiny_recipe(*options), tmp_path / "whole")
    backward = loop.Parallel.backward
    passes = []

    def killing(self: Any, loss: torch.Tensor) -> None:
        passes.append(1)
        if len(passes) in (3, 8):  # between the two micro-batches of a step there is most to lose
            kill_a_worker()
        backward(self, loss)

    monkeypatch.setattr(loop.Parallel, "backward", killing)
    loop.train(tiny_recipe(*options), tmp_path / "killed")
    assert len(passes) == 12
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert not multiprocessing.active_children()


def lines(run: Path) -> list[dict[str, float]]:
    """What was logged, less the time that it took."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in found]


class Killed(Mean):
    """What uses too much memory."""

    def __call__(self, picture: Any) -> dict[str, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(picture)


class Leaving(Mean):
    """What a library does that gives up."""

    def __call__(self, picture: Any) -> dict[str, torch.Tensor]:
        os._exit(7)


@pytest.mark.parametrize(
    ("view", "told"),
    [
        (Killed, "was killed by SIGKILL: the system may be"),
        (Leaving, "ended with exit code 7: a picture or"),
    ],
)
def test_workers_that_die_again_and_again_are_an_error_of_one_line(
    batches_of: Callable[..., Batches], caplog: pytest.LogCaptureFixture, view: Any, told: str
) -> None:
    batches = batches_of(view, workers=1)
    with pytest.raises(UserError, match=f"^data workers died 3 times without a batch between; data worker .*{told}"):
        next(batches)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


class Buggy(Mean):
    def __call__(self, picture: Any) -> dict[str, torch.Tensor]:
        raise RuntimeError("a bug of the view")


def test_an_error_in_a_worker_keeps_its_traceback(
    batches_of: Callable[..., Batches], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*in __call__.*a bug of the view"):
        next(batches_of(Buggy))
    assert not caplog.records


class Refusing(Mean):
    def __call__(self, picture: Any) -> dict[str, torch.Tensor]:
        raise UserError("this is wrong; that is right")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_error_in_a_worker_is_one_line(batches_of: Callable[..., Batches], workers: int) -> None:
    with pytest.raises(UserError) as caught:
        next(batches_of(Refusing, workers=workers))
    assert str(caught.value) == "this is wrong; that is right"


def test_what_the_view_leaves_to_the_device_is_done_there(batches_of: Callable[..., Batches]) -> None:
    batches = batches_of(workers=0, finish=lambda batch: {"twice": 2 * batch["image"]})
    plain = batches_of(workers=0)
    assert_equal([next(batches)], [{"twice": 2 * next(plain)["image"]}])


def test_closing_ends_the_workers(batches_of: Callable[..., Batches]) -> None:
    batches = batches_of()
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()
