"""`kamim rerun`: every command that writes a manifest again from it alone, what has changed, and hostile manifests."""

import json
import logging
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from kamim_analysis.cli import main
from kamim_analysis.invocation import before_positional, current, recorded
from kamim_analysis.repetition import REPEATABLE, agreement, changed
from kamim_analysis.results import COLUMNS

OPTIONS = {
    "analyze": "--analyses attention_nmi --image_size 32",
    "compare": "--analyses attention_nmi --seed 3 --image_size 32",
    "knn": "--layer last --few_shot 1",
    "fast_probe": "--epochs 1 --layer last",
    "aggregate": "--epochs 1 --seeds 1 --overwrite",
}
Refused = Callable[..., str]


@pytest.fixture
def place(tmp_path: Path, run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run and pictures, which commands name by relative paths."""
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(run, work / "run")
    shutil.copytree(pictures, work / "data")
    monkeypatch.chdir(work)
    return work


def command_line(command: str) -> list[str]:
    models = ["KAMIM=run", *(["random:run"] if command == "compare" else [])]
    return [command, *models, "--data", "data", "--workers", "0", *OPTIONS[command].split()]


@pytest.fixture
def results(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `kamim knn` wrote there; the test stands elsewhere."""
    main([*command_line("knn"), "--out", "results"])
    elsewhere = place.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return place / "results"


def manifest_of(results: Path) -> Any:
    return json.loads((results / "manifest.json").read_text())


def edit(results: Path, change: Callable[[Any], object]) -> None:
    manifest = manifest_of(results)
    manifest.pop("sha256", None)  # whoever changes a manifest can leave its check sums out
    change(manifest)
    (results / "manifest.json").write_text(json.dumps(manifest))


def test_all_that_write_a_manifest_can_be_run_again() -> None:
    assert set(OPTIONS) == set(REPEATABLE)


@pytest.mark.parametrize("command", REPEATABLE)
def test_the_manifest_is_enough(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    main([*command_line(command), "--out", "results"])
    elsewhere = place.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with caplog.at_level(logging.INFO):
        main(["rerun", str(place / "results" / "manifest.json"), "--out", "again"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("identical: all ")
    assert [record.message for record in caplog.records if record.message.startswith("changed")] == []
    for name in ("metrics.csv", "samples.npz", *(["comparison.csv"] if command == "compare" else [])):
        assert (elsewhere / "again" / name).read_bytes() == (place / "results" / name).read_bytes()
    first, again = manifest_of(place / "results"), manifest_of(elsewhere / "again")
    assert again["rerun"]["command"] == first["rerun"]["command"] == command
    assert again["rerun"]["arguments"] == first["rerun"]["arguments"]


@pytest.mark.parametrize("command", REPEATABLE)
def test_what_is_recorded_is_complete_and_says_the_same(command: str, place: Path) -> None:
    """Less where it writes; with every default that can be written, so that another version's may differ."""
    parser = import_module(f"kamim_analysis.commands.{command}").parser()
    given = [*command_line(command)[1:], "--out", "results"]
    with recorded(parser, given) as chosen:
        found = current()
    assert found is not None
    assert current() is None
    assert not {"--out", "results", "--overwrite"} & set(found.arguments)
    parsed = parser.parse_args(["--out=results", *found.arguments])
    assert vars(parsed) == vars(chosen) | {"overwrite": False}
    told = {argument.partition("=")[0] for argument in found.arguments}
    assert {"--seed", "--batch_size", "--data", "--workers", "--max_unreadable"} <= told


def test_options_that_prevail_stay_before_the_models_after_two_dashes() -> None:
    assert before_positional(["--data=a", "run"], ["--data=b"]) == ["--data=a", "run", "--data=b"]
    assert before_positional(["--data=a", "--", "run"], ["--data=b"]) == ["--data=a", "--data=b", "--", "run"]


def test_other_weights_are_named_and_other_numbers_end_with_code_1(results: Path, capsys: Any, caplog: Any) -> None:
    (file,) = (results.parent / "run" / "checkpoints").glob("*/model.safetensors")
    with safe_open(file, "pt") as opened:
        metadata, state = opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    noise = np.random.default_rng(0)
    for value in state.values():
        if value.is_floating_point():
            value += value.new_tensor(noise.normal(size=value.shape))
    save_file(state, file, metadata)
    file.with_name("checkpoint.json").unlink()  # which would know that these are not the weights that were saved
    with pytest.raises(SystemExit) as left:
        main(["rerun", str(results), "--out", "again"])
    assert left.value.code == 1
    assert "weights of 'KAMIM' had SHA-256" in caplog.text
    assert capsys.readouterr().out.splitlines()[-1].startswith("different: ")
    assert Path("again", "metrics.csv").is_file()


def test_pictures_that_changed_are_told(results: Path, caplog: Any) -> None:
    picture = results.parent / "data" / "red" / "3.png"
    picture.write_bytes(picture.read_bytes() + b"\0")  # decodes to the same pixels
    main(["rerun", str(results), "--out", "again"])
    assert "some have another size" in caplog.text
    caplog.clear()
    picture.rename(picture.with_name("9.png"))
    main(["rerun", str(results), "--out", "other"])
    assert "others are chosen than then" in caplog.text


def test_versions_that_changed_are_named(results: Path, caplog: Any) -> None:
    edit(results, lambda manifest: manifest["versions"].update(numpy="0.1", gone="2"))
    main(["rerun", str(results), "--out", "again"])
    told = [record.message for record in caplog.records if record.message.startswith("changed: ")]
    assert told == [
        f"changed: numpy was 0.1, is {np.__version__}; numbers may differ",
        "changed: gone was 2, is none; numbers may differ",
    ]


def test_data_and_directory_that_moved(results: Path, refused: Refused, capsys: Any) -> None:
    (results.parent / "data").rename(results.parent.parent / "moved")
    assert "where the data lie elsewhere now, give --data" in refused("rerun", results, "--out", "again")
    assert not Path("again").exists()
    main(["rerun", str(results), "--out", "again", "--data", str(results.parent.parent / "moved")])
    assert "identical" in capsys.readouterr().out
    work = results.parent.rename(results.parent.with_name("renamed"))
    (work.parent / "moved").rename(work / "data")
    assert "give --directory DIR" in refused("rerun", work / "results", "--out", "more")
    main(["rerun", str(work / "results"), "--out", "more", "--directory", str(work)])
    assert "identical" in capsys.readouterr().out


def test_a_model_that_is_gone_is_told_with_where_it_was_looked_for(results: Path, refused: Refused) -> None:
    shutil.rmtree(results.parent / "run")
    line = refused("rerun", results, "--out", "again")
    assert "unknown model 'run'" in line
    assert f"relative paths are taken from {str(results.parent)!r} (--directory)" in line


def test_a_manifest_alone_is_run_but_not_compared(results: Path, capsys: Any) -> None:
    shutil.copy(results / "manifest.json", "alone.json")
    main(["rerun", "alone.json", "--out", "again"])
    assert "nothing to compare with" in capsys.readouterr().out
    assert Path("again", "metrics.csv").read_bytes() == (results / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": "train"}, "asks for 'train'; only analyze, compare"),
        ({"command": "_frozen"}, "asks for '_frozen'"),
        ({"command": "../../os"}, "asks for '../../os'"),
        ({"command": ["knn"]}, "'rerun' does not tell"),
        ({"directory": "/\0"}, "'rerun' does not tell"),
        ({"directory": "/nowhere"}, "no directory '/nowhere'"),
        ({"arguments": "run --data data"}, "'rerun' does not tell"),
        ({"arguments": ["run", "--data", 3]}, "'rerun' does not tell"),
        ({"shell": "true"}, "'rerun' does not tell"),
        ({"arguments": ["run", "--data", "data", "--out", "stolen"]}, "asks for an output of its own"),
        ({"arguments": ["run", "--data", "data", "--out=stolen"]}, "asks for an output of its own"),
        ({"arguments": ["run", "--data", "data", "--overwrite"]}, "or to overwrite one"),
        ({"arguments": ["--help"]}, "asks for the command's help"),
        ({"arguments": ["run", "--data", "data", "--exec", "sh"]}, "what this version does not do: unrecognized"),
    ],
)
def test_a_hostile_manifest_is_refused(change: Any, message: str, results: Path, refused: Refused) -> None:
    edit(results, lambda manifest: manifest["rerun"].update(change))
    before = sorted(results.parent.rglob("*"))
    assert message in refused("rerun", results, "--out", "again")
    assert not Path("again").exists()
    assert sorted(results.parent.rglob("*")) == before


def test_what_is_no_manifest_is_refused_with_what_is(results: Path, run: Path, refused: Refused) -> None:
    recipe = refused("rerun", run / "config.yaml", "--out", "again")
    assert f"kamim train --config {str(run / 'config.yaml')!r} --out NEW" in recipe
    assert refused("rerun", run, "--out", "again") == recipe
    for content, message in [
        ("{", "no readable JSON"), ("[" * 100_000, "no readable JSON"), ("[]", "no manifest of an analysis"),
        ('{"command": ["kamim", "knn"]}', "earlier version"), ('{"command": [], "rerun": null}', "no command that"),
    ]:  # fmt: skip
        Path("manifest.json").write_text(content)
        assert message in refused("rerun", "manifest.json", "--out", "again")
    assert "no manifest at" in refused("rerun", "gone.json", "--out", "again")
    assert "already holds another run" in refused("rerun", results, "--out", results)


def table(*rows: tuple[Any, ...]) -> pd.DataFrame:
    """Rows of (layer, value, low, high)."""
    full = [("m", "a", layer, None, "s", value, low, high, 24, "p") for layer, value, low, high in rows]
    return pd.DataFrame(full, columns=COLUMNS).astype({"layer": "Int64", "head": "Int64"})


def test_agreement_by_hand() -> None:
    nan = float("nan")
    first = table((1, 1.0, 0.9, 1.1), (2, 100.0, 90.0, 110.0), (None, 0.5, nan, nan), (4, 2.0, 1.0, 3.0))
    same = agreement(first, first.iloc[::-1])
    assert (same.holds, str(same)) == (True, "identical: all 4 numbers are the original's")
    rounded = agreement(first, table((1, 1.00001, 0.9, 1.1), (2, 100.0, 90.0, 110.0), (None, 0.5, nan, nan),
                                     (4, 2.0, 1.0, 3.0)))  # fmt: skip
    assert (rounded.holds, rounded.unequal, rounded.beyond_rounding) == (True, 1, 0)
    assert str(rounded).startswith("equal to rounding: 1 of 4 numbers differ")
    other = agreement(first, table((1, 1.2, 0.9, 1.1), (2, 101.0, 90.0, 110.0), (None, nan, nan, nan), (5, 0, 0, 0)))
    assert (other.rows, other.lost, other.gained, other.unequal, other.beyond_rounding) == (3, 1, 1, 3, 3)
    assert (other.holds, other.outside) == (False, 1)
    assert other.largest == "'m', a.s: 0.5, now nan"


def test_rows_of_the_same_names_are_matched_in_their_order() -> None:
    twice = table((1, 1.0, 0.0, 2.0), (1, 3.0, 2.0, 4.0))
    assert agreement(twice, twice).rows == 2


def test_surroundings_are_compared_by_name() -> None:
    now = {"device": "cpu", "versions": {"torch": "2", "new": "1"}}
    then = {"device": "cpu", "versions": {"torch": "1"}, "seed": 3}
    assert changed(then, now) == ["torch was 1, is 2", "new was none, is 1"]
    assert changed({"versions": "broken\n"}, now)[0] == "device was none, is cpu"
