"""What a run directory takes, keeps and tells."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from kamim_analysis.errors import UserError
from kamim_analysis.train import run_directory
from kamim_analysis.train.loop import train
from kamim_analysis.train.metrics_log import drop_after
from kamim_analysis.train.recipe import Recipe

Tiny = Callable[..., Recipe]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_what_a_kill_at_the_beginning_leaves_is_no_other_file(tiny_recipe: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / "config.yaml.partial").write_text("seed: 0\nobj")
    run_directory.check(run, tiny_recipe())
    (run / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        run_directory.check(run, tiny_recipe())


def test_the_same_recipe_leaves_no_old_one(tiny_recipe: Tiny, tmp_path: Path) -> None:
    run_directory.create(tmp_path / "run", tiny_recipe())
    run_directory.create(tmp_path / "run", tiny_recipe("--max_steps", "5"), 3)
    assert names(tmp_path / "run") == ["config.yaml"]


def test_another_recipe_keeps_the_one_that_trained_up_to_there(
    tiny_recipe: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    run_directory.create(run, tiny_recipe())
    first = (run / "config.yaml").read_bytes()
    (run / "results").mkdir()
    (run / "results" / "of").write_text("the first")
    with caplog.at_level(logging.WARNING):
        run_directory.create(run, tiny_recipe("--seed", "1"), 4)
    assert "goes on from step 4 with other settings: seed: 0 -> 1" in caplog.text
    (run / "results").mkdir()
    run_directory.create(run, tiny_recipe("--seed", "2"), 4)  # the second trained no step
    assert (run / "config-before-step-5.yaml").read_bytes() == first
    assert (run / "results-before-step-5" / "of").read_text() == "the first"
    assert names(run) == ["config-before-step-5.yaml", "config.yaml", "results-before-step-5"]
    run_directory.check(run, tiny_recipe("--seed", "2"))


def test_force_goes_on_from_the_last_checkpoint_by_the_new_settings(tiny_recipe: Tiny, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tiny_recipe("--optim.learning_rate", "0.01")
    train(tiny_recipe("--max_steps", "3"), run)
    before = lines(run)
    train(other, run, force=True)
    train(other, tmp_path / "other")
    assert lines(run)[:3] == before
    rates, losses = ([[line[name] for line in lines(one)[3:]] for one in (run, tmp_path / "other")]
                     for name in ("learning_rate", "loss"))  # fmt: skip
    assert rates[0] == rates[1]
    assert losses[0] != losses[1]


def test_a_full_disk_names_the_file_and_the_last_checkpoint(tiny_recipe: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_recipe("--max_steps", "2"), run)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("/dev/full")
    told = (
        r"cannot write '.*/metrics.jsonl': No space left on device; .*the last complete checkpoint is .*step-00000002"
    )
    with pytest.raises(UserError, match=told):
        train(tiny_recipe(), run)
    assert not (run / ".lock").exists()


def test_lines_after_a_step_and_a_line_cut_short_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    drop_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert names(tmp_path) == ["metrics.jsonl"]
