"""`kamim pack`, and the commands that read what it wrote."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from kamim_analysis.cli import main
from kamim_analysis.lock import locked

Refused = Callable[..., str]
TRAIN = (
    "--recipe kamim_photographs --encoder.image_size 32 --encoder.width 16 --encoder.depth 2 --encoder.heads 2 "
    "--optim.batch_size 8 --optim.epochs 2 --optim.warmup_epochs 0.5 --efficiency.workers 0 --monitor.every_epochs 0"
).split()


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-six small JPEGs of two classes, which are copied as they are."""
    root = tmp_path_factory.mktemp("jpegs") / "tree"
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for label, tint in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = draw.normal(tint, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).resize((48, 40)).save(root / split / label / f"{i}.jpg")
    return root


@pytest.fixture(scope="module")
def shards(jpegs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """They in shards of five."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    main(["pack", str(jpegs), "--out", str(out), "--shard_pictures", "5"])
    return out


def test_what_it_says(jpegs: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pack", str(jpegs), "--out", str(tmp_path / "all")])
    said = capsys.readouterr()
    assert re.search(
        r"all: 24 pictures of train in 1 shard, 0\.\d MB, 12 pictures of val in 1 shard, 0\.\d MB\n", said.out
    )
    assert re.search("packing train .* 100%", said.err)
    main(["pack", "--check", str(shards)])
    assert re.search(r"12 pictures of val in 3 shards, 0\.\d MB: all as they were packed\n", capsys.readouterr().out)


def test_training_on_shards_is_training_on_their_source(jpegs: Path, shards: Path, tmp_path: Path) -> None:
    main(["train", *TRAIN, "--data.source", str(jpegs), "--out", str(tmp_path / "tree")])
    main(["train", *TRAIN, "--data.source", str(shards), "--out", str(tmp_path / "shards"), "--max_steps", "4"])
    again = ["--efficiency.workers", "2"]
    main(["train", *TRAIN, "--data.source", str(shards), "--out", str(tmp_path / "shards"), *again])
    tree, packed = (load_file(tmp_path / run / "encoder.safetensors") for run in ("tree", "shards"))
    assert all((tree[name] == packed[name]).all() for name in tree)


def test_a_few_shards_at_a_time_resume_exactly(shards: Path, tmp_path: Path) -> None:
    few = [*TRAIN, "--data.source", str(shards), "--data.mixed_shards", "2"]
    main(["train", *few, "--out", str(tmp_path / "whole")])
    main(["train", *few, "--out", str(tmp_path / "parts"), "--max_steps", "4"])
    main(["train", *few, "--out", str(tmp_path / "parts")])
    whole, parts = (load_file(tmp_path / run / "encoder.safetensors") for run in ("whole", "parts"))
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_mixing_shards_that_are_none_is_refused(jpegs: Path, refused: Refused, tmp_path: Path) -> None:
    error = refused("train", *TRAIN, "--data.source", jpegs, "--data.mixed_shards", 2, "--out", tmp_path / "run")
    assert "data.mixed_shards 2 is for packed shards" in error
    assert not (tmp_path / "run").exists()


def test_knn_and_features_find_the_same_in_shards(jpegs: Path, shards: Path, tmp_path: Path) -> None:
    numbers = []
    for data in (jpegs, f"file://{shards}"):
        out = tmp_path / Path(data).name
        common = ["random:vit_tiny", "--image_size", "32", "--data", str(data)]
        main(["features", *common, "--out", f"{out}_features", "--layer", "last"])
        main(["knn", *common, "--k", "1,5", "--out", f"{out}_knn", "--features", f"{out}_features"])
        metrics = (tmp_path / f"{out}_knn" / "metrics.csv").read_text()
        numbers.append([re.findall(r"top1_k\d+,[\d.,]+", line) for line in metrics.splitlines()])
    assert numbers[0] == numbers[1] != []


def wait(until: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not until() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that take a while to pack."""
    root = tmp_path_factory.mktemp("larger") / "tree"
    root.mkdir()
    draw = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).resize((900, 600)).save(root / f"{i}.jpg")
    return root


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(
    larger: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--shard_pictures", "6", "--size", "100"]
    main(["pack", str(larger), "--out", str(tmp_path / "whole"), *options])
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "kamim_analysis", "pack", str(larger), "--out", str(out), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    wait(lambda: (out / "train-000002.tar").is_file(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "index.json").exists()
    # a shard that a failing disk has changed
    first = out / "train-000000.tar"
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    main(["pack", str(larger), "--out", str(out), *options])
    assert "train-000000.tar is damaged; it is packed again" in caplog.text
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    assert len(names) == 1 + 2 * 10
    assert all((out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)


def test_a_second_packer_is_refused(larger: Path, refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    command = [sys.executable, "-m", "kamim_analysis", "pack", str(larger), "--out", str(out), "--workers", "0"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait(lambda: (out / "packing.json").is_file(), process)
    assert f"is being written by pid {process.pid}" in refused("pack", larger, "--out", out)
    assert process.wait(timeout=120) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--size", "20"], "another packing (size is 256, not 20)"),
        (["--quality", "80"], "another packing (quality is 92, not 80)"),
        (["--shard_pictures", "6"], "another packing (shard_pictures is 5, not 6)"),
    ],
)
def test_other_settings_in_the_same_directory_are_refused(
    jpegs: Path, shards: Path, refused: Refused, changes: list[str], message: str
) -> None:
    assert message in refused("pack", jpegs, "--out", shards, "--shard_pictures", 5, *changes)


def test_other_pictures_in_the_same_directory_are_refused(
    jpegs: Path, refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "shards"
    for path in sorted(jpegs.glob("val/*/*.jpg")):
        copy = source / path.relative_to(jpegs / "val")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    main(["pack", str(source), "--out", str(out)])
    source.rename(tmp_path / "moved")
    main(["pack", str(tmp_path / "moved"), "--out", str(out)])  # the same, wherever it lies
    capsys.readouterr()
    (tmp_path / "moved/red/0.jpg").rename(tmp_path / "moved/blue/6.jpg")
    assert "of other pictures than" in refused("pack", tmp_path / "moved", "--out", out)
    (tmp_path / "moved/blue/6.jpg").unlink()
    assert "(12 pictures of train, not 11)" in refused("pack", tmp_path / "moved", "--out", out)
    assert "of the splits train, not train, val" in refused("pack", jpegs, "--out", out)


def test_mistakes(jpegs: Path, shards: Path, refused: Refused, tmp_path: Path) -> None:
    assert "give --out DIR" in refused("pack", jpegs)
    assert "no data at 'nowhere'" in refused("pack", "nowhere", "--out", tmp_path / "out")
    assert "'96' is above 95" in refused("pack", jpegs, "--out", tmp_path / "out", "--quality", 96)
    assert f"no packed shards at '{jpegs}'" in refused("pack", "--check", jpegs)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("keep")
    assert "holds other files" in refused("pack", jpegs, "--out", tmp_path / "full")
    with locked(tmp_path / "held"):
        assert "is being written by" in refused("pack", jpegs, "--out", tmp_path / "held")
    assert not (tmp_path / "out").exists()


def test_checking_names_what_is_damaged(
    jpegs: Path, refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    main(["pack", str(jpegs), "--out", str(out), "--shard_pictures", "5"])
    content = bytearray((out / "train-000003.tar").read_bytes())
    content[1000] ^= 1
    (out / "train-000003.tar").write_bytes(content)
    (out / "val-000001.tar").unlink()
    (out / "val-000000.safetensors").write_bytes(b"")
    capsys.readouterr()
    error = refused("pack", "--check", out)
    assert "3 files are damaged: train-000003.tar (its check sum differs), val-000000.safetensors of" in error
    assert "val-000001.tar': No such file" in error
