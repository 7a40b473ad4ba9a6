"""`kamim probe`: on a run, again, opened as a model, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from kamim_analysis.cli import main
from kamim_analysis.opening import load_encoder
from kamim_analysis.results import METRICS, Results

Refused = Callable[..., str]
SMALL = (
    "--optim.batch_size 6 --optim.epochs 3 --optim.warmup_epochs 0.5 --optim.learning_rate 0.05 --efficiency.workers 0 "
    "--monitor.every_epochs 1 --objective.held_out 0.25 --objective.mixing none"
).split()


def kamim(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def probed(run: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probes") / "probe"
    kamim("probe", *SMALL, f"KAMIM={run}", "--data", pictures, "--layer", "last", "--norm", "trained", "--out", out)
    return out


def test_it_leaves_a_run_and_results(probed: Path, run: Path) -> None:
    found = Results.open(probed / "results")
    (row,) = found.metrics.itertuples()
    assert (row.model, row.analysis, row.layer, row.statistic, row.images) == ("KAMIM", "linear_probe", 2, "top1", 6)
    assert row.protocol.startswith("evaluation=linear_probe; pooling=mean; norm=trained; resolution=32; crop=1.0")
    (entry,) = found.manifest["models"]
    assert entry["training"]["objective"]["class_path"] == "KAMIM"
    assert entry["training"] == json.loads((run / "encoder.json").read_text())["training"]
    assert entry["evaluation_recipe"]["objective"]["init_args"]["norm"] == "trained"
    assert found.manifest["data"]["neighbours"] == 18


def test_opened_as_a_model_it_is_the_model_that_was_probed(probed: Path, run: Path, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_encoder(str(probed))(images), load_encoder(str(run))(images))
    described = json.loads((probed / "encoder.json").read_text())
    assert described["training"]["objective"]["class_path"] == "KAMIM"


def test_the_same_command_again_tells_the_same(
    probed: Path, run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (probed / "results" / METRICS).read_bytes()
    kamim("probe", f"KAMIM={run}", *SMALL, "--data", pictures, "--layer", "last", "--norm", "trained", "--out", probed)
    value = pd.read_csv(probed / "results" / METRICS).value[0]
    assert f"KAMIM: linear probe of layer 2, top-1 {value:.4f} [" in capsys.readouterr().out
    assert (probed / "results" / METRICS).read_bytes() == before


def test_train_runs_the_recipe_too(run: Path, pictures: Path, probed: Path, tmp_path: Path) -> None:
    recipe = ["--recipe", "linear_probe", "--objective.model", f"KAMIM={run}", "--data.source", pictures]
    kamim("train", *recipe, *SMALL, "--objective.layer", "last", "--objective.norm", "trained", "--out", tmp_path / "x")
    assert (tmp_path / "x" / "results" / METRICS).read_bytes() == (probed / "results" / METRICS).read_bytes()


def test_mistakes_are_one_line(run: Path, pictures: Path, probed: Path, refused: Refused, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    ask = ("probe", run, "--data", pictures, *SMALL)
    assert "layer 8 does not exist" in refused(*ask, *out)
    assert "has no cls token" in refused(
        "probe", "random:swin_tiny", "--data", pictures, *SMALL, "--pooling", "cls", *out
    )
    assert "unknown model 'nowhere'" in refused("probe", "nowhere", "--data", pictures, *out)
    assert "required: MODEL" in refused("probe", "--data", pictures, *out)
    assert "give --out RUN" in refused(*ask)
    assert "is a recipe for FineTuning, not for LinearProbe" in refused(*ask, "--recipe", "fine_tuning", *out)
    assert "labels missing in" in refused("probe", run, "--data", pictures / "red", *SMALL, *out)
    assert "objective.norm: trained -> none" in refused(*ask, "--layer", "last", "--out", probed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["probe", "finetune"])
@pytest.mark.parametrize(
    "arguments", [["--help"], ["nowhere", "--data", "photographs", "--out", "x"], ["random:vit_tiny", "--print_config"]]
)
def test_help_and_refusals_import_nothing_heavy(command: str, arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from kamim_analysis.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'timm', 'sklearn', 'cv2', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, command, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
