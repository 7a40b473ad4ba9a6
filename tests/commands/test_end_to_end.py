"""From training to the report, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kamim_analysis.cli import main
from kamim_analysis.protocol import items
from kamim_analysis.results import COLUMNS, Results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, run: Path, pictures: Path) -> Path:
    out = tmp_path_factory.mktemp("results") / "out"
    models = [f"KAMIM={run}", f"control=random:{run}", "swin=random:swin_tiny_patch4_window7_224"]
    main(["analyze", *models, "--data", str(pictures), "--out", str(out), "--image_size", "32", "--workers", "0"])
    return out


def test_the_results_directory_holds_what_the_readme_says(results: Path) -> None:
    table = pd.read_csv(results / "metrics.csv")
    assert list(table.columns) == COLUMNS
    assert set(table.model) == {"KAMIM", "control (random)", "swin (random)"}
    assert (table.images == 24).all()
    # at 32 px Swin's stages have 8 x 8, 4 x 4, 2 x 2 and 1 x 1 patches: too few for a spectrum, then for pairs
    undefined = table[table.value.isna()]
    assert set(undefined.model) == {"swin (random)"}
    assert set(undefined.analysis[undefined.layer.between(5, 10)]) == {"fourier"}
    assert set(undefined.analysis) == {"attention_nmi", "fourier", "geometry", "self_attention_tokens"}
    assert undefined.layer.min() == 5
    table = table.drop(undefined.index)
    assert np.isfinite(table.value).all(), table[~np.isfinite(table.value)]
    assert (table.ci_low <= table.value + 1e-9).all()
    assert (table.value <= table.ci_high + 1e-9).all()
    for name in ("manifest.json", "tokens.npz", "attention.npz", "reconstructions.npz", "report.html"):
        assert (results / name).stat().st_size > 0
    assert len(list((results / "figures").glob("*.png"))) == len(list((results / "figures").glob("*.pdf"))) >= 9
    assert not list(results.parent.glob(".*"))


def test_every_layer_and_head_has_its_rows(results: Path) -> None:
    distance = Results.open(results).select("attention_distance", heads=True)
    assert len(distance[distance.model == "KAMIM"]) == 2 * 2
    # Swin-T: 3, 6, 12, 24 heads in stages of 2, 2, 6, 2 blocks
    assert len(distance[distance.model == "swin (random)"]) == 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24


def test_every_number_carries_its_protocol(results: Path) -> None:
    table = Results.open(results).metrics
    told = [
        (items(text), row.analysis, row.images) for text, row in zip(table.protocol, table.itertuples(), strict=True)
    ]
    for protocol, analysis, images in told:
        assert (protocol["evaluation"], protocol["resolution"], protocol["test"]) == (analysis, "32", str(images))
    assert {"crop", "interpolation"} <= items(table.protocol[table.analysis == "fourier"].iloc[0]).keys()


def test_an_analysis_that_a_model_cannot_serve_is_listed_with_the_reason(results: Path) -> None:
    opened = Results.open(results)
    assert opened.model("KAMIM")["skipped"] == {}
    assert "no mask token and head" in opened.model("swin (random)")["skipped"]["reconstruction"]
    assert set(opened.select("reconstruction").model) == {"KAMIM"}


def test_the_manifest_says_what_ran(results: Path, run: Path) -> None:
    manifest = json.loads((results / "manifest.json").read_text())
    model = manifest["models"][0]
    assert model["architecture"] == "vit_relpos_small_patch16_224"
    assert len(model["sha256"]) == 64
    assert manifest["data"]["classes"] == ["blue", "green", "red"]
    assert {"torch", "timm"} <= manifest["versions"].keys()


def test_the_same_command_gives_the_same_numbers(results: Path, run: Path, pictures: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(pictures), "--out", str(tmp_path / "again"), "--image_size", "32", "--workers", "2"]
    main(["analyze", f"KAMIM={run}", *arguments, "--analyses", "attention_nmi,knn,reconstruction"])
    first, again = (pd.read_csv(folder / "metrics.csv") for folder in (results, tmp_path / "again"))
    first = first[(first.model == "KAMIM") & first.analysis.isin(again.analysis)]
    pd.testing.assert_frame_equal(first.reset_index(drop=True), again, check_exact=True)


def test_figures_are_redrawn_without_models_or_pictures(results: Path) -> None:
    picture = results / "figures" / "attention_distance.png"
    before = picture.read_bytes()
    picture.unlink()
    (results / "report.html").unlink()
    main(["figures", str(results)])
    assert picture.read_bytes() == before
    assert (results / "report.html").is_file()


def test_knn_of_all_layers_tells_colours_apart(run: Path, pictures: Path, tmp_path: Path) -> None:
    main(["knn", str(run), "--data", str(pictures), "--out", str(tmp_path / "knn"), "--layer", "all", "--k", "1,5"])
    table = pd.read_csv(tmp_path / "knn" / "metrics.csv")
    assert list(table.layer) == [0, 0, 1, 1, 2, 2]
    assert list(table.statistic) == ["top1_k1", "top1_k5"] * 3
    assert table[table.layer == 0].value.min() > 0.9


def test_training_again_resumes_and_changes_nothing(run: Path, pictures: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    config = str(run / "config.yaml")
    main(["train", "--config", config, "--out", str(run)])
    assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before


def test_the_monitor_watched_the_run(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"monitor/knn/top1_k1/layer02", "monitor/attention_nmi/mean/layer02"} <= set(events.Tags()["scalars"])
    assert {"reconstructions", "attention_maps"} <= set(events.Tags()["images"])


def test_unreadable_pictures_end_the_command_but_keep_its_results(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "red" / "3.png").write_bytes(b"\x89PNG broken")
    arguments = ["--data", str(data), "--image_size", "32", "--workers", "0", "--analyses", "attention_nmi"]
    with pytest.raises(SystemExit) as left:
        main(["analyze", "random:vit_tiny", *arguments, "--out", str(tmp_path / "strict")])
    assert left.value.code == 2
    assert "1 of 24 images (4.2%) could not be read" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "strict" / "metrics.csv").images) == {23}
    manifest = json.loads((tmp_path / "strict" / "manifest.json").read_text())
    assert manifest["data"]["unreadable"] == ["red/3.png"]
    lenient = [*arguments, "--out", str(tmp_path / "lenient"), "--max_unreadable", "0.1"]
    main(["analyze", "random:vit_tiny", *lenient])


def test_the_installed_command_runs_from_an_empty_directory(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("kamim")
    done = subprocess.run([command, "models"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "vit_small" in done.stdout
    module = subprocess.run(
        [sys.executable, "-m", "kamim_analysis", "--version"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    assert module.stdout.startswith("kamim 0.")


def test_the_demo_in_a_few_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "--out", str(tmp_path / "demo"), "--max_steps", "2", "--images", "24"])
    printed = capsys.readouterr().out
    assert "SimMIM: masked L1" in printed
    assert "untrained" in printed
    assert (tmp_path / "demo" / "results" / "report.html").is_file()


def test_compare_tells_what_differs_beyond_noise(tmp_path, capsys):
    models = ["trained=random:vit_tiny_patch16_224", "other=random:vit_tiny_patch16_384"]
    options = ["--data", "photographs", "--images", "24", "--image_size", "64", "--workers", "0"]
    main(["compare", *models, *options, "--analyses", "attention_distance,fourier", "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    # 12 layers of distance, 25 latents of frequencies and 24 steps between them
    assert len(table) == 61
    assert "of 61 numbers compared" in told
    with pytest.raises(SystemExit):
        main(["compare", models[0], *options, "--out", str(tmp_path / "alone")])
    assert "a comparison needs two models or more" in capsys.readouterr().err
