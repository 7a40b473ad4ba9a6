"""Files that vanish or change while a command works with them.

Python tells of each file before it opens it; there the fault is brought about, so that it comes in mid-run every time.
"""

import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from kamim_analysis.cli import main
from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import parse
from kamim_analysis.results import Results
from kamim_analysis.source import read_source, weights_digest

TINY = (
    "--encoder.image_size 32 --encoder.width 16 --encoder.depth 2 --encoder.heads 2 --optim.batch_size 8 "
    "--optim.epochs 2 --optim.warmup_epochs 0.5 --monitor.every_epochs 0 --checkpoint_every 3"
).split()
WATCHED: list[Callable[[Path], None]] = []
Watch = Callable[[str, int, Callable[[], object]], list[Path]]


def _tell(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and WATCHED and isinstance(arguments[0], str | os.PathLike):
        for one in WATCHED:
            one(Path(arguments[0]))


sys.addaudithook(_tell)


@pytest.fixture
def when() -> Iterator[Watch]:
    """`when(PATTERN, N, ACTION)` acts just before the Nth opening of such a file; the files opened until then."""

    def watch(pattern: str, number: int, action: Callable[[], object]) -> list[Path]:
        opened: list[Path] = []

        def told(path: Path) -> None:
            if len(opened) < number and path.match(pattern):
                opened.append(path)
                if len(opened) == number:
                    action()

        WATCHED.append(told)
        return opened

    yield watch
    WATCHED.clear()


@pytest.fixture
def pictures(class_folders: Path, tmp_path: Path) -> Path:
    """A copy of the class folders, to be changed."""
    shutil.copytree(class_folders, tmp_path / "pictures")
    return tmp_path / "pictures"


def another_picture(path: Path) -> None:
    """In its place, by other pixels and of another size in bytes."""
    with Image.open(path) as image:
        image.rotate(90, expand=True).convert("L").save(path)


BREAKS: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "other bytes": lambda path: path.write_bytes(b"no picture any more"),
}


def training(data: Path, out: Path, *more: str, workers: int = 0) -> list[str]:
    source = ["--data.source", str(data), "--efficiency.workers", str(workers), "--data.max_unreadable", "0.5"]
    return ["train", "--recipe", "kamim_photographs", "--out", str(out), *source, *TINY, *more]


