"""Sweep files: which cells they ask for, and what a mistake in one is told as; a cell's steps and its lock."""

import fcntl
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.figures.tables._grid import PACKAGE, table_modules
from kamim_analysis.train.recipe import Data
from kamim_analysis.train.settings import as_dict, parse_recipe, recipe_path
from kamim_analysis.train.sweep import Sweep, read, sweep_names, sweep_of, sweep_path
from kamim_analysis.train.sweep_cell import CellRun, Outcome, Step, cell_run, duration, last_line
from kamim_analysis.train.sweep_jobs import Queue

GRID = {"objective.weight_patch": [8, 16], "objective.temperature": [0.25, 1]}


def test_a_grid_is_each_combination_in_its_order() -> None:
    sweep = sweep_of({"recipe": "kamim_photographs", "overrides": {"optim.epochs": 2}, "grid": GRID}, {"seed": "3"})
    assert [(cell.name, dict(cell.overrides)) for cell in sweep.cells] == [
        (f"weight_patch_{w}-temperature_{t}",
         {"optim.epochs": 2, "objective.weight_patch": w, "objective.temperature": t, "seed": "3"})
        for w in (8, 16) for t in (0.25, 1)
    ]  # fmt: skip
    recipe = parse_recipe(["--config", str(recipe_path("kamim_photographs")), *sweep.cells[1].settings])
    settings = as_dict(recipe)
    assert (settings["objective"]["init_args"]["weight_patch"], settings["optim"]["epochs"]) == (8, 2)
    assert (settings["objective"]["init_args"]["temperature"], settings["seed"]) == (1.0, 3)


