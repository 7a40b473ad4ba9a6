"""The same command twice: the same bytes, whatever process, workers, random state and order of listing."""

import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from kamim_analysis.cli import main
from kamim_analysis.plugins import names
from kamim_analysis.repetition import agreement
from kamim_analysis.results import Results

#: of each command, less models, data and output
COMMANDS = {
    "compare": "--image_size 32 --analyses attention_nmi,knn",
    "knn": "--layer all --pooling mean,central --few_shot 1,2",
    "fast_probe": "--epochs 2 --seeds 2",
    "aggregate": "--epochs 1 --seeds 2 --learning_rates 0.03,0.3",
    "features": "--layer all --shard_pictures 7",
}
#: what tells when and by which command it came about, and is compared apart
_TOLD = {"manifest.json", "report.html", "index.json"}

#: words in the names of what a clock measured
_CLOCK = {"second", "seconds", "time"}

ANALYSES = names("kamim_analysis.analyses")
#: those whose numbers a small change of the features changes a little: no neighbour, no t-SNE
SMOOTH = ["attention_distance", "attention_nmi", "fourier", "self_attention_tokens", "token_norms"]

Outputs = dict[str, Path]


def arguments(command: str, tiny_run: Path, class_folders: Path, out: Path) -> list[str]:
    """The command line of one of `COMMANDS`."""
    models = [f"KAMIM={tiny_run}"] if command == "features" else [f"KAMIM={tiny_run}", f"control=random:{tiny_run}"]
    return [command, *models, "--data", str(class_folders), "--out", str(out), *COMMANDS[command].split()]


def analysed(run: str, data: str, out: str, analyses: Sequence[str], **loading: int) -> Path:
    """Analyses without figures, of which those of `kamim compare` stand for all."""
    from kamim_analysis.analyses._run import Request, analyze
    from kamim_analysis.model_spec import parse

    Path(out).mkdir()
    request = Request(models=[parse(f"KAMIM={run}")], data=data, analyses=analyses, image_size=32, **loading)
    analyze(request, Path(out))
    return Path(out)


@pytest.fixture(scope="module")
def apart(tiny_run: Path, class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """All in a process of its own, whose sets of strings have an order of their own, without workers."""
    root = tmp_path_factory.mktemp("apart")
    lines = [[*arguments(name, tiny_run, class_folders, root / name), "--workers", "0"] for name in COMMANDS]
    code = (
        "import json, runpy, sys\nfrom kamim_analysis.cli import main\n"
        "every = sys.argv[3].split(',')\nrunpy.run_path(sys.argv[1])['analysed'](*sys.argv[4:], every, workers=0)\n"
        "for line in json.loads(sys.argv[2]): main(line)"
    )
    done = run(
        [sys.executable, "-c", code, __file__, json.dumps(lines), ",".join(ANALYSES), tiny_run, class_folders,
         root / "all"],
        capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "PYTHONHASHSEED": "5"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: root / name for name in [*COMMANDS, "all"]}


@pytest.fixture
def listed_backwards(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A file system that lists every directory backwards; how often it was asked."""
    scandir, listdir, asked = os.scandir, os.listdir, []

    class Backwards:
        """What `os.walk` needs of `os.scandir`."""

        def __init__(self, *given: Any) -> None:
            asked.append(given)
            with scandir(*given) as entries:
                self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            return next(self.entries)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    monkeypatch.setattr(os, "listdir", lambda *given: sorted(listdir(*given), reverse=True))
    return lambda: len(asked)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file by its name, less `_TOLD`."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in _TOLD]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.fixture
def otherwise(listed_backwards: Callable[[], int], class_folders: Path) -> Callable[[], int]:
    """Other global random states, and directories that are listed backwards."""
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 - it is the global state that must not matter
    torch.manual_seed(3)
    assert os.listdir(class_folders) == ["red", "green", "blue"]  # noqa: PTH208
    return listed_backwards


def differing(first: Path, again: Path) -> list[str]:
    """Names of the files that are not the same, to the byte."""
    one, other = contents(first), contents(again)
    assert one.keys() == other.keys()
    assert one
    return [name for name in one if one[name] != other[name]]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_writes_the_same_bytes(
    command: str, apart: Outputs, tiny_run: Path, class_folders: Path, tmp_path: Path, otherwise: Callable[[], int]
) -> None:
    """Metrics, comparison, samples, figures with their numbers, stores; with one worker and another process."""
    main([*arguments(command, tiny_run, class_folders, tmp_path / "out"), "--workers", "1"])
    assert otherwise(), "the data were not listed"
    assert differing(apart[command], tmp_path / "out") == []


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create 4 worker processes"
)  # more than some machines have cores
def test_every_analysis_gives_the_same_bytes_with_four_workers(
    apart: Outputs, tiny_run: Path, class_folders: Path, tmp_path: Path, otherwise: Callable[[], int]
) -> None:
    analysed(str(tiny_run), str(class_folders), str(tmp_path / "out"), ANALYSES, workers=4)
    assert otherwise(), "the data were not listed"
    assert differing(apart["all"], tmp_path / "out") == []
    assert set(Results.open(tmp_path / "out").metrics.analysis) >= {"attribution", "dense", "knn", "similarity"}


def test_another_batch_size_gives_the_same_numbers_to_rounding(
    tiny_run: Path, class_folders: Path, tmp_path: Path
) -> None:
    """A matrix product of fewer pictures may add up in another order: the last digits of float32 may differ."""
    first, second = (
        Results.open(
            analysed(str(tiny_run), str(class_folders), str(tmp_path / f"{size}"), SMOOTH, workers=0, batch_size=size)
        ).metrics
        for size in (24, 5)
    )
    assert agreement(first, second).holds
    assert len(first) > 30


def test_a_recipe_trains_the_same_weights_again(
    tiny_run: Path, tmp_path: Path, otherwise: Callable[[], int], kamim: Callable[..., CompletedProcess[str]]
) -> None:
    """`kamim train --config RUN/config.yaml --out NEW`: here in a process of its own, with a worker, and here."""
    command = ["train", "--config", str(tiny_run / "config.yaml")]
    done = kamim(
        *command, "--out", tmp_path / "apart", "--efficiency.workers", "2", env=os.environ | {"PYTHONHASHSEED": "5"}
    )
    assert done.returncode == 0, done.stderr
    main([*command, "--out", str(tmp_path / "here")])
    assert otherwise(), "the data were not listed"
    weights = {path.relative_to(tiny_run): path.read_bytes() for path in tiny_run.rglob("*.safetensors")}
    assert weights
    for again in (tmp_path / "apart", tmp_path / "here"):
        assert numbers(again) == numbers(tiny_run)
        for name, content in weights.items():
            first, second = (load(one) for one in (content, (again / name).read_bytes()))
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first), name


def numbers(directory: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, less what the clock decides."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in line for line in lines)
    return [{key: value for key, value in line.items() if not _CLOCK & set(key.split("_"))} for line in lines]
