"""Damaged files: emptied, cut short, and with single bits changed, read again by the commands that read them.

Never a traceback; and wherever a check sum stands beside a file, never a number of other bytes than were written.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kamim_analysis.cli import main
from kamim_analysis.errors import UserError
from kamim_analysis.feature_store import open_store
from kamim_analysis.results import Results

FLIPS = 12


def damaged(content: bytes, seed: int, flips: int = FLIPS) -> dict[str, bytes]:
    """The file as it may come back from a bad disk, by what happened to it; half of the bits are near its beginning."""
    draw, found = random.Random(seed), {"emptied": b"", "cut": content[: len(content) // 2]}
    for i in range(flips):
        at = draw.randrange(min(len(content), 1000) if i % 2 else len(content))
        flipped = bytearray(content)
        flipped[at] ^= 1 << draw.randrange(8)
        found[f"bit of byte {at}"] = bytes(flipped)
    assert all(one != content for one in found.values())
    return found


@pytest.fixture(scope="module")
def results(tiny_run: Path, class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analysis of two models with arrays of several files, to be read only."""
    out = tmp_path_factory.mktemp("results") / "results"
    data = ["--data", str(class_folders), "--images", "12", "--workers", "0"]
    main(["analyze", f"a={tiny_run}", f"b=random:{tiny_run}", *data, "--analyses=attention_distance,knn,explorer",
          "--out", str(out)])  # fmt: skip
    return out


def read_all(folder: Path) -> None:
    found = Results.open(folder)
    assert len(found.metrics)
    assert len(found.comparison)
    for path in folder.glob("*.npz"):
        for label in found.models:
            found.arrays(path.stem, label)


def test_every_file_of_results_is_known_by_its_check_sum(results: Path, tmp_path: Path) -> None:
    files = [path for path in results.iterdir() if path.suffix in (".csv", ".npz", ".json")]
    assert {"metrics.csv", "comparison.csv", "manifest.json", "samples.npz", "explorer.npz"} <= {f.name for f in files}
    shutil.copytree(results, tmp_path / "copy")
    read_all(tmp_path / "copy")
    for seed, path in enumerate(files):
        content, copy = path.read_bytes(), tmp_path / "copy" / path.name
        for bytes_ in damaged(content, seed).values():
            copy.write_bytes(bytes_)
            if path.name == "manifest.json" and _says_the_same(copy, path):
                continue
            with pytest.raises(UserError, match=r"is damaged, or was changed after it was written; put back a copy"):
                read_all(tmp_path / "copy")
        copy.write_bytes(content)


def _says_the_same(one: Path, other: Path) -> bool:
    """A bit changed white space, or the name of the entry of check sums, which leaves the rest as it was."""
    try:
        told = [json.loads(path.read_bytes()) for path in (one, other)]
    except ValueError:
        return False
    whole = told[1].pop("sha256")
    kept = told[0].pop("sha256", None)
    return (
        "sha256" in other.read_text()
        and (kept == whole or kept is None)
        and all(told[0].get(key) == value for key, value in told[1].items())
    )


