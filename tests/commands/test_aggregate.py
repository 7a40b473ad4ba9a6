"""`kamim aggregate` from models and pictures to results, and what it refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from kamim_analysis.cli import main
from kamim_analysis.comparison import COLUMNS
from kamim_analysis.protocol import items
from kamim_analysis.results import Results

QUICK = "--image_size 32 --epochs 2 --seeds 2 --learning_rates 1e-2,1e-3 --workers 0".split()
WITH_CLS = "with=random:deit_tiny_patch16_224"
WITHOUT = "without=random:vit_relpos_small_patch16_224"


def aggregated(out: Path, pictures: Path, *arguments: object) -> Results:
    main(["aggregate", *map(str, arguments), "--data", str(pictures), "--out", str(out), *QUICK])
    return Results.open(out)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Results:
    """A model with a cls token, two of its layers, and one without."""
    out = tmp_path_factory.mktemp("aggregate") / "out"
    return aggregated(out, pictures, WITH_CLS, WITHOUT, "--layer", "0,last", "--queries", "2")


def test_numbers_of_every_pooling_and_layer(results: Results) -> None:
    table = results.select("aggregation")
    of_cls = set(table[(table.model == "with (random)") & (table.layer == 12)].statistic)
    poolings = ["mean", "cls", "central", "cls_attention", "abmilp", "attentive"]
    expected = {f"top1_{name}" for name in poolings}
    expected |= {f"gain_over_{base}_{name}" for base in ("mean", "cls") for name in poolings if name != base}
    expected |= {f"entropy_{name}" for name in poolings if name != "cls"} | {"entropy_of_average_attentive"}
    assert of_cls == expected
    without = set(table[(table.model == "without (random)") & (table.layer == 12)].statistic)
    assert without == {name for name in expected if "cls" not in name}
    # the embedding has no attention
    assert set(table[(table.model == "with (random)") & (table.layer == 0)].statistic) == {
        name for name in expected if "cls_attention" not in name
    }
    assert (table.images == 12).all()
    assert ((table.ci_low <= table.value + 1e-9) & (table.value <= table.ci_high + 1e-9)).all()


def test_gains_are_differences(results: Results) -> None:
    table = results.select("aggregation").set_index(["model", "layer", "statistic"]).value
    for model, layer in (("with (random)", 12), ("without (random)", 0)):
        of_layer = table[model, layer]
        gain = of_layer["top1_abmilp"] - of_layer["top1_mean"]
        assert of_layer["gain_over_mean_abmilp"] == pytest.approx(gain)


def test_every_number_tells_its_protocol(results: Results) -> None:
    table = results.select("aggregation")
    last = table[(table.model == "with (random)") & (table.layer == 12)].set_index("statistic").protocol
    found = items(last["top1_abmilp"])
    rate = found.pop("learning_rate")
    assert float(rate) in (1e-2, 1e-3)
    assert found == {
        "evaluation": "aggregation", "pooling": "abmilp", "norm": "final", "resolution": "32", "crop": "0.9",
        "interpolation": "bicubic", "train": "9", "test": "12", "seeds": "2", "chosen_of": "0.001, 0.01",
        "chosen_on": "3 held out", "epochs": "2", "batch_size": "128", "weight_decay": "0.05",
        "standardised": "tokens and feature by channel", "augmentation": "none",
    }  # fmt: skip
    assert items(last["gain_over_cls_attentive"])["pooling"] == "attentive less cls"
    assert items(table[table.layer == 0].protocol.iloc[0])["norm"] == "none"


def test_manifest_samples_and_comparison(results: Results) -> None:
    chosen = results.model("with (random)")["aggregation"]["12"]["abmilp"]
    assert set(chosen["held_out_top1"]) == {"0.001", "0.01"}
    assert results.manifest["aggregation"]["seeds"] == 2
    assert results.samples("without (random)")["aggregation", "top1_mean", 12].shape == (12,)
    table = results.comparison
    assert list(table) == COLUMNS
    assert "gain_over_mean_abmilp" in set(table.statistic)


def test_figure_is_drawn(results: Results) -> None:
    main(["figures", str(results.directory), "--figures", "aggregation"])
    drawn = pd.read_csv(results.directory / "figures" / "aggregation.csv")
    assert set(drawn.layer) == {12}
    assert set(drawn.pooling) == {"mean", "cls", "central", "cls_attention", "abmilp", "attentive"}
    text = (results.directory / "figures" / "aggregation.txt").read_text()
    assert "Tokens of layer 12, 2 seeds." in text


def test_tokens_in_memory_on_disk_and_of_a_store_are_the_same(tmp_path: Path, pictures: Path, capsys) -> None:
    store = tmp_path / "store"
    features = "--layer last --pooling patches,cls,cls_weights --image_size 32 --workers 0".split()
    main(["features", WITH_CLS, "--data", str(pictures), "--out", str(store), *features])
    ways = {"memory": [], "disk": ["--memory_gb", "1e-6"], "stored": ["--features", store]}
    found = {name: aggregated(tmp_path / name, pictures, WITH_CLS, *way).metrics for name, way in ways.items()}
    assert_frame_equal(found["memory"], found["disk"])
    assert_frame_equal(found["memory"], found["stored"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "memory", "store", "stored"]
    assert "attentive" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "13"], "layer 13 does not exist"),
        (["--queries", "5"], "5 queries do not divide the 192 channels"),
        (["--learning_rates", "0"], "'0' is not a number above 0"),
        (["--test_share", "1"], "'1' is not a share between 0 and 1"),
        (["--pooling", "mean"], "unrecognized arguments: --pooling"),
        (["--features", "{data}"], "holds no features"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, refused: Callable[..., str], tmp_path: Path, pictures: Path
) -> None:
    arguments = [text.format(data=pictures) for text in arguments]
    assert message in refused("aggregate", WITH_CLS, "--data", pictures, "--out", tmp_path / "out", *QUICK, *arguments)
    assert not any(tmp_path.iterdir())


def test_data_that_cannot_be_probed(refused: Callable[..., str], tmp_path: Path, pictures: Path) -> None:
    def error(data: Path) -> str:
        return refused("aggregate", WITH_CLS, "--data", data, "--out", tmp_path / "out", *QUICK)

    shutil.copytree(pictures / "red", tmp_path / "one" / "red")
    assert "have a single class" in error(tmp_path / "one")
    shutil.copytree(pictures / "red", tmp_path / "flat")
    assert "labels missing" in error(tmp_path / "flat")
    shutil.copytree(pictures, tmp_path / "few")
    for path in sorted((tmp_path / "few" / "blue").iterdir())[2:]:
        path.unlink()
    assert "class 'blue' has 2 pictures, and a split into 3 parts" in error(tmp_path / "few")
