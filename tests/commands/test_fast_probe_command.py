"""`kamim fast_probe` from the command line to figures, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kamim_analysis.cli import main
from kamim_analysis.protocol import items
from kamim_analysis.results import Results

QUICK = ["--image_size", "32", "--workers", "0", "--epochs", "2", "--batch_size_probe", "8"]
MODELS = ["random:vit_tiny", "other=random:vit_tiny"]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Results:
    """Two layers and two poolings of two models on data of one split, with two seeds."""
    out = tmp_path_factory.mktemp("probed") / "out"
    chosen = ["--layer", "0,last", "--pooling", "mean,cls", "--seeds", "2", "--learning_rates", "0.3,0.01"]
    main(["fast_probe", *MODELS, "--data", str(pictures), "--out", str(out), *QUICK, *chosen])
    return Results.open(out)


def test_rows_samples_and_protocol(probed: Results) -> None:
    table = probed.select("fast_probe")
    assert set(table.model) == {"random:vit_tiny", "other (random)"}
    assert set(table[table.statistic == "top1_mean"].layer) == {0, 12}
    assert set(table[table.statistic == "learning_rate_cls"].value) <= {0.3, 0.01}
    # of 24 pictures in 3 classes two each are judged, and one of the six others is chosen on
    assert table[table.statistic == "majority"].value.tolist() == pytest.approx([1 / 3, 1 / 3])
    for row in table[table.statistic != "majority"].itertuples():
        told = items(row.protocol)
        assert (told["train"], told["held_out"], told["test"], told["seeds"]) == ("15", "3", "6", "2")
        assert told["norm"] == ("final" if row.layer == 12 else "none")
        assert told["resolution"] == "32"
        assert row.images == (6 if row.statistic.startswith("top1") else 3)
    for label in probed.models:
        samples = probed.samples(label)
        for row in table[(table.model == label) & table.statistic.isin(["top1_mean", "top1_cls"])].itertuples():
            assert samples["fast_probe", row.statistic, row.layer].mean() == pytest.approx(row.value)


def test_the_number_to_report_is_that_of_the_best_on_held_out_pictures(probed: Results) -> None:
    table = probed.select("fast_probe")
    for label in probed.models:
        rows = table[table.model == label]
        (best,) = rows[rows.statistic == "top1_best"].itertuples()
        held_out = rows[rows.statistic.str.startswith("held_out")]
        pooling = items(best.protocol)["pooling"]
        chosen = rows[(rows.layer == best.layer) & (rows.statistic == f"held_out_top1_{pooling}")]
        assert chosen.value.item() == held_out.value.max()
        same = rows[(rows.layer == best.layer) & (rows.statistic == f"top1_{pooling}")]
        assert best.value == same.value.item()
        np.testing.assert_array_equal(
            probed.samples(label)["fast_probe", "top1_best", None],
            probed.samples(label)["fast_probe", f"top1_{pooling}", best.layer],
        )


def test_models_are_compared_and_figures_drawn(probed: Results, tmp_path: Path) -> None:
    assert set(probed.comparison.statistic) == {"top1_mean", "top1_cls", "top1_best"}
    assert probed.manifest["fast_probe"]["learning_rates"] == [0.01, 0.3]
    copy = tmp_path / "copy"
    shutil.copytree(probed.directory, copy)
    main(["figures", str(copy)])
    assert (copy / "figures" / "fast_probe.png").is_file()
    assert "Linear probes" in (copy / "report.html").read_text(encoding="utf-8")


def test_it_prints_a_table_and_repeats(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--layer", "last", "--pooling", "mean", "--learning_rates", "0.01"]
    tables = []
    for name in "ab":
        main(["fast_probe", "random:vit_tiny", "--data", str(pictures), "--out", str(tmp_path / name), *QUICK, *chosen])
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert "random:vit_tiny: top-1 [95% interval] on 6 test pictures; the commonest class alone: 0.333" in tables[0]
    assert "* layer 12, mean, learning rate 0.01 of 1: chosen on 3" in tables[0]
    first, second = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab")
    assert first["models"] == second["models"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rates", "0.1,0"], "'0' is not a number above 0"),
        (["--learning_rates", "nan"], "'nan' is not a number above 0"),
        (["--weight_decay", "-1"], "'-1' is not a number from 0 up"),
        (["--pooling", "max"], "unknown pooling 'max'"),
        (["--pooling", "abmilp"], "'abmilp' is learned"),
        (["--layer", "13"], "layer 13 does not exist"),
        (["--images", "4"], "has 1 picture, and a split into 3 parts takes at least 3"),
        (["--seeds", "0"], "not a whole number from 1 up"),
        (["--features", "nowhere"], "'nowhere' holds no features"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, refused: Callable[..., str], pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert message in refused("fast_probe", MODELS[0], "--data", pictures, "--out", out, *QUICK, *arguments)
    assert not out.exists()


def test_data_that_cannot_be_probed(refused: Callable[..., str], pictures: Path, tmp_path: Path) -> None:
    command = ["fast_probe", MODELS[0], "--out", tmp_path / "out", *QUICK, "--data"]
    assert "labels missing" in refused(*command, pictures / "red")
    alone = tmp_path / "alone"
    shutil.copytree(pictures / "red", alone / "red")
    assert "single class" in refused(*command, alone)
    few = tmp_path / "few"
    shutil.copytree(pictures, few)
    for path in sorted((few / "green").iterdir())[2:]:
        path.unlink()
    assert "class 'green' has 2 pictures" in refused(*command, few)