def evaluation(command: str, run: Path, data: Path, out: Path) -> list[str]:
    chosen = {"analyze": ["--analyses=knn,attention_distance"], "knn": [], "features": ["--batch_size", "8"]}[command]
    models = [str(run)] if command == "features" else [f"a={run}", f"b=random:{run}"]
    return [command, *models, "--data", str(data), "--workers", "0", *chosen, "--out", str(out)]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_pictures_that_vanish_or_break_during_a_training_are_named_and_it_goes_on(
    pictures: Path, tmp_path: Path, when: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["red/1.png", "green/2.png", "blue/3.png"]

    def damage() -> None:
        for name, breaks in zip(names, BREAKS.values(), strict=True):
            breaks(pictures / name)

    opened = when("*.png", 30, damage)  # in the second of two epochs
    main(training(pictures, tmp_path / "run"))
    assert len(opened) == 30
    left = {str(path.relative_to(pictures)) for path in opened[24:29]}
    for name in names:
        named = [line for line in warned(caplog) if f"'{name}'" in line]
        assert len(named) == (name not in left)
    assert any(name not in left for name in names)
    assert (tmp_path / "run" / "last").read_text() == "step-00000006\n"


@pytest.mark.parametrize(("command", "how"), [("analyze", "deleted"), ("knn", "emptied"), ("knn", "other bytes")])
def test_pictures_that_vanish_or_break_between_two_models_are_named(
    command: str, how: str, tiny_run: Path, pictures: Path, tmp_path: Path, when: Watch,
    refused: Callable[..., str],
) -> None:  # fmt: skip
    opened = when("*.png", 25, lambda: BREAKS[how](opened[23]))
    with pytest.raises(SystemExit) as left:
        main(evaluation(command, tiny_run, pictures, tmp_path / "out"))
    assert (len(opened), left.value.code) == (25, 2)  # one of 24 is more than 1%
    name = opened[23].relative_to(pictures).as_posix()
    results = Results.open(tmp_path / "out")
    assert results.manifest["data"]["unreadable"] == [name]
    assert results.manifest["data"]["changed"] == []
    assert dict(zip(results.metrics.model, results.metrics.images, strict=True)) == {"a": 24, "b (random)": 23}
    assert results.comparison.empty


@pytest.mark.parametrize("command", ["analyze", "knn"])
def test_a_picture_that_is_another_one_for_the_second_model_is_told(
    command: str, tiny_run: Path, pictures: Path, tmp_path: Path, when: Watch, refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    opened = when("*.png", 25, lambda: another_picture(opened[23]))
    with pytest.raises(SystemExit) as left:
        main(evaluation(command, tiny_run, pictures, tmp_path / "out"))
    name = opened[23].relative_to(pictures).as_posix()
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kamim: error")]
    assert f"1 of 24 images changed while they were read ({name})" in line
    assert Results.open(tmp_path / "out").manifest["data"]["changed"] == [name]


def test_features_of_pictures_that_change_meanwhile_are_told_and_not_taken(
    tiny_run: Path, pictures: Path, tmp_path: Path, when: Watch, refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    opened = when("*.png", 10, lambda: another_picture(opened[2]))
    with pytest.raises(SystemExit) as left:
        main(evaluation("features", tiny_run, pictures, tmp_path / "store"))
    assert left.value.code == 2
    assert "1 of 24 images changed while they were read" in capsys.readouterr().err
    data = ["--data", pictures, "--workers", 0, "--features", tmp_path / "store"]
    assert "are of other pictures" in refused("knn", tiny_run, *data, "--out", tmp_path / "out")


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_go_away_during_a_training_are_one_line_and_the_checkpoint_stays(
    workers: int, pictures: Path, tmp_path: Path, when: Watch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    moved = tmp_path / "moved"
    when("*.png", 100, lambda: pictures.rename(moved))
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as left:
        main(training(pictures, run, "--optim.epochs", "20", workers=workers))
    assert left.value.code == 2
    assert moved.is_dir()
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "error" in line.lower()] == [
        "kamim: error: none of the 24 images of pictures could be read"
    ]
    assert "Traceback" not in " ".join(said)
    assert warned(caplog) == []
    assert (run / "checkpoints" / (run / "last").read_text().strip() / "model.safetensors").is_file()
    moved.rename(pictures)
    main(training(pictures, run, "--optim.epochs", "20", "--max_steps", "12", "--force"))


def test_data_that_go_away_during_an_evaluation_are_one_line_and_a_hundred_names(
    tiny_run: Path, class_folders: Path, tmp_path: Path, when: Watch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for label in ("red", "blue"):
        (tmp_path / "many" / label).mkdir(parents=True)
        for i in range(100):
            os.link(class_folders / label / f"{i % 8}.png", tmp_path / "many" / label / f"{i}.png")
    opened = when("*.png", 50, lambda: (tmp_path / "many").rename(tmp_path / "moved"))
    with pytest.raises(SystemExit) as left:
        main(evaluation("knn", tiny_run, tmp_path / "many", tmp_path / "out"))
    assert (len(opened), left.value.code) == (50, 2)
    assert capsys.readouterr().err.count("kamim: error: none of the 200 images of many could be read") == 1
    assert len(warned(caplog)) == 101
    assert warned(caplog)[-1] == "more than 100 images are unreadable; the others are counted"
    assert not (tmp_path / "out").exists()


@pytest.fixture
def shards(class_folders: Path, tmp_path: Path) -> Path:
    """Three shards of eight pictures."""
    main(["pack", str(class_folders), "--workers", "0", "--shard_pictures", "8", "--out", str(tmp_path / "packed")])
    return tmp_path / "packed"


def renamed_over(path: Path) -> None:
    shutil.copy(path, path.with_name("other"))
    with path.with_name("other").open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    path.with_name("other").replace(path)


SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "replaced by rename": (renamed_over, ""),
    "removed while open": (Path.unlink, ""),
    "overwritten": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "its check sum differs"),
    "cut short": (lambda path: os.truncate(path, 512), "the shard ends there"),
}


@pytest.mark.parametrize("how", SHARDS)
def test_a_shard_that_changes_during_a_training(
    how: str, shards: Path, tmp_path: Path, when: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is open stays as it was, whatever takes its name; bytes that change under it are named and left out."""
    change, fault = SHARDS[how]
    (changed, *_) = sorted(shards.glob("*.tar"))
    opened = when("metrics.jsonl", 1, lambda: change(changed))
    main(training(shards, tmp_path / "run", "--log_every", "1"))
    assert len(opened) == 1
    assert [fault in line and changed.name in line for line in warned(caplog)] == [True] * (8 if fault else 0)
    assert (tmp_path / "run" / "last").read_text() == "step-00000006\n"


@pytest.mark.parametrize("how", ["overwritten", "removed before it is read"])
def test_a_shard_that_changes_during_an_analysis(
    how: str, shards: Path, tiny_run: Path, tmp_path: Path, when: Watch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    first = sorted(shards.glob("*.tar"))[0]
    if how == "overwritten":  # in the middle of the pictures: all three are open
        opened = when("*.tar", 3, lambda: SHARDS[how][0](first))
    else:
        opened = when("*.tar", 1, lambda: [path.unlink() for path in shards.glob("*.tar")])
    with pytest.raises(SystemExit) as left:
        main(evaluation("analyze", tiny_run, shards, tmp_path / "out"))
    assert opened
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kamim: error")]
    if how == "overwritten":
        assert "images (" in line
        assert all(f"damaged in {first.name}" in one for one in warned(caplog))
        assert 0 < len(warned(caplog)) <= 8
    else:
        assert "cannot read" in line
        assert ".tar': No such file or directory" in line


WEIGHTS: dict[str, Callable[[Path, Path], object]] = {
    "replaced by rename": lambda path, other: other.replace(path),
    "overwritten": lambda path, other: path.write_bytes(other.read_bytes()),
    "removed": lambda path, _other: path.unlink(),
}


@pytest.mark.parametrize("opening", [2, 3, 4])
@pytest.mark.parametrize("how", WEIGHTS)
def test_weights_that_change_while_they_are_read_are_not_taken_for_those_of_their_hash(
    how: str, opening: int, tiny_run: Path, class_folders: Path, tmp_path: Path, when: Watch,
    refused: Callable[..., str],
) -> None:  # fmt: skip
    """The file is opened to be checked, twice to be read (its header, its tensors) and to be hashed."""
    weights, other = tmp_path / "weights.safetensors", tmp_path / "other.safetensors"
    shutil.copy(tiny_run / "encoder.safetensors", weights)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    opened = when(weights.name, opening, lambda: WEIGHTS[how](weights, other))
    said = refused("knn", weights, "--data", class_folders, "--workers", 0, "--out", tmp_path / "out")
    assert len(opened) == opening
    assert f"{str(weights)!r} was replaced or removed while it was read" in said
    assert not (tmp_path / "out").exists()


def test_a_model_is_opened_whole_while_it_is_trained_and_its_checkpoints_go(
    class_folders: Path, tmp_path: Path
) -> None:
    run, found, told = tmp_path / "run", set(), []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            if not (run / "last").is_file():
                continue
            try:
                source = read_source(Path(parse(str(run)).target), parse(str(run)).reading)
                found.add((source.description["step"], source.sha256))
            except UserError as error:
                told.append(str(error))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        main(training(class_folders, run, "--optim.epochs", "20", "--checkpoint_every", "1", "--keep_checkpoints", "1"))
    finally:
        ended.set()
        reader.join()
    steps, digests = zip(*found, strict=True)
    assert len(set(steps)) == len(set(digests)) == len(found) > 2
    (last,) = (run / "checkpoints").glob("step-*/model.safetensors")
    assert (60, weights_digest(last)) not in found or weights_digest(last) in digests
    for line in told:
        assert "\n" not in line
        assert "was replaced or removed while" in line or "no weights file" in line or "is no training run" in line


def test_a_recipe_that_is_edited_during_its_training_is_noticed_by_the_next(
    class_folders: Path, tmp_path: Path, when: Watch, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, calm = tmp_path / "run", tmp_path / "calm"
    main(training(class_folders, calm))

    def edit() -> None:
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("\nseed: 0\n", "\nseed: 7\n"))

    opened = when("*.png", 30, edit)
    main(training(class_folders, run))
    assert len(opened) == 30
    assert "\nseed: 7\n" in (run / "config.yaml").read_text()
    assert (run / "encoder.safetensors").read_bytes() == (calm / "encoder.safetensors").read_bytes()
    capsys.readouterr()
    said = refused(*training(class_folders, run))
    assert "already holds another run" in said
    assert "seed" in said


@pytest.mark.parametrize("how", ["moved", "rewritten"])
def test_results_that_are_replaced_while_they_are_drawn_are_not_mixed_with_others(
    how: str, tiny_run: Path, class_folders: Path, tmp_path: Path, when: Watch, refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    results, other = tmp_path / "results", tmp_path / "other"
    for out, seed in ((results, "0"), (other, "1")):
        main([*evaluation("knn", tiny_run, class_folders, out), "--seed", seed])
    before = {path.name: path.read_bytes() for path in other.rglob("*") if path.is_file()}

    def replace() -> None:
        if how == "moved":
            results.rename(tmp_path / "old")
            other.rename(results)
        else:
            shutil.copytree(other, results, dirs_exist_ok=True)

    opened = when("knn.csv", 1, replace)
    capsys.readouterr()
    said = refused("figures", results, "--figures", "knn")
    assert len(opened) == 1
    assert "other results have come to" in said or "cannot write" in said
    now = {path.name: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert json.loads(now["manifest.json"]) == json.loads(before["manifest.json"])
    assert now == before
