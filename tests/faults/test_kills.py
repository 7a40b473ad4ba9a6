"""Kills, signals and clocks: real processes that die at chosen moments, and what the next command finds."""

import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.utils.data import Dataset

from kamim_analysis.cli import main
from kamim_analysis.errors import UserError
from kamim_analysis.output import check, written_whole
from kamim_analysis.worker_processes import load_batches

Start = Callable[..., "Child"]
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Child:
    """A process that runs `work` in a group of its own, as forked: torch need not be imported again."""

    def __init__(self, work: Callable[[], object], said: Path) -> None:
        self.said_in, self.code = said, 0
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._run(work))

    def _run(self, work: Callable[[], object]) -> int:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout = sys.stderr = self.said_in.open("w", buffering=1)
        logging.root.handlers.clear()  # pytest's: what is logged goes to standard error, as on a command line
        try:
            work()
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else 0
        except BaseException as error:
            print(f"Traceback of {error!r}")
            return 1
        return 0

    def until(self, done: Callable[[], object]) -> None:
        """Wait for a moment that comes while the process lives."""
        deadline = time.monotonic() + 120
        while not done():
            assert os.waitpid(self.pid, os.WNOHANG) == (0, 0), f"it has ended: {self.said()}"
            assert time.monotonic() < deadline
            time.sleep(0.0005)

    def send(self, number: int) -> None:
        """To it and its data workers, as a terminal and a cluster do."""
        os.killpg(self.pid, number)

    def ended(self) -> int:
        """Its exit code, or less the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> str:
        return self.said_in.read_text()


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts `kamim` with arguments, or a function; whatever is left at the end is killed."""
    folder, children = tmp_path_factory.mktemp("said"), []

    def begin(work: Sequence[object] | Callable[[], object]) -> Child:
        run = work if callable(work) else lambda: main([str(argument) for argument in work])
        children.append(Child(run, folder / str(len(children))))
        return children[-1]

    yield begin
    for child in children:
        for process in (one for one in psutil.process_iter() if _group(one.pid) == child.pid):
            process.kill()


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file; the time a report or a manifest was made at is not of interest."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dying(moment: int, calls: Sequence[str], *, after: bool) -> None:
    """Let this process kill itself at the n-th of these calls of `os`, before it or right behind it."""
    seen = 0

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*places: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == moment and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*places, **options)
            finally:
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        return called

    for name in calls:
        setattr(os, name, watched(getattr(os, name)))


def analyze(run: Path, pictures: Path, out: Path, *more: object) -> list[str]:
    given = ["--data", pictures, "--analyses", "attention_distance", "--batch_size", 2, "--workers", 0, "--out", out]
    return [str(one) for one in ("analyze", f"kamim={run}", *given, *more)]


def features(run: Path, pictures: Path, out: Path, *more: object) -> list[str]:
    given = ["--data", pictures, "--batch_size", 2, "--shard_pictures", 4, "--workers", 0, "--out", out]
    return [str(one) for one in ("features", run, *given, *more)]


