"""`kamim finetune`, and the run as a model of other commands."""

import json
from pathlib import Path

import pytest

from kamim_analysis.cli import main
from kamim_analysis.results import Results

SMALL = (
    "--optim.batch_size 6 --optim.epochs 4 --optim.warmup_epochs 0.5 --optim.learning_rate 0.003 "
    "--encoder.drop_path 0.1 --efficiency.workers 0 --monitor.every_epochs 0 "
    "--objective.layer_decay 0.8 --objective.label_smoothing 0.1"
).split()


def kamim(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def test_a_fine_tuned_run_is_a_model(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tmp_path / "tuned"
    kamim("finetune", run, "--data", pictures, *SMALL, "--out", tuned)
    assert "kamim: fine tuning of layer 2, top-1" in capsys.readouterr().out
    (row,) = Results.open(tuned / "results").metrics.itertuples()
    assert (row.analysis, row.layer) == ("fine_tuning", 2)
    assert "; norm=none;" in row.protocol  # this architecture has no final norm
    assert row.protocol.endswith("label_smoothing=0.1; layer_decay=0.8; drop_path=0.1")

    kamim("knn", tuned, run, "--data", pictures, "--out", tmp_path / "knn", "--k", "1", "--workers", "0")
    trained, before = Results.open(tmp_path / "knn").manifest["models"]
    assert trained["training"]["objective"]["class_path"] == "FineTuning"
    assert trained["pretraining"]["objective"]["class_path"] == before["training"]["objective"]["class_path"] == "KAMIM"
    assert trained["sha256"] != before["sha256"]
    assert json.loads((tuned / "encoder.json").read_text())["classifier"]["classes"] == ["blue", "green", "red"]
