"""Checkpoints: what is written, what damage does, kills, full disks, several processes.

Every weight and moment is filled with the number of the step before a `save`, so that a checkpoint that mixes moments
in time gives itself away. Functions below that take only paths run in processes of their own.
"""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from kamim_analysis.errors import UserError
from kamim_analysis.train import checkpoint_files, dtensors
from kamim_analysis.train.checkpoint import Checkpoints
from kamim_analysis.train.loop import begin, train
from kamim_analysis.train.parallel import Parallel
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.schedule import build_optimizer
from kamim_analysis.train.settings import as_yaml, load_recipe

Tiny = Callable[..., Recipe]
FILES = ["checkpoint.json", "model.safetensors", "optimizer.safetensors"]


class Parts(NamedTuple):
    """What a checkpoint is of."""

    checkpoints: Checkpoints
    objective: Any
    optimizer: torch.optim.Optimizer

    def fill(self, value: float) -> None:
        """Every weight and moment, in place."""
        with torch.no_grad():
            for tensor in self.objective.model.state_dict().values():
                tensor.fill_(value)
            for state in self.optimizer.state.values():
                for moment in state.values():
                    moment.fill_(value)

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The weights that the optimizer steps."""
        named = self.objective.model.named_parameters()
        return {name: weight for name, weight in named if weight.requires_grad}

    def save(self, *steps: int) -> None:
        for step in steps:
            self.fill(step)
            self.checkpoints.save(step)
        self.checkpoints.close()

    def holds(self, value: float) -> bool:
        """Whether every weight and moment is that number."""
        moments = [dtensors.whole(moment) for state in self.optimizer.state.values() for moment in state.values()]
        assert len(moments) == 3 * len(self.trained)
        weights = map(dtensors.whole, self.objective.model.state_dict().values())
        return all(bool((tensor == value).all()) for tensor in [*weights, *moments])


def parts_of(recipe: Recipe, out: Path) -> Parts:
    """Freshly made, after one step of zero gradients, so that there are moments."""
    parallel = Parallel(recipe.efficiency)
    objective = recipe.objective.build(begin(recipe))
    parallel.wrap(objective)
    optimizer = build_optimizer(objective, recipe.optim)
    for weight in objective.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    return Parts(Checkpoints(out, recipe, objective, optimizer, parallel), objective, optimizer)


@pytest.fixture
def parts(tiny_recipe: Tiny, tmp_path: Path) -> Callable[..., Parts]:
    return lambda *overrides: parts_of(tiny_recipe(*overrides), tmp_path / "run")


def there(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def number(name: str) -> int:
    return int(name.removeprefix("step-"))


def assert_complete(run: Path) -> int:
    """That `last` names a checkpoint whose files have the sizes and hashes noted and are of one step, which it is."""
    folder = run / "checkpoints" / (run / "last").read_text().strip()
    noted = json.loads((folder / "checkpoint.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == FILES
    for name, facts in noted["files"].items():
        content = (folder / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for entry, tensor in load_file(folder / name).items():
            assert bool((tensor == noted["step"]).all()), entry
    assert number(folder.name) == noted["step"]
    return int(noted["step"])


def test_a_checkpoint_is_of_the_moment_it_was_saved_at_and_training_does_not_wait(
    parts: Callable[..., Parts], tmp_path: Path
) -> None:
    one, busy = parts(), threading.Event()
    one.checkpoints.writer.submit(busy.wait)  # the writer comes to it only later
    one.fill(1)
    one.checkpoints.save(1)
    one.fill(-1)  # training goes on
    assert not (tmp_path / "run" / "checkpoints").exists()
    busy.set()
    one.checkpoints.close()
    assert assert_complete(tmp_path / "run") == 1
    one.save(2, 3)  # the second uses the first one's memory again
    assert assert_complete(tmp_path / "run") == 3
    assert checkpoint_files.newest_intact(tmp_path / "run") is not None


def test_a_save_waits_for_the_one_before(parts: Callable[..., Parts], tmp_path: Path) -> None:
    one, busy = parts(), threading.Event()
    one.checkpoints.writer.submit(busy.wait)
    one.fill(1)
    one.checkpoints.save(1)
    one.fill(2)
    second = threading.Thread(target=one.checkpoints.save, args=(2,))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    busy.set()
    second.join()
    one.checkpoints.close()
    assert there(tmp_path / "run") == ["step-00000001", "step-00000002"]


def test_an_error_in_training_loses_no_checkpoint(parts: Callable[..., Parts], tmp_path: Path) -> None:
    one, busy = parts(), threading.Event()
    one.checkpoints.writer.submit(busy.wait)
    one.fill(1)
    one.checkpoints.save(1)
    threading.Timer(0.2, busy.set).start()
    with pytest.raises(KeyError), one.checkpoints:
        raise KeyError
    assert assert_complete(tmp_path / "run") == 1


def test_weights_and_moments_are_written_and_restored_by_name(parts: Callable[..., Parts], tmp_path: Path) -> None:
    one = parts()
    for weight in one.trained.values():
        weight.grad = torch.randn_like(weight)
    one.optimizer.step()
    one.checkpoints.save(2)
    one.checkpoints.close()
    folder = tmp_path / "run" / "checkpoints" / "step-00000002"
    written = load_file(folder / "optimizer.safetensors")
    for name, weight in one.trained.items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(written.pop(f"{name}/{key}"), one.optimizer.state[weight][key]), name
    assert not written
    other = parts()
    assert other.checkpoints.load() == 2
    for name, weight in one.trained.items():
        own = other.trained[name]
        assert torch.equal(weight, own), name
        assert one.optimizer.state[weight].keys() == other.optimizer.state[own].keys()
        for key, moment in one.optimizer.state[weight].items():
            assert torch.equal(moment, other.optimizer.state[own][key]), name
        weight.grad = own.grad = torch.randn_like(weight)
    one.optimizer.step()
    other.optimizer.step()
    for name, weight in one.trained.items():
        assert torch.equal(weight, other.trained[name]), name


def test_an_optimizer_that_never_stepped_is_saved_too(parts: Callable[..., Parts]) -> None:
    one = parts()
    one.optimizer.state.clear()
    one.save(1)
    other = parts()
    other.optimizer.state.clear()
    assert other.checkpoints.load() == 1
    assert not other.optimizer.state


def test_a_directory_without_checkpoints_starts_at_0(parts: Callable[..., Parts], tmp_path: Path) -> None:
    assert parts().checkpoints.load() == 0
    assert not (tmp_path / "run").exists()


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


def empty(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, 0)


def flip(name: str, share: float = 0.5) -> Callable[[Path], None]:
    """One bit of the byte at this share of the file."""

    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(share * len(content))] ^= 16
        (folder / name).write_bytes(content)

    return change


def swap(folder: Path) -> None:
    """The description of the checkpoint before: whole, but of other files."""
    shutil.copy(folder.with_name("step-00000002") / "checkpoint.json", folder)


def say(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "checkpoint.json").write_text(text)

    return write


MODEL, OPTIMIZER, CONTENTS = "model.safetensors", "optimizer.safetensors", "checkpoint.json"
DAMAGES = {
    "no model": (remove(MODEL), "model.safetensors is missing"),
    "no optimizer": (remove(OPTIMIZER), "optimizer.safetensors is missing"),
    "no description": (remove(CONTENTS), "checkpoint.json is missing"),
    "model cut": (truncate(MODEL), r"model.safetensors has \d+ bytes of \d+"),
    "optimizer cut": (truncate(OPTIMIZER), r"optimizer.safetensors has \d+ bytes of \d+"),
    "description cut": (lambda folder: os.truncate(folder / CONTENTS, 60), "checkpoint.json is unreadable"),
    "model flipped": (flip(MODEL), "model.safetensors has another SHA-256"),
    "optimizer flipped": (flip(OPTIMIZER), "optimizer.safetensors has another SHA-256"),
    "optimizer's names flipped": (flip(OPTIMIZER, 0.01), "optimizer.safetensors has another SHA-256"),
    "model empty": (empty(MODEL), "model.safetensors has 0 bytes of"),
    "description empty": (empty(CONTENTS), "checkpoint.json is unreadable"),
    "description of another": (swap, "checkpoint.json is of another checkpoint"),
    "description of nothing": (say("[]"), "checkpoint.json is unreadable"),
    "description no text": (say("\udcff".encode("utf-8", "surrogateescape").decode("latin-1")), "is unreadable"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_set_aside_and_the_one_before_taken(
    damage: str, parts: Callable[..., Parts], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, (act, reason) = tmp_path / "run", DAMAGES[damage]
    parts("--keep_checkpoints", "3").save(1, 2, 3)
    act(run / "checkpoints" / "step-00000003")
    left = {path.name: path.read_bytes() for path in (run / "checkpoints" / "step-00000003").iterdir()}
    other = parts("--keep_checkpoints", "3")
    assert other.checkpoints.load() == 2
    assert other.holds(2)
    (record,) = caplog.records
    line = record.getMessage()
    assert "step-00000003 is damaged" in line
    assert "now step-00000003.damaged" in line
    assert "going on from step-00000002" in line
    assert re.search(reason, line)
    assert "\n" not in line
    aside = run / "checkpoints" / "step-00000003.damaged"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == left
    assert assert_complete(run) == 2
    other.save(3)
    assert assert_complete(run) == 3
    assert aside.is_dir()


def test_any_bit_counts(parts: Callable[..., Parts], tmp_path: Path) -> None:
    parts().save(1)
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    draw = random.Random(0)
    for name in (MODEL, OPTIMIZER):
        whole = (folder / name).read_bytes()
        for _ in range(20):
            flip(name, draw.random())(folder)
            with pytest.raises(checkpoint_files.Damaged):
                checkpoint_files.verify(folder)
            (folder / name).write_bytes(whole)
    checkpoint_files.verify(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"step-00000009\n", b"../elsewhere\n", None])
def test_a_damaged_pointer_is_told_and_mended(
    content: bytes | None, parts: Callable[..., Parts], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    parts().save(1, 2)
    if content is None:  # killed between a first checkpoint and its pointer: nothing is wrong
        (run / "last").unlink()
    else:
        (run / "last").write_bytes(content)
    other = parts()
    assert other.checkpoints.load() == 2
    assert other.holds(2)
    assert assert_complete(run) == 2
    assert ["which is not there" in record.getMessage() for record in caplog.records] == [True] * (content is not None)


def test_it_falls_back_further_and_a_second_time(parts: Callable[..., Parts], tmp_path: Path) -> None:
    run = tmp_path / "run"
    one = parts("--keep_checkpoints", "5")
    one.save(1, 2, 3, 4)
    empty(OPTIMIZER)(run / "checkpoints" / "step-00000004")
    flip(MODEL)(run / "checkpoints" / "step-00000003")
    assert parts().checkpoints.load() == 2
    one.save(3)
    remove(MODEL)(run / "checkpoints" / "step-00000003")
    assert parts().checkpoints.load() == 2
    aside = ["step-00000003.damaged", "step-00000003.damaged-2", "step-00000004.damaged"]
    assert there(run) == ["step-00000001", "step-00000002", *aside]


def test_without_an_intact_checkpoint_nothing_starts_anew(parts: Callable[..., Parts], tmp_path: Path) -> None:
    run = tmp_path / "run"
    parts().save(1, 2)
    remove(MODEL)(run / "checkpoints" / "step-00000001")
    empty(CONTENTS)(run / "checkpoints" / "step-00000002")
    for _ in range(2):  # and the second time no less
        with pytest.raises(
            UserError,
            match=r"no checkpoint in '.*run/checkpoints' is intact \(step-00000002: checkpoint.json is unread",
        ):
            parts().checkpoints.load()
    assert there(run) == ["step-00000001", "step-00000002"]
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"has lost its checkpoints \('last' names 'step-00000002'\); put them back"):
        parts().checkpoints.load()


def test_what_does_not_fit_is_told_in_a_line(parts: Callable[..., Parts], tmp_path: Path) -> None:
    parts().save(1)
    for options in (["--encoder.width", "32"], ["--encoder.depth", "1"]):
        with pytest.raises(UserError, match=r"step-00000001' does not fit: ") as error:
            parts(*options).checkpoints.load()
        assert "\n" not in str(error.value)
    assert there(tmp_path / "run") == ["step-00000001"]  # that is no damage


def test_moments_of_another_model_do_not_fit(parts: Callable[..., Parts], tmp_path: Path) -> None:
    one = parts()
    for name, tensors, message in (
        ("unknown", {"encoder.nothing/exp_avg": torch.zeros(3)}, "no parameter 'encoder.nothing'"),
        (
            "shape",
            {"encoder.patch_embed.proj.weight/exp_avg": torch.zeros(3)},
            r"'encoder.patch_embed.proj.weight' has shape \[3\]",
        ),
    ):
        run = tmp_path / name
        state = one.objective.model.state_dict()
        checkpoint_files.write(run, 1, state, tensors, {"step": 1})
        other = parts_of(one.checkpoints.recipe, run)
        with pytest.raises(UserError, match=f"does not fit: .*{message}"):
            other.checkpoints.load()


def test_versions_that_this_one_cannot_read_are_refused(parts: Callable[..., Parts], tmp_path: Path) -> None:
    parts().save(1)
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    noted = (folder / CONTENTS).read_text()
    (folder / CONTENTS).write_text(noted.replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="written by a later version"):
        parts().checkpoints.load()
    (folder / CONTENTS).unlink()
    (folder / OPTIMIZER).rename(folder / "state.pt")
    with pytest.raises(UserError, match="written by an earlier version, which pickled its state"):
        parts().checkpoints.load()
    assert there(tmp_path / "run") == ["step-00000001"]


def test_what_is_kept(parts: Callable[..., Parts], tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    others = ["notes", "step-00000002.damaged", "step-best"]
    for name in (*others, "step-00000001.partial", "step-00000001.old.partial"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").touch()
    parts("--keep_checkpoints", "2", "--keep_every", "3").save(*range(1, 9))
    assert there(folder.parent) == sorted([f"step-{step:08d}" for step in (3, 6, 7, 8)] + others)
    (folder.parent / "last").write_text("step-00000007\n")
    checkpoint_files.prune(folder.parent, 1, None)
    assert there(folder.parent) == sorted(["step-00000007", "step-00000008", *others])


def test_the_same_step_again_replaces_it(parts: Callable[..., Parts], tmp_path: Path) -> None:
    one = parts()
    one.save(1)
    one.save(1)
    assert there(tmp_path / "run") == ["step-00000001"]
    assert assert_complete(tmp_path / "run") == 1


def run_alone(function: str, *arguments: object, before: tuple[str, ...] = ()) -> str:
    """A function of this file in a process of its own; what it prints."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1])[sys.argv[2]](*sys.argv[3:])"
    command = [*before, sys.executable, "-c", code, __file__, function, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def config(tiny_recipe: Tiny, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(as_yaml(tiny_recipe("--encoder.width", "64")))
    return path


def kill_again_and_again(config: str, out: str, kills: str) -> None:
    """Print what each kill left: whether a writer was in the middle of it, and the step that `load` restored."""
    torch.set_num_threads(1)
    recipe, run, draw = load_recipe(Path(config)), Path(out), random.Random(0)
    for _ in range(int(kills)):
        ready, tell = os.pipe()
        child = os.fork()
        if not child:
            saving = parts_of(recipe, run)
            step = saving.checkpoints.load()
            os.write(tell, b"!")
            while True:
                step += 1
                saving.fill(step)
                saving.checkpoints.save(step)
                saving.fill(-1)
        os.read(ready, 1)
        time.sleep(draw.uniform(0.05, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        unfinished = list(run.glob("checkpoints/*.partial"))
        if (run / "last").exists():
            assert_complete(run)
        after = parts_of(recipe, run)
        step = after.checkpoints.load()
        assert after.holds(step or 0) or not step
        assert not list(run.glob("checkpoints/*.partial"))
        print(json.dumps([bool(unfinished), step]))


def test_killed_at_any_moment_a_run_has_a_complete_checkpoint(config: Path, tmp_path: Path) -> None:
    told = [json.loads(line) for line in run_alone("kill_again_and_again", config, tmp_path / "run", 10).splitlines()]
    steps = [step for _, step in told]
    assert len(steps) == 10
    assert steps == sorted(steps)
    assert steps[-1] > steps[0] > 0
    assert any(unfinished for unfinished, _ in told)


def fill_up(config: str, *runs: str) -> None:
    """Print what saving says where files may not grow, in the first run, and of a full disk, in a second.

    Both go on where there is room again.
    """
    for run in map(Path, runs):
        one = parts_of(load_recipe(Path(config)), run)
        one.save(1)
        written = sum(path.stat().st_size for path in run.glob("checkpoints/*/*"))
        if str(run) == runs[0]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (written // 4, resource.RLIM_INFINITY))
        else:
            (run / "filler").write_bytes(bytes(shutil.disk_usage(run).free - written // 2))
        one.fill(2)
        one.checkpoints.save(2)
        with pytest.raises(UserError) as error:
            one.checkpoints.save(3)
        print(error.value)
        assert there(run) == ["step-00000001"]
        assert assert_complete(run) == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (run / "filler").unlink(missing_ok=True)
        one.save(4)
        assert assert_complete(run) == 4


def test_a_full_disk_is_told_and_leaves_what_was_complete(config: Path, tmp_path: Path) -> None:
    runs, reasons, small = [tmp_path / "run"], ["File too large"], tmp_path / "small"
    before: tuple[str, ...] = ()
    small.mkdir()
    mount = f"mount -t tmpfs -o size=8m none '{small}'"
    unshared = ("unshare", "--map-root-user", "--mount", "sh", "-c")
    if shutil.which("unshare") and not subprocess.run([*unshared, mount], capture_output=True).returncode:
        runs.append(small / "run")
        reasons.append("No space left on device")
        before = (*unshared, f'{mount} && exec "$0" "$@"')
    said = run_alone("fill_up", config, *runs, before=before).splitlines()
    for line, run, reason in zip(said, runs, reasons, strict=True):
        assert line.startswith(f"cannot write '{run}/checkpoints/step-00000002': ")
        assert reason in line
        assert line.endswith(f"; the last complete checkpoint is '{run}/checkpoints/step-00000001'")


def test_a_place_that_cannot_be_written_to_is_told_when_the_run_ends(tiny_recipe: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_recipe("--max_steps", "1"), run)
    shutil.rmtree(run / "checkpoints")
    (run / "last").unlink()
    (run / "checkpoints").touch()
    with pytest.raises(UserError, match=r"cannot write '.*': .*; no checkpoint is complete yet"):
        train(tiny_recipe("--max_steps", "2"), run)


def load_as_two(config: str, out: str, before: str) -> None:
    """One of two processes: print what it restores, what it is told where nothing is intact, and of a failed write.

    `before` is a run with a checkpoint of random numbers: it is restored in parts, and written anew from those.
    """
    recipe, run = load_recipe(Path(config)), Path(out)
    one = parts_of(recipe, run)
    first, told = one.checkpoints.parallel.is_first, []
    one.save(1, 2)
    if first:
        flip(MODEL)(run / "checkpoints" / "step-00000002")
    other = parts_of(recipe, run)
    told.append(str(other.checkpoints.load()))
    assert other.holds(1)
    other.checkpoints.parallel.wait()  # the other may still be reading
    if first:
        (run / "checkpoints").rename(run / "away")
        (run / "checkpoints").touch()
    other.checkpoints.save(3)
    for action in (other.checkpoints.close, other.checkpoints.load):
        try:
            action()
        except UserError as error:
            told.append(str(error))
    (run / f"told-{one.checkpoints.parallel.rank}.json").write_text(json.dumps(told))
    in_parts = replace(recipe, efficiency=replace(recipe.efficiency, parallel="fsdp"))
    divided = parts_of(in_parts, Path(before))
    assert any(isinstance(weight, DTensor) for weight in divided.trained.values())
    assert divided.checkpoints.load() == 1
    divided.checkpoints.save(2)
    divided.fill(-1)
    divided.checkpoints.close()


def test_two_processes_restore_the_same_and_are_told_the_same(config: Path, tmp_path: Path) -> None:
    alone = parts_of(load_recipe(config), tmp_path / "before")
    moments = [moment for state in alone.optimizer.state.values() for moment in state.values()]
    for tensor in [*alone.objective.model.state_dict().values(), *moments]:
        tensor.copy_(torch.rand_like(tensor))
    alone.checkpoints.save(1)
    alone.checkpoints.close()
    launched = tmp_path / "launched.py"
    launched.write_text(
        f"import runpy, sys\nrunpy.run_path({__file__!r})['load_as_two'](*sys.argv[1:])\n"
        "import torch.distributed\ntorch.distributed.destroy_process_group()\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(launched)]
    command = [*launch, str(config), str(tmp_path / "run"), str(tmp_path / "before")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((tmp_path / "run" / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    restored, unwritten, lost = told[0]
    assert restored == "1"
    assert "cannot write" in unwritten
    assert "has lost its checkpoints" in lost
    assert done.stderr.count("is damaged") == 1
    folder = tmp_path / "before" / "checkpoints"
    for name in (MODEL, OPTIMIZER):
        earlier, later = (load_file(folder / f"step-0000000{step}" / name) for step in (1, 2))
        assert earlier.keys() == later.keys()
        for entry, tensor in earlier.items():
            assert torch.equal(tensor, later[entry]), entry
