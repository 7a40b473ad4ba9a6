"""`kamim features`: killed at any moment and started again it ends with the same bytes, as do two processes."""

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kamim_analysis.cli import main
from kamim_analysis.encoders import create
from kamim_analysis.extraction import Loading, Wanted
from kamim_analysis.feature_store import open_store
from kamim_analysis.frozen_features import frozen_features
from kamim_analysis.model_spec import parse
from kamim_analysis.opening import open_model
from kamim_analysis.sampling import open_data
from kamim_analysis.weights_file import write_state

Refused = Callable[..., str]
# twenty-four pictures: six shards
SHARDS = ("--batch_size", "2", "--shard_pictures", "4", "--workers", "0")


def arguments(model: Path, pictures: Path, out: Path, *more: str) -> list[str]:
    return ["features", str(model), "--data", str(pictures), "--out", str(out), *SHARDS, *more]


def contents(store: Path) -> dict[str, str]:
    """SHA-256 of every file, whatever it is."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of three blocks, as training leaves one."""
    torch.manual_seed(1)  # random:RUN, another model to the tests, draws with seed 0
    encoder = create("vit_tiny", 32, sizes={"width": 16, "depth": 3, "heads": 2, "patch_size": 8})
    named = ("input_size", "mean", "std", "crop_pct", "interpolation")
    config = {name: encoder.pretrained_cfg[name] for name in named}
    path = tmp_path_factory.mktemp("run") / "encoder.safetensors"
    described = {"architecture": encoder.architecture, "model_args": encoder.model_args, "pretrained_cfg": config}
    write_state(path, encoder.state_dict(), described)
    return path


@pytest.fixture(scope="module")
def whole(run: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole") / "store"
    main(arguments(run, pictures, out))
    found = contents(out)
    assert sorted(found) == ["features.json", *(f"val/0000{i}.safetensors" for i in range(6))]
    return found


def killed_at(moment: int, call: str, *command: str) -> bool:
    """Run a command in a process that kills itself at the n-th call of os.fsync or os.replace, or right behind it.

    At os.fsync half of what was written is lost, as the disk may lose it. Whether it was killed, or done before.
    """
    child = os.fork()
    if child == 0:
        seen, called = 0, getattr(os, call.split()[-1])

        def dying(*places: object) -> None:
            nonlocal seen
            seen += 1
            if seen == moment and call == "fsync":
                torn = os.fstat(places[0]).st_size // 2  # type: ignore[arg-type]
                if os.path.isfile(f"/proc/self/fd/{places[0]}"):  # noqa: PTH113
                    os.truncate(f"/proc/self/fd/{places[0]}", torn)
            if seen == moment and not call.startswith("after"):
                os.kill(os.getpid(), signal.SIGKILL)
            called(*places)
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, call.split()[-1], dying)
        main(list(command))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("call", ["fsync", "replace", "after replace"])