def test_what_is_closer_to_the_cell_goes_before() -> None:
    loaded = {
        "recipe": "kamim_photographs", "overrides": {"seed": 1, "log_every": 1, "max_steps": 1},
        "also": [{"overrides": {"seed": 2, "log_every": 2}}, {"recipe": "simmim_photographs", "name": "base"}],
    }  # fmt: skip
    single, own, base = sweep_of(loaded, {"seed": "3"}).cells
    assert (single.name, own.name, base.name) == ("kamim_photographs", "seed_2-log_every_2", "base")
    assert own.overrides == {"seed": "3", "log_every": 2, "max_steps": 1}
    assert (own.recipe, base.recipe) == ("kamim_photographs", "simmim_photographs")


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        ({"objective.detector": ["FAST", {"class_path": "ORB", "init_args": {"edge_threshold": 8}}]},
         ["detector_FAST", "detector_ORB_edge_threshold_8"]),
        ({"data.crop_scale": [[0.2, 1.0]]}, ["crop_scale_0.2_1.0"]),
        ({"optim.learning_rate": [1e-05], "data.root": [None]}, ["learning_rate_1e-05-root_null"]),
        ({"a.size": [1], "b.size": [2]}, ["a.size_1-b.size_2"]),
        ({"data.source": ["/data/a=b c"]}, ["source__data_a_b_c"]),
    ],
)  # fmt: skip
def test_names_are_readable_and_safe(grid: dict[str, Any], names: list[str]) -> None:
    found = [cell.name for cell in sweep_of({"recipe": "kamim_photographs", "grid": grid}, {}).cells]
    assert found == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reciep": "x"}, "unknown key of the file 'reciep' (did you mean 'recipe'?)"),
        ({"recipe": "kamim_photograph"}, "unknown recipe 'kamim_photograph'; did you mean 'kamim_photographs'"),
        ({"recipe": "mine.yaml"}, "'recipe': no recipe file at "),
        ({"recipe": 3}, "'recipe' is 3; give a shipped recipe's name or a file"),
        ({"recipe": None, "grid": {"seed": [0]}}, "'grid' needs a 'recipe'"),
        ({"recipe": None}, "it asks for no run; give 'recipe'"),
        ({"grid": {"seed": 3}}, "'grid' 'seed' is 3; give a list of values"),
        ({"grid": {"seed": []}}, "'grid' 'seed' is []; give a list of values"),
        ({"grid": [1]}, "'grid' is [1]; give settings by dotted name"),
        ({"grid": {"seed": [1, 1]}}, "two cells are called 'seed_1'; give one of them another 'name'"),
        ({"overrides": ["seed"]}, "'overrides' is ['seed']; give settings by dotted name"),
        ({"also": {"recipe": "x"}}, "'also' is {'recipe': 'x'}; give a list"),
        ({"also": [{"recipes": "x"}]}, "unknown key of 'also' 1 'recipes'"),
        ({"also": [{"name": "a/b"}]}, "'name' 'a/b' is no directory's name"),
        ({"also": [{"name": "a=b"}]}, "'name' 'a=b' is no directory's name"),
        ({"evaluate": ["knn"]}, "'evaluate' 1 is 'knn'; give a mapping with 'command', one of analyze"),
        ({"evaluate": [{"command": "kmn"}]}, "'evaluate' 1: unknown command 'kmn'; there are: analyze, fast_probe"),
        ({"evaluate": [{"command": "knn"}] * 2}, "two evaluations are called 'knn'; give one of them another 'name'"),
        ({"evaluate": [{"command": "knn", "out": "x"}]}, "'out' is the sweep's own"),
        ({"evaluate": [{"command": "knn", "k": None}]}, "'k' is None; leave it out"),
        ({"evaluate": [{"command": "knn", "name": "checkpoints"}]}, "'name' 'checkpoints' is no directory's name"),
        ({"table": "kamim_2"}, "'table' is 'kamim_2'; give a list"),
    ],
)
def test_a_mistake_is_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.sweep.yaml"
    path.write_text(yaml.safe_dump({"recipe": "kamim_photographs"} | change))
    with pytest.raises(UserError) as told:
        read(path, {})
    assert str(told.value).startswith(f"sweep {str(path)!r}: ")
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_files_that_are_no_sweep_are_refused(tmp_path: Path) -> None:
    for text, message in (("a: [", "cannot read sweep"), ("3", "the file is 3; give a mapping with recipe")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            read(tmp_path / "bad.yaml", {})
    with pytest.raises(UserError, match=r"no sweep file at 'none\.yaml'"):
        sweep_path("none.yaml")
    with pytest.raises(UserError, match="unknown sweep 'kamim_table_3'"):
        sweep_path("kamim_table_3")
    with pytest.raises(UserError, match=r"--seed is varied by 'grid'"):
        sweep_of({"recipe": "kamim_photographs", "grid": {"seed": [0]}}, {"seed": "1"})


def test_a_recipe_file_is_relative_to_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(recipe_path("kamim_photographs").read_text())
    (tmp_path / "sweep.yaml").write_text("recipe: mine.yaml")
    (cell,) = read(tmp_path / "sweep.yaml", {}).cells
    assert (cell.name, cell.options) == ("mine", ["--config", str(tmp_path / "mine.yaml")])


def shipped(name: str) -> Sweep:
    return read(sweep_path(name), {})


@pytest.mark.parametrize("name", sweep_names())
def test_every_cell_of_a_shipped_sweep_is_a_run(name: str) -> None:
    sweep = shipped(name)
    assert set(sweep.tables) <= set(plugins.names(PACKAGE))
    for cell in sweep.cells:
        parse_recipe(["--config", str(cell.recipe_file), *cell.settings])


@pytest.mark.parametrize("suffix", ["", "_photographs"])
def test_the_shipped_sweeps_are_the_papers_cells(suffix: str) -> None:
    """Every line of Tables 2 and 4 has its cell, by what the recipe comes to."""
    for table in ("2", "4"):
        settings = []
        for cell in shipped(f"kamim_table_{table}{suffix}").cells:
            objective = as_dict(parse_recipe(["--config", str(cell.recipe_file), *cell.settings]))["objective"]
            given = objective["init_args"]
            kamim = objective["class_path"] == "KAMIM"
            found = (given["detector"]["class_path"], given["weight_patch"], given["temperature"]) if kamim else ()
            settings.append((objective["class_path"], *found))
        lines = table_modules([f"kamim_{table}"])[f"kamim_{table}"].GRID.lines
        fits = [{"detector": "FAST", "weight_patch": "8", "keypoint_temperature": "0.25"} | dict(line.fits)
                for line in lines if line.fits["method"] == "KAMIM"]  # fmt: skip
        wanted = [("KAMIM", one["detector"], int(one["weight_patch"]), float(one["keypoint_temperature"]))
                  for one in fits]  # fmt: skip
        assert sorted(map(str, settings)) == sorted(map(str, [*wanted, ("SimMIM",)]))


def test_steps_are_commands_that_a_user_could_type(tmp_path: Path) -> None:
    loaded = {
        "recipe": "kamim_photographs", "grid": {"objective.temperature": [0.5]},
        "evaluate": [
            {"command": "probe", "recipe": "linear_probe_photographs", "optim.betas": [0.9, 0.99]},
            {"command": "knn", "name": "shown", "data": "photographs", "k": [1, 20], "norm": True},
        ],
    }  # fmt: skip
    sweep = sweep_of(loaded, {})
    out = tmp_path / "my sweep"
    run = cell_run(sweep.cells[0], sweep.evaluations, Data(source="torch/imagenet", root="/in"), out)
    cell = f"{tmp_path}/my sweep/temperature_0.5"
    assert [shlex.split(command) for command in run.commands()] == [
        ["kamim", "train", "--recipe", "kamim_photographs", "--objective.temperature", "0.5", "--out", cell],
        ["kamim", "probe", f"temperature_0.5={cell}", "--data", "torch/imagenet", "--data_root", "/in", "--recipe",
         "linear_probe_photographs", "--optim.betas", "[0.9, 0.99]", "--out", f"{cell}/probe"],
        ["kamim", "knn", f"temperature_0.5={cell}", "--data", "photographs", "--k", "1,20", "--norm", "--out",
         f"{cell}/shown", "--overwrite"],
    ]  # fmt: skip


@pytest.fixture
def cell(tmp_path: Path) -> Callable[..., CellRun]:
    """A cell of cheap real commands in the place of training: each prints a recipe; `leaves` are there already."""

    def make(*names: str, leaves: tuple[str, ...] = ("first", "second")) -> CellRun:
        directory = tmp_path / "cell"
        directory.mkdir(exist_ok=True)
        for name in leaves:
            (directory / name).touch()
        steps = (("train", "first"), ("knn", "second"))
        return CellRun("cell", directory, tuple(
            Step(step, ("recipes", name), directory / left)
            for (step, left), name in zip(steps, names, strict=True)
        ))  # fmt: skip

    return make


def test_what_ended_well_is_not_run_again_until_it_is_asked_for_otherwise(cell: Callable[..., CellRun]) -> None:
    kamim, simmim, probe = "kamim_photographs", "simmim_photographs", "linear_probe"

    def names(run: CellRun) -> list[str]:
        return [step.name for step in run.unfinished()]

    first = cell(kamim, probe)
    assert names(first) == ["train", "knn"]
    said: list[str] = []
    assert first.run(said.append) == Outcome("done")
    assert [text.split(" ")[0] for text in said[::2]] == ["train", "knn"]
    assert first.run() == Outcome("complete")
    assert first.log.read_text().count("\n$ ") == 2
    assert names(cell(kamim, simmim)) == ["knn"]
    # other weights: what was judged of the old ones is judged again
    assert names(cell(simmim, probe)) == ["train", "knn"]
    (first.directory / "second").unlink()
    assert names(first) == ["knn"]


def test_a_step_that_fails_or_leaves_nothing_ends_the_cell(cell: Callable[..., CellRun]) -> None:
    wrong = cell("no_such_recipe", "linear_probe")
    outcome = wrong.run()
    assert outcome.state == "failed"
    assert outcome.reason.startswith("train ended with code 2: unknown recipe 'no_such_recipe'")
    assert [step.name for step in wrong.unfinished()] == ["train", "knn"]
    empty = cell("kamim_photographs", "linear_probe", leaves=())
    (empty.directory / "second").unlink()
    outcome = empty.run()
    assert outcome.reason.startswith("knn left no second: log_every: 50")
    assert [step.name for step in empty.unfinished()] == ["knn"]


def test_a_cell_that_another_process_is_at_is_left_alone(cell: Callable[..., CellRun]) -> None:
    run = cell("kamim_photographs", "linear_probe")
    with run.log.open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        # a command that outlives the sweep holds the log too
        orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=log)
    try:
        assert run.run() == Outcome("busy", "another process is at it")
        assert not (run.directory / "sweep.json").exists()
    finally:
        orphan.kill()
        orphan.wait()
    assert run.run().state == "done"


