"""`kamim knn` from the command line: its numbers, names and protocols, and what it refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from kamim_analysis.analyses.knn import knn_correct
from kamim_analysis.cli import main
from kamim_analysis.encoders import anatomy, pool
from kamim_analysis.model_spec import parse
from kamim_analysis.opening import open_model
from kamim_analysis.protocol import items
from kamim_analysis.results import Results
from kamim_analysis.sampling import open_data

Refused = Callable[..., str]


def kamim(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def similar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of each of three classes whose colours overlap, so that neighbours err."""
    root, draw = tmp_path_factory.mktemp("similar") / "pictures", np.random.default_rng(0)
    for label, tint in (("red", (150, 105, 105)), ("green", (105, 150, 105)), ("blue", (105, 105, 150))):
        (root / label).mkdir(parents=True)
        for i in range(8):
            pixels = draw.normal(draw.normal(tint, 22), 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((48, 40)).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def split(similar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures in two splits: five of each class to learn from, three to judge."""
    root = tmp_path_factory.mktemp("split")
    for path in sorted(similar.rglob("*.png")):
        folder = root / ("train" if int(path.stem) < 5 else "val") / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return root


def by_hand(run: Path, data: Path, which: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean-pooled features of the last layer and labels, picture by picture, in the order of the command."""
    opened, chosen = open_model(parse(str(run))), open_data(str(data), None, None, 0, max_unreadable=0.0, bank_all=True)
    source, indices = (chosen.test, chosen.test_indices) if which == "val" else (chosen.bank, chosen.bank_indices)
    assert source is not None
    features, labels = [], []
    with torch.no_grad():
        for i in indices:
            rgb, label = source.read(i)
            tokens = opened.encoder.forward_features(opened.transform(Image.fromarray(rgb))[None])
            features.append(pool(tokens, anatomy(opened.encoder), "mean"))
            labels.append(label)
    return torch.cat(features), torch.tensor(labels)


def test_leave_one_out_is_that_of_features_taken_by_hand(run: Path, similar: Path, tmp_path: Path) -> None:
    kamim("knn", run, "--data", similar, "--out", tmp_path / "out", "--k", "1,4", "--temperature", 0.5)
    table = pd.read_csv(tmp_path / "out" / "metrics.csv").set_index("statistic")
    features, labels = by_hand(run, similar, "val")
    expected = knn_correct(features, labels, None, None, [1, 4], 0.5)
    assert 0.2 < expected[4].double().mean() < 1
    for k in (1, 4):
        assert table.value[f"top1_k{k}"] == pytest.approx(expected[k].double().mean().item())
    assert items(table.protocol["top1_k4"]) == {
        "evaluation": "knn", "pooling": "mean", "norm": "none", "resolution": "32", "crop": "1.0",
        "interpolation": "bilinear", "train": "leave one out", "test": "24", "temperature": "0.5",
    }  # fmt: skip


def test_training_pictures_are_the_neighbours(run: Path, split: Path, tmp_path: Path) -> None:
    kamim("knn", run, "--data", split, "--out", tmp_path / "out", "--few_shot", "1,5", "--few_shot_seeds", 3)
    results = Results.open(tmp_path / "out")
    (bank, bank_labels), (features, labels) = by_hand(run, split, "train"), by_hand(run, split, "val")
    table = results.metrics.set_index("statistic")
    correct = knn_correct(features, labels, bank, bank_labels, [1, 10])
    assert table.value["top1_k10"] == pytest.approx(correct[10].double().mean().item())
    np.testing.assert_array_equal(results.samples(results.models[0])["knn", "top1_k10", 2], correct[10].numpy())
    assert "train=15; test=9" in table.protocol["top1_k10"]
    # five of five pictures a class: every draw is the whole training split
    assert table.value["top1_v5_k10"] == pytest.approx(table.value["top1_k10"])
    assert table.value["seed_deviation_v5_k10"] == 0
    told = items(table.protocol["top1_v1_k1"])
    assert [told[key] for key in ("evaluation", "train", "test", "seeds", "per_class")] == [
        "few_shot", "3", "9", "3", "1",
    ]  # fmt: skip


def test_layers_poolings_and_models_in_one_go(
    run: Path, similar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = (f"trained={run}", f"control=random:{run}")
    options = ("--layer", "all", "--pooling", "mean,central", "--k", "1,3", "--few_shot", "1,2")
    kamim("knn", *models, "--data", similar, "--out", tmp_path / "out", *options)
    results = Results.open(tmp_path / "out")
    table = results.select("knn")
    assert len(table) == 2 * 3 * 2 * 2
    assert not table.duplicated(["model", "layer", "statistic"]).any()
    assert set(table.statistic) == {"top1_k1", "top1_k3", "top1_k1_central", "top1_k3_central"}
    assert all(items(row.protocol)["pooling"] == ("central" if "_central" in row.statistic else "mean")
               for row in table.itertuples())  # fmt: skip
    comparison = results.comparison
    pair = comparison[(comparison.analysis == "knn") & (comparison.statistic == "top1_k3") & (comparison.layer == 1)]
    values = table[(table.statistic == "top1_k3") & (table.layer == 1)].set_index("model").value
    assert pair.difference.item() == pytest.approx(values["control (random)"] - values["trained"], abs=1e-6)
    assert set(comparison.analysis) == {"knn", "few_shot"}
    printed = capsys.readouterr().out
    assert [line[0] for line in printed.splitlines() if line].count("*") == 3, "the highest of each model, and the note"
    assert "few-shot top-1 [95% interval over pictures and 5 draws]" in printed
    best = table[(table.model == "trained") & table.statistic.str.startswith("top1_k3")].value.max()
    line = next(line for line in printed.splitlines() if line.startswith("*"))
    assert f"{best:.3f}" in line
    kamim("figures", tmp_path / "out")
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert {"knn", "knn_layers", "few_shot", "comparison"} <= drawn


def test_a_final_norm_for_all_layers_for_the_last_or_for_none(pictures: Path, tmp_path: Path) -> None:
    model = "random:vit_tiny_patch16_224"
    protocols = {}
    for name, option in {"bare": ["--norm"], "default": [], "none": ["--norm", "none"]}.items():
        out = tmp_path / name
        kamim("knn", model, "--data", pictures, "--image_size", 32, "--layer", "1,last", "--out", out, *option)
        protocols[name] = [items(text)["norm"] for text in pd.read_csv(out / "metrics.csv").protocol[::3]]
    assert protocols == {"bare": ["final"] * 2, "default": ["none", "final"], "none": ["none"] * 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "0"], "'0' is not a whole number from 1 up"),
        (["--k", "24"], "k = 24 exceeds the 23 images that can be neighbours; choose a smaller k"),
        (["--temperature", "0"], "'0' is not a number above 0"),
        (["--pooling", "max"], "unknown pooling 'max'; there are: abmilp, attentive, central, cls"),
        (["--pooling", "abmilp"], "pooling 'abmilp' is learned; parameter-free are central, cls, cls_attention, mean"),
        (["--pooling", ","], "unknown pooling ''"),
        (["--pooling", "cls"], "no cls token"),
        (["--layer", "3"], "layer 3 does not exist: this encoder has layers 0 (the embedding) to 2"),
        (["--layer", "deep"], "'deep' is neither 'all', 'last' nor numbers of layers"),
        (["--norm", "some"], "invalid choice: 'some'"),
        (["--few_shot", "0"], "'0' is not a whole number from 1 up"),
        (["--few_shot", "1,9"], "has 8 pictures, fewer than the v = 9 of --few_shot"),
        (["--few_shot", "8"], "has 8 pictures: v = 8 of --few_shot would leave none to be judged"),
        (["--few_shot", "1", "--k", "4"], "k = 4 exceeds the 3 images that can be neighbours"),
        (["--few_shot_seeds", "0"], "'0' is not a whole number from 1 up"),
        (["--features", "{out}"], "{out}"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, refused: Refused, run: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    line = refused("knn", run, "--data", pictures, "--out", out, *[text.format(out=out) for text in arguments])
    assert message.format(out=out) in line
    assert not list(tmp_path.iterdir())


def test_one_class_or_no_classes_are_refused(refused: Refused, run: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures / "red", tmp_path / "one" / "red")
    assert "a single class" in refused("knn", run, "--data", tmp_path / "one", "--out", tmp_path / "out")
    assert "labels missing" in refused("knn", run, "--data", pictures / "red", "--out", tmp_path / "out")