def test_killed_at_any_moment_and_restarted_it_ends_with_the_same_bytes(
    call: str, run: Path, pictures: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    moment, killed, left = 1, True, set()
    while killed:
        out = tmp_path / str(moment)
        killed = killed_at(moment, call, *arguments(run, pictures, out))
        left.add(tuple(sorted(path.name for path in out.rglob("*") if path.is_file())))
        main(arguments(run, pictures, out))
        assert contents(out) == whole, moment
        moment += 1
    # an index and six shards, each flushed itself and then its folder
    assert moment - 2 == (14 if call == "fsync" else 7)
    assert len(left) >= 7


def test_killed_again_and_again_it_still_ends_with_the_same_bytes(
    run: Path, pictures: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out, times = tmp_path / "store", 0
    while killed_at(3, "replace", *arguments(run, pictures, out)):
        times += 1
    assert times == 3
    assert contents(out) == whole


def test_kill_minus_9_from_outside(run: Path, pictures: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "store"
    command = [sys.executable, "-m", "kamim_analysis", *arguments(run, pictures, out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not list(out.glob("val/*")) and process.poll() is None:
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    shutil.copytree(out, tmp_path / "left")
    main(arguments(run, pictures, out))
    assert contents(out) == whole
    kept = {name: one for name, one in contents(tmp_path / "left").items() if not name.endswith((".partial", ".lock"))}
    assert kept.items() <= whole.items()


def test_two_processes_write_the_same_bytes(run: Path, pictures: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "store"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port, "-m", "kamim_analysis"]
    # as many threads as in the tests: so that the same kernels run
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *arguments(run, pictures, out)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("24 pictures of val") == 1
    assert contents(out) == whole


def test_workers_and_the_path_change_nothing_but_the_path(
    run: Path, pictures: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    moved = Path(shutil.copy(run, tmp_path / "moved.safetensors"))
    main([*arguments(moved, pictures, tmp_path / "store"), "--workers", "1"])
    found = contents(tmp_path / "store")
    assert {name for name in found if found[name] != whole[name]} == {"features.json"}


def test_what_it_says(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kamim_analysis")
    command = arguments(run, pictures, tmp_path / "store", "--layer", "0,last", "--pooling", "mean,patches")
    main(command)
    said = capsys.readouterr().out
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert said == f"{tmp_path / 'store'}: mean, patches of layers 0, 3, 24 pictures of val, {size / 1e6:.1f} MB\n"
    assert re.search(r"0\.1 MB to write to .*store \([\d,]+ MB free\)", caplog.text)
    main(command)
    assert "is complete already" in caplog.text
    assert capsys.readouterr().out == said


def read(model: Path, pictures: Path, store: Path, wanted: Wanted) -> torch.Tensor:
    opened = open_model(parse(str(model)))
    data = open_data(str(pictures), None, None, 0, max_unreadable=0.0)
    features = frozen_features(opened, data, wanted, Loading(), [store]).test
    assert features.indices.tolist() == data.test_indices
    return features.by_key[wanted.layers[0], wanted.poolings[0]]


def test_a_model_is_the_same_wherever_it_lies(run: Path, pictures: Path, tmp_path: Path) -> None:
    main(arguments(run, pictures, tmp_path / "store"))
    wanted = Wanted(layers=(1,), poolings=("central",))
    moved = Path(shutil.copy(run, tmp_path / "moved.safetensors"))
    assert torch.equal(*(read(model, pictures, tmp_path / "store", wanted) for model in (run, moved)))


def test_an_evaluation_reads_a_store_and_refuses_one_of_another_model(
    refused: Refused, run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(run, pictures, tmp_path / "store"))
    knn = ["knn", str(run), "--data", str(pictures), "--layer", "all", "--k", "1,3", "--batch_size", "2"]
    tables = []
    for name, more in (("extracted", []), ("read", ["--features", str(tmp_path / "store")])):
        main([*knn, *more, "--out", str(tmp_path / name)])
        tables.append((tmp_path / name / "metrics.csv").read_text())
    assert tables[0] == tables[1]
    capsys.readouterr()
    knn[1] = f"random:{run}"
    line = refused(*knn, "--out", tmp_path / "refused", "--features", tmp_path / "store")
    assert f"are of another model than 'random:{run}' (its weights differ); extract them with kamim features" in line
    assert not (tmp_path / "refused").exists()


def test_a_weight_that_is_nan_is_named_by_layer_and_picture(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with safe_open(run, "pt") as file:
        metadata = file.metadata()
    state = load_file(run)
    state["blocks.2.mlp.fc2.bias"][0] = float("nan")
    save_file(state, tmp_path / "damaged.safetensors", metadata)
    with pytest.raises(SystemExit) as left:
        main(arguments(tmp_path / "damaged.safetensors", pictures, tmp_path / "store"))
    assert left.value.code == 2
    bar, line = capsys.readouterr().err.splitlines()  # the bar that had begun ends before the error is told
    assert "features of val" in bar
    assert line.startswith("kamim: error: damaged.safetensors: layer 3 (central) of image 'blue/0.png' is not finite")
    assert [name for name in contents(tmp_path / "store") if name != "features.json"] == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layer", "first"], "'first' is neither 'all', 'last' nor numbers of layers separated by commas"),
        (["--layer", "4"], "layer 4 does not exist: this encoder has layers 0 (the embedding) to 3"),
        (["--pooling", "meen"], "unknown pooling 'meen' (did you mean 'mean'?)"),
        (["--pooling", "attentive"], "pooling 'attentive' is learned"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--norm", "some"], "invalid choice: 'some'"),
        (["--data", "nowhere"], "no data at 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    more: list[str], message: str, refused: Refused, run: Path, pictures: Path, tmp_path: Path
) -> None:
    assert message in refused(*arguments(run, pictures, tmp_path / "store", *more))
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_left_alone(refused: Refused, run: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    assert "holds other files" in refused(*arguments(run, pictures, tmp_path))
    assert "is a file" in refused(*arguments(run, pictures, tmp_path / "mine.txt"))
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_other_settings_are_refused_in_one_line(
    refused: Refused, run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(run, pictures, tmp_path / "store"))
    capsys.readouterr()
    line = refused(*arguments(run, pictures, tmp_path / "store", "--norm", "all"))
    assert "holds other features (norm is last, not all)" in line
    line = refused(*arguments(Path(f"random:{run}"), pictures, tmp_path / "store"))
    assert "holds other features (of another model: its weights differ)" in line


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    run: Path, pictures: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "store"
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "from kamim_analysis.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", limited, *arguments(run, pictures, out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert [name for name in contents(out) if name.endswith(".partial")] == []
    main(arguments(run, pictures, out))
    assert contents(out) == whole


def test_too_many_unreadable_pictures_are_told_each_time(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    for name in ("red/1.png", "blue/7.png"):
        (tmp_path / "pictures" / name).write_bytes(b"broken")
    command = arguments(run, tmp_path / "pictures", tmp_path / "store")
    for _ in range(2):  # the second time from the store
        with pytest.raises(SystemExit) as left:
            main(command)
        assert left.value.code == 2
        assert "2 of 24 images (8.3%) could not be read" in capsys.readouterr().err
    assert open_store(tmp_path / "store").missing() == []
    main([*command, "--max_unreadable", "0.1"])