def test_the_last_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 9000 + b"\nkamim: error: no \xff model\n\n")
    assert last_line(log) == "no \ufffd model"
    log.write_bytes(b"")
    assert last_line(log) == "it said nothing"
    assert (duration(59.4), duration(59.6), duration(3600.0)) == ("59 s", "1 min 0 s", "1 h 0 min")


def test_a_job_runs_the_cell_and_is_told_of(cell: Callable[..., CellRun], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    queue = Queue(tmp_path / "jobs", "local", {"timeout_min": 5, "max_num_timeout": 2})
    run = cell("kamim_photographs", "linear_probe")
    assert queue.running("cell") == ""
    job = queue.submit(run)
    assert job.result() == "done"
    assert run.unfinished() == []
    assert queue.running("cell") == ""
    assert json.loads((run.directory / "sweep.json").read_text()).keys() == {"train", "knn"}
    failing = queue.submit(cell("no_such_recipe", "linear_probe"))
    assert "unknown recipe 'no_such_recipe'" in str(failing.exception())
    _wait(job, failing)


def test_wrong_parameters_of_jobs_and_no_slurm_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match=r"^submitit: Unknown argument 'partitoin' .*") as told:
        Queue(tmp_path, "local", {"partitoin": "gpu"})
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="srun"):
        Queue(tmp_path, "slurm", {"partition": "gpu"})


def _wait(*jobs: Any) -> None:
    """Until their processes are gone, which submitit leaves to themselves."""
    deadline = time.monotonic() + 30
    while any(job.state == "RUNNING" for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.1)
