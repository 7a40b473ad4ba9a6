"""Signals that this very process is sent while it trains; tests/commands/test_train_long.py sends them from outside."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kamim_analysis import termination
from kamim_analysis.train.interruption import Interruption
from kamim_analysis.train.loop import train
from kamim_analysis.train.parallel import Parallel
from kamim_analysis.train.recipe import Efficiency, Recipe

Tiny = Callable[..., Recipe]
ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(autouse=True)
def plain_handlers() -> Iterator[None]:
    """As a command line finds them, wherever the tests run."""
    before = {one: signal.getsignal(one) for one in ASKING}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def sending(number: signal.Signals, at: int) -> Callable[..., None]:
    """A monitor that sends this process a signal after step `at`."""

    def monitor(_model: Any, step: int, _log: object) -> None:
        if step == at:
            os.kill(os.getpid(), number)

    return monitor


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / (run / "last").read_text().strip() / "model.safetensors")


def told(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_saves_first_and_the_same_command_goes_on(
    tiny_recipe: Tiny, tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe("--monitor.every_epochs", "1", "--efficiency.accumulate", "2", "--encoder.drop_path", "0.3")
    train(recipe, tmp_path / "whole")
    ends: type[BaseException] = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with caplog.at_level("INFO"), pytest.raises(ends) as left:
        train(recipe, tmp_path / "parts", sending(number, at=4))
    if isinstance(left.value, SystemExit):
        assert left.value.code == {signal.SIGTERM: 143, signal.SIGUSR1: 138}[number]
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert f"step 5 saved after {name}; the same command goes on" in caplog.text
    assert (tmp_path / "parts" / "last").read_text().strip() == "step-00000005"
    assert [signal.getsignal(one) for one in ASKING] == [signal.SIG_DFL, signal.SIG_DFL, signal.default_int_handler]
    train(recipe, tmp_path / "parts")
    assert told(tmp_path / "parts") == told(tmp_path / "whole")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for weight in whole:
        assert torch.equal(whole[weight], parts[weight]), weight


def test_a_signal_after_the_last_step_leaves_the_rest_to_the_same_command(tiny_recipe: Tiny, tmp_path: Path) -> None:
    recipe = tiny_recipe("--monitor.every_epochs", "1")
    with pytest.raises(SystemExit):
        train(recipe, tmp_path / "run", sending(signal.SIGTERM, at=8))
    assert (tmp_path / "run" / "last").read_text().strip() == "step-00000008"
    assert not (tmp_path / "run" / ".lock").exists()
    assert train(recipe, tmp_path / "run").complete
    assert (tmp_path / "run" / "encoder.safetensors").is_file()


def test_a_second_ctrl_c_does_not_wait() -> None:
    interruption = Interruption(Parallel(Efficiency()))

    def twice() -> None:
        with interruption:
            assert interruption.asked() is None
            signal.raise_signal(signal.SIGINT)
            assert interruption.asked() == signal.SIGINT
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it goes on")

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_handlers_of_others_are_kept() -> None:
    def own(_number: int, _frame: object) -> None:
        pass

    signal.signal(signal.SIGTERM, termination.leave)
    signal.signal(signal.SIGUSR1, own)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption(Parallel(Efficiency())):
        assert signal.getsignal(signal.SIGTERM) not in (termination.leave, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGUSR1) is own
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is termination.leave


def test_a_training_in_another_thread_leaves_handlers_alone(tiny_recipe: Tiny, tmp_path: Path) -> None:
    recipe, ended = tiny_recipe("--max_steps", "1"), []
    thread = threading.Thread(target=lambda: ended.append(train(recipe, tmp_path / "run")))
    thread.start()
    thread.join()
    assert len(ended) == 1