@pytest.mark.parametrize("name", ["metrics.csv", "manifest.json", "figures/attention_distance.png"])
def test_commands_tell_of_it_in_one_line(name: str, results: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(results, tmp_path / "copy")
    path = tmp_path / "copy" / name
    path.write_bytes(path.read_bytes()[:-100])
    assert Path(name).name in refused("figures", tmp_path / "copy", "--figures", "knn")
    if "figures" not in name:
        assert name in refused("table", tmp_path / "copy")


def test_a_model_is_not_opened_from_a_damaged_checkpoint(
    tiny_run: Path, class_folders: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """The weights themselves hold no check sum, but the checkpoint that they lie in does."""
    shutil.copytree(tiny_run, tmp_path / "run")
    (path,) = (tmp_path / "run" / "checkpoints").glob("*/model.safetensors")
    content = path.read_bytes()
    for bytes_ in damaged(content, 0).values():
        path.write_bytes(bytes_)
        said = refused("knn", tmp_path / "run", "--data", class_folders, "--workers", 0, "--out", tmp_path / "out")
        assert "model.safetensors" in said
        assert not (tmp_path / "out").exists()
    flipped = bytearray(content)
    flipped[-3] ^= 16
    path.write_bytes(flipped)
    said = refused("knn", tmp_path / "run", "--data", class_folders, "--workers", 0, "--out", tmp_path / "out")
    assert "is damaged: its SHA-256 is not the one that checkpoint.json noted" in said


def test_a_damaged_index_of_shards_is_one_line_or_no_loss(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pack", str(class_folders), "--workers", "0", "--out", str(tmp_path / "packed")])
    content, refusals = (tmp_path / "packed" / "index.json").read_bytes(), 0
    every = [bytes_ for seed in range(4) for bytes_ in damaged(content, seed).values()]
    for number, bytes_ in enumerate(every):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "packed", copy)
        (copy / "index.json").write_bytes(bytes_)
        for command in (
            ["pack", str(copy), "--check"],
            ["pack", str(class_folders), "--workers", "0", "--out", str(copy)],
        ):
            capsys.readouterr()
            try:
                main(command)
            except SystemExit:
                refusals += 1
                assert capsys.readouterr().err.count("kamim: error: ") == 1
    assert refusals > len(every) / 2


RUN = (
    "--encoder.image_size 32 --encoder.width 16 --encoder.depth 2 --encoder.heads 2 --optim.batch_size 8 "
    "--optim.epochs 2 --optim.warmup_epochs 0.5 --efficiency.workers 0 --monitor.every_epochs 1 --monitor.images 12"
).split()
#: what is written for people and other programs alone
UNREAD = {"figures", "report.html", "tensorboard"}
#: files whose numbers nothing vouches for: no check sum stands beside them
UNKNOWN = ("encoder.safetensors", "encoder.json", "model.safetensors", "config.json", "preprocessor_config.json")


@pytest.fixture(scope="module")
def places(
    tiny_run: Path, class_folders: Path, results: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """One of each kind of directory that is written here, to be read only."""
    place = tmp_path_factory.mktemp("places")
    data = ["--data", str(class_folders), "--workers", "0", "--images", "10"]
    main(
        ["features", str(tiny_run), *data, "--batch_size", "4", "--shard_pictures", "4", "--out", str(place / "store")]
    )
    main(["pack", str(class_folders), "--workers", "0", "--shard_pictures", "12", "--out", str(place / "shards")])
    main(["export", str(tiny_run), "--format", "timm", "--out", str(place / "export")])
    return {"run": tiny_run, "results": results} | {name: place / name for name in ("store", "shards", "export")}


def readers(path: Path, kind: str, place: Path, run: Path, pictures: Path, out: Path) -> list[list[str]]:
    """The commands that read a file of such a directory."""
    data = ["--data", str(place if kind == "shards" else pictures), "--images", "10", "--workers", "0"]
    knn = ["knn", f"model={place if kind in ('run', 'export') else run}", *data, "--out", str(out), "--overwrite"]
    resume = ["train", "--recipe", "kamim_photographs", "--out", str(place), "--data.source", str(pictures), *RUN]
    encoder = ["knn", f"model={place / 'encoder.safetensors'}", *knn[2:]]
    of_run = [knn, resume] if path.name == "last" else [resume]
    return {
        "run": [encoder] if path.name.startswith("encoder") else of_run,
        "store": [[*knn, "--features", str(place)]],
        "shards": [knn, ["pack", str(place), "--check"]],
        "export": [knn],
        "results": [["table", str(place)]],
    }[kind]


def outcome(command: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    """Exit code, the numbers that came of a command, and the lines that it said, less the progress."""
    shutil.rmtree(out, ignore_errors=True)
    capsys.readouterr()
    code = 0
    try:
        main(command)
    except SystemExit as left:
        code = int(left.code or 0)
    said = capsys.readouterr()
    numbers = (out / "metrics.csv").read_text() if (out / "metrics.csv").is_file() else ""
    return code, numbers + (said.out if command[0] == "table" else ""), said.err.splitlines()


@pytest.mark.parametrize("kind", ["run", "store", "shards", "export", "results"])
def test_any_damage_to_any_file_is_told_in_a_line_or_changes_nothing(
    kind: str, places: dict[str, Path], class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    place, out, told = tmp_path / kind, tmp_path / "out", 0
    files = [path for path in sorted(places[kind].rglob("*")) if path.is_file() and not UNREAD & {*path.parts}]
    shutil.copytree(places[kind], place)
    whole: dict[tuple[str, ...], str] = {}
    for seed, path in enumerate(files):
        copy = place / path.relative_to(places[kind])
        for what, content in damaged(path.read_bytes(), seed, flips=1 + (kind != "run")).items():
            for command in readers(copy, kind, place, places["run"], class_folders, out):
                shutil.rmtree(place)
                shutil.copytree(places[kind], place)
                if tuple(command) not in whole:
                    code, whole[tuple(command)], _ = outcome(command, out, capsys)
                    assert code == 0
                copy.write_bytes(content)
                caplog.clear()
                code, found, lines = outcome(command, out, capsys)
                errors = [line for line in lines if "error" in line]
                assert len(errors) == (code == 2), (command, what, lines)
                assert code in (0, 2)
                told += code == 2
                vouched = path.name not in UNKNOWN or "checkpoints" in path.parts
                warned = any(record.levelname == "WARNING" for record in caplog.records)
                assert not vouched or code == 2 or warned or found == whole[tuple(command)], (command, what)
    assert told >= 4


def test_a_bit_of_any_stored_feature_is_known_and_stores_without_check_sums_open(
    places: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(places["store"], tmp_path / "store")
    path = tmp_path / "store" / "val" / "00000.safetensors"
    content, tensors = path.read_bytes(), load_file(path)
    filled = [name for name, values in tensors.items() if values.numel()]
    found = set()
    for at in range(len(content) - sum(values.nbytes for values in tensors.values()), len(content), 4):
        flipped = bytearray(content)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"damaged or missing \(the check sum of \S+ differs\)") as told:
            [open_store(tmp_path / "store").split("val").tensor(0, name) for name in filled]
        found.add(str(told.value).partition("check sum of ")[2].split()[0])
    assert found == {*filled}
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"the check sum of \S+ is missing"):
        open_store(tmp_path / "store").split("val")
    about = json.loads((places["store"] / "features.json").read_text())
    index = tmp_path / "store" / "features.json"
    index.write_text(json.dumps({key: value for key, value in about.items() if key not in ("crc32", "sha256")}))
    assert len(open_store(tmp_path / "store").split("val").labels) == 10