@pytest.fixture(scope="module")
def analyzed(tiny_run: Path, class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of an analysis; tests copy them."""
    out = tmp_path_factory.mktemp("analyzed") / "out"
    main(analyze(tiny_run, class_folders, out))
    return out


@pytest.fixture
def results(analyzed: Path, tmp_path: Path) -> Path:
    """Earlier results, to be replaced or drawn anew."""
    return Path(shutil.copytree(analyzed, tmp_path / "out"))


def write_new(out: Path) -> None:
    with written_whole(out) as aside:
        for name in ("manifest.json", "new"):
            (aside / name).write_text("new")


@pytest.mark.parametrize("after", [False, True])
def test_killed_while_results_take_their_place_either_the_old_or_the_new_are_there(
    start: Start, tmp_path: Path, *, after: bool
) -> None:
    seen, moment, code = [], 0, -9
    while code:
        moment += 1
        out = tmp_path / str(moment) / "out"
        out.mkdir(parents=True)
        for name in ("manifest.json", "old"):
            (out / name).write_text("old")

        def replace_them(moment: int = moment, out: Path = out) -> None:
            dying(moment, ["mkdir", "rename", "unlink", "rmdir"], after=after)
            write_new(out)

        code = start(replace_them).ended()
        assert code in (0, -signal.SIGKILL)
        left = names(out.parent)
        with pytest.raises(UserError, match="already holds another run"):  # never taken for a free place
            check(out, overwrite=False)
        found = names(out)
        assert found in (["manifest.json", "old"], ["manifest.json", "new"])
        seen.append((left, found))
        write_new(out)
        assert names(out.parent) == ["out"]
    # between the two renames, while the old ones are removed, and with the lock alone
    assert ([".out.lock", ".out.partial", ".out.replaced"], ["manifest.json", "old"]) in seen
    assert ([".out.lock", ".out.replaced", "out"], ["manifest.json", "new"]) in seen
    assert len(seen) >= 8


@pytest.mark.parametrize("reached", ["", "metrics.csv", "figures", "report.html.partial"])
def test_an_analysis_killed_anywhere_leaves_the_earlier_results(
    reached: str, start: Start, results: Path, tiny_run: Path, class_folders: Path
) -> None:
    before, partial = contents(results), results.parent / ".out.partial"
    child = start(analyze(tiny_run, class_folders, results, "--overwrite"))
    child.until((partial / reached).exists)
    child.send(signal.SIGKILL)
    assert child.ended() == -signal.SIGKILL
    if not reached:
        assert partial.exists()
    assert contents(results) == before
    write_new(results)  # nothing of the killed one stands in the way
    assert names(results.parent) == ["out"]


def test_figures_killed_anywhere_leave_whole_figures_and_a_whole_report(
    start: Start, analyzed: Path, results: Path
) -> None:
    asked = ["--figures", "attention_distance", "--style", "talk"]
    old = contents(analyzed)
    main(["figures", str(results), *asked])
    new = contents(results)
    assert {"report.html", "figures/attention_distance.png"} <= {name for name in old if old[name] != new[name]}
    seen, moment, code = [], 0, -9
    while code:
        moment += 1
        shutil.rmtree(results)
        shutil.copytree(analyzed, results)

        def redraw(moment: int = moment) -> None:
            dying(moment, ["rename", "replace"], after=False)
            main(["figures", str(results), *asked])

        code = start(redraw).ended()
        assert code in (0, -signal.SIGKILL)
        left = contents(results)
        kept = "figures/" if (results / "figures").is_dir() else ".figures.replaced/"
        drawn = {name.replace(kept, "figures/"): digest for name, digest in left.items() if name.startswith(kept)}
        assert drawn in [{n: d for n, d in one.items() if n.startswith("figures/")} for one in (old, new)]
        assert left["report.html"] in (old["report.html"], new["report.html"])
        seen.append((kept, drawn.items() <= new.items(), left["report.html"] == new["report.html"]))
        if kept != "figures/":
            main(["figures", str(results), *asked])
            assert contents(results) == new
    assert len(seen) == 4  # two renames, the report, and the one that was left alone
    assert seen[-1] == ("figures/", True, True)
    assert (".figures.replaced/", False, False) in seen


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["analyze", "features", "figures", "pack"])
def test_a_signal_ends_a_command_and_leaves_nothing_half_written(
    command: str, number: signal.Signals, start: Start, results: Path, tiny_run: Path, class_folders: Path
) -> None:
    folder = results.parent
    before = contents(folder)
    asked, begun = {
        "analyze": (analyze(tiny_run, class_folders, folder / "new", "--workers", 2), ".new.partial"),
        "features": (features(tiny_run, class_folders, folder / "new", "--workers", 2), "new/features.json"),
        "figures": (["figures", results], "out/.figures.partial"),
        "pack": (["pack", class_folders, "--out", folder / "new", "--shard_pictures", 2], "new/packing.json"),
    }[command]
    child = start(asked)
    child.until((folder / begun).exists)
    child.send(number)
    assert child.ended() == 128 + number
    assert "Traceback" not in child.said()
    assert ("kamim: interrupted" in child.said()) == (number == signal.SIGINT)
    left = contents(folder)
    assert not [name for name in left if "partial" in name or "lock" in name]
    assert {name: digest for name, digest in left.items() if not name.startswith("new/")} == before
    if command in ("features", "pack"):  # what is whole stays, and the same command goes on
        main([str(one) for one in asked])
        assert {*contents(folder / "new")} > {name.removeprefix("new/") for name in left if name.startswith("new/")} - {
            "packing.json"
        }


@pytest.mark.parametrize("command", ["analyze", "features", "figures"])
def test_a_second_writer_is_refused_and_the_first_is_not_disturbed(
    command: str, start: Start, results: Path, tiny_run: Path, class_folders: Path, refused: Callable[..., str]
) -> None:
    out = results if command == "figures" else results.parent / "new"
    asked, held = {
        "analyze": (analyze(tiny_run, class_folders, out), out.with_name(".new.lock")),
        "features": (features(tiny_run, class_folders, out), out / ".lock"),
        "figures": (["figures", results], results / ".figures.lock"),
    }[command]
    child = start(asked)
    child.until(lambda: held.is_file() and held.read_text().endswith("\n"))
    child.send(signal.SIGSTOP)
    told = refused(*asked)
    assert f"is being written by pid {child.pid} on " in told
    child.send(signal.SIGCONT)
    assert child.ended() == 0, child.said()
    assert "Traceback" not in child.said()
    whole = results.parent / "whole"
    alone = {"analyze": analyze(tiny_run, class_folders, whole), "features": features(tiny_run, class_folders, whole)}
    if command in alone:
        main(alone[command])
        timed = ("manifest.json", "report.html")
        assert {**contents(out), **dict.fromkeys(timed, "")} == {**contents(whole), **dict.fromkeys(timed, "")}
    assert not [name for name in contents(results.parent) if "partial" in name or "lock" in name]


def test_one_that_was_checked_before_another_had_written_does_not_replace_it(start: Start, tmp_path: Path) -> None:
    check(tmp_path / "out", overwrite=False)
    assert start(lambda: write_new(tmp_path / "out")).ended() == 0
    before = contents(tmp_path)

    def write_late() -> None:
        with written_whole(tmp_path / "out", overwrite=False):
            pytest.fail("it writes")

    with pytest.raises(UserError, match="already holds another run"):
        write_late()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("who", ["pid {pid} on {host} since 1970-01-01", "pid 1 on elsewhere since 2100-01-01", ""])
def test_what_a_killed_process_left_blocks_nobody(who: str, results: Path, tiny_run: Path, class_folders: Path) -> None:
    folder = results.parent
    text = who.format(pid=os.getpid(), host=os.uname().nodename)  # the number may be another process's by now
    for place in ("store/.lock", "out/.figures.lock", ".out.lock", "out/.figures.partial/half.png"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(text)
    (folder / "store" / "features.json.partial").write_text('{"mo')
    (folder / ".out.partial" / "figures").mkdir(parents=True)
    (folder / ".out.partial" / "metrics.csv").write_text("half")
    main(features(tiny_run, class_folders, folder / "store"))
    assert names(folder / "store") == ["features.json", "val"]
    main(["figures", str(results), "--figures", "attention_distance"])
    assert not [name for name in names(results) if name.startswith(".")]
    assert "half.png" not in names(results / "figures")
    write_new(results)
    assert names(folder) == ["out", "store"]


def test_an_output_directory_on_another_disk_stays_there(tmp_path: Path) -> None:
    (tmp_path / "disk" / "results").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "results")
    for _ in range(2):
        write_new(tmp_path / "out")
        assert names(tmp_path) == ["disk", "out"]
        assert names(tmp_path / "disk") == ["results"]
        assert names(tmp_path / "out") == ["manifest.json", "new"]


class Deadly(Dataset[int]):
    """Numbers; one kills the worker that reads it, the first time or always."""

    def __init__(self, died: Path, *, always: bool) -> None:
        self.died, self.always = died, always

    def __getitem__(self, number: int) -> int:
        if number == 5 and (self.always or not self.died.exists()):
            self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def test_a_worker_that_is_killed_is_replaced_and_the_same_batches_follow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batches = [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert [*load_batches(Deadly(tmp_path / "died", always=False), batches, list, workers=2)] == batches
    assert (tmp_path / "died").exists()
    (record,) = caplog.records
    assert "was killed by SIGKILL: the system may be out of memory; fewer --workers take less" in record.getMessage()


def test_workers_that_die_again_and_again_are_one_line_with_advice(tmp_path: Path) -> None:
    read = load_batches(Deadly(tmp_path / "died", always=True), [[5]], list, workers=1)
    with pytest.raises(UserError, match=r"^data workers died 3 times .* by SIGKILL: .*; fewer --workers take less$"):
        next(read)


@pytest.mark.parametrize("command", ["analyze", "features", "knn", "pack"])
def test_a_worker_killed_in_a_command_changes_no_number(
    command: str, start: Start, tmp_path: Path, tiny_run: Path, class_folders: Path
) -> None:
    asked: dict[str, Callable[[Path], list[str]]] = {
        "analyze": lambda out: analyze(tiny_run, class_folders, out),
        "features": lambda out: features(tiny_run, class_folders, out),
        "knn": lambda out: ["knn", *analyze(tiny_run, class_folders, out)[1:4], "--batch_size", "2", "--out", str(out)],
        "pack": lambda out: ["pack", str(class_folders), "--shard_pictures", "4", "--out", str(out)],
    }
    main([*asked[command](tmp_path / "whole"), "--workers", "0"])
    child = start([*asked[command](tmp_path / "out"), "--workers", "1"])
    child.until(lambda: psutil.Process(child.pid).children())
    (worker,) = psutil.Process(child.pid).children()
    worker.kill()
    assert child.ended() == 0, child.said()
    assert f"data worker {worker.pid} was killed by SIGKILL" in child.said()
    timed = {"manifest.json", "report.html"}
    whole, found = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert whole.keys() == found.keys()
    assert {name for name in whole if whole[name] != found[name]} <= timed


def train(pictures: Path, out: Path) -> list[str]:
    small = "--encoder.image_size 32 --encoder.width 16 --encoder.depth 1 --encoder.heads 2 --optim.batch_size 8"
    more = "--optim.epochs 2 --optim.warmup_epochs 0.5 --efficiency.workers 0 --monitor.every_epochs 0"
    saved = "--checkpoint_every 1 --keep_checkpoints 9 --log_every 1"
    given = ["--recipe", "kamim_photographs", "--out", str(out), "--data.source", str(pictures)]
    return ["train", *given, *f"{small} {more} {saved}".split()]


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_clock_that_jumps_and_times_of_files_decide_nothing(
    start: Start, class_folders: Path, tmp_path: Path
) -> None:
    def train_by_a_jumping_clock() -> None:
        real, read = time.time, 0

        def jumping() -> float:
            nonlocal read
            read += 1
            with (tmp_path / "read").open("a") as asked:
                asked.write(".")
            return real() + (-1) ** read * 3e8 * (read % 3)  # nine and nineteen years back and forth

        time.time = jumping
        main(train(class_folders, tmp_path / "run"))

    main(train(class_folders, tmp_path / "whole"))
    assert len(logged(tmp_path / "whole")) == 6
    child = start(train_by_a_jumping_clock)
    child.until((tmp_path / "run" / "checkpoints" / "step-00000003").is_dir)
    child.send(signal.SIGKILL)
    assert child.ended() == -signal.SIGKILL
    assert (tmp_path / "read").stat().st_size > 0
    # the newest checkpoint is of 1970, the oldest of the year 2100
    for i, path in enumerate(sorted((tmp_path / "run").rglob("*"))):
        os.utime(path, (0, 0) if i % 2 else (4102444800, 4102444800))
    for i, path in enumerate(sorted((tmp_path / "run" / "checkpoints").iterdir(), reverse=True)):
        os.utime(path, (86400 * i, 86400 * i))
    assert start(train_by_a_jumping_clock).ended() == 0
    steps = [line["step"] for line in logged(tmp_path / "run")]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert all(line["images_per_second"] > 0 for line in logged(tmp_path / "run"))
    for name in ("encoder.safetensors", "checkpoints/step-00000006/optimizer.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_sweep_that_is_ended_lets_its_training_save(start: Start, class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = train(class_folders, out / "only")[5:]
    settings = dict(zip(given[::2], given[1::2], strict=True)) | {"--optim.epochs": "2000"}
    lines = [f"  {name.removeprefix('--')}: {value}" for name, value in settings.items()]
    (tmp_path / "mine.yaml").write_text("\n".join(["recipe: kamim_photographs", "overrides:", *lines]))
    child = start(["sweep", tmp_path / "mine.yaml", "--out", out])
    child.until(lambda: [*out.glob("*/last")])
    (training,) = psutil.Process(child.pid).children()
    os.kill(child.pid, signal.SIGTERM)  # it alone, as scancel does with a batch script
    assert child.ended() == 128 + signal.SIGTERM, child.said()
    assert not training.is_running()
    (run,) = (path.parent for path in out.glob("*/last"))
    saved = int((run / "last").read_text().strip().removeprefix("step-"))
    assert [line["step"] for line in logged(run)] == [*range(1, saved + 1)]
    assert f"step {saved} saved after SIGTERM; the same command goes on" in (out / f"{run.name}.log").read_text()
