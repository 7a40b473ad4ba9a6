"""An exported directory is analysed as the run it came from."""

from pathlib import Path

import pandas as pd
import pytest

from kamim_analysis.cli import main


def test_the_numbers_are_those_of_the_run(
    masked_vit, masked_swin, run_of, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = []
    for kind, masked in (("vit", masked_vit), ("swin", masked_swin)):
        models.append(f"{kind} run={run_of(masked, kind)}")
        for form in ("timm", "huggingface"):
            out = tmp_path / f"{kind}_{form}"
            main(["export", str(tmp_path / kind), "--format", form, "--out", str(out)])
            models.append(f"{kind} {form}={out}")
    options = ["--data", "photographs", "--images", "2", "--workers", "0", "--analyses", "attention_nmi,reconstruction"]
    main(["analyze", *models, *options, "--out", str(tmp_path / "results")])
    table = pd.read_csv(tmp_path / "results" / "metrics.csv")
    rows = {name: table[table.model == name].drop(columns="model").reset_index(drop=True) for name in table.model}
    for kind in ("vit", "swin"):
        run = rows[f"{kind} run"]
        assert set(run.analysis) == {"attention_nmi", "reconstruction"}
        pd.testing.assert_frame_equal(run, rows[f"{kind} huggingface"], check_exact=True)
        encoder = run[run.analysis == "attention_nmi"].reset_index(drop=True)
        pd.testing.assert_frame_equal(encoder, rows[f"{kind} timm"], check_exact=True)


def test_kamim_models_says_what_an_export_is(
    masked_vit, run_of, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(masked_vit)
    for form in ("timm", "huggingface"):
        main(["export", str(run), "--format", form, "--out", str(tmp_path / form)])
    capsys.readouterr()
    main(["models", str(tmp_path / "timm"), str(tmp_path / "huggingface")])
    described = capsys.readouterr().out
    assert "format timm_hub" in described
    assert "format huggingface_vit" in described
    assert "with SimMIM's mask token and linear head" in described
    assert described.count("after step 12") == 2
