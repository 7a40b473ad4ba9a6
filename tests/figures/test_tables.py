"""The papers' tables: their own numbers, which measured number stands where, and what is said of it."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kamim_analysis import plugins, results
from kamim_analysis.errors import UserError
from kamim_analysis.figures.tables._epoch_time import time_ratio
from kamim_analysis.figures.tables._facts import TITLES, numbers_in
from kamim_analysis.figures.tables._grid import NONE, PACKAGE, TableModule, table_modules
from kamim_analysis.figures.tables._layout import Cell, Laid, lay_out
from kamim_analysis.figures.tables._pretraining import DETECTORS
from kamim_analysis.figures.tables._styles import STYLES
from kamim_analysis.figures.tables._tables import tables
from kamim_analysis.protocol import protocol
from kamim_analysis.results import Row
from kamim_analysis.train.settings import as_dict, parse_recipe, recipe_path

NAMES = plugins.names(PACKAGE)
CSV_COLUMNS = "table row column paper value ci_low ci_high images model results layer pooling norm resolution seeds"
# as the papers print them, columns between tabs (KAMIM: tables 1 to 5; AttMask: its second table)
PRINTED = {
    "kamim_1": (
        "ViT-T\t12.37\t13.75\t70.49\t70.41",
        "ViT-S\t20.99\t22.68\t76.8\t77.02",
        "ViT-B\t16.12\t33.97\t76.78\t77.30",
        "Swin-T\t14.37\t14.53\t77.94\t78.12",
        "Swin-B\t20.42\t18.16\t79.58\t80.02",
    ),
    "kamim_2": (
        "8\t0.1\t32.97\t77.59", "8\t0.25\t33.97\t77.29", "8\t0.5\t31.95\t77.11", "8\t1\t23.93\t76.94",
        "16\t0.1\t31.38\t77.43", "16\t0.25\t33.05\t77.48", "16\t0.5\t30.82\t77.06", "16\t1\t29.51\t77.13",
        "32\t0.1\t25.71\t77.09", "32\t0.25\t31.73\t77.41", "32\t0.5\t30.91\t77.41", "32\t1\t25.73\t77.18",
        "SimMIM\t\t16.12\t76.78",
    ),
    "kamim_4": (
        "none (SimMIM)\t16.12\t76.78\t=1x",
        "FAST\t33.97\t77.29\t~1x",
        "SIFT\t31.31\t77.37\t~1.06x",
        "ORB\t32.36\t77.17\t~1.07x",
    ),
    "kamim_5": ("w/o LayerNorm\t16.12\t33.97", "w/ LayerNorm\t20.51\t37.72"),
    "kamim_reconstruction": ("SimMIM\t12.058\t0.1095", "KAMIM\t12.063\t0.1076"),
    "attmask": (
        "DINO\t70.9\t74.6",
        "MST\t72.1\t75.0",
        "iBOT\t71.5\t74.4\t32.9\t47.6\t52.5\t56.4",
        "iBOT+AttMask-High\t72.5\t75.7\t37.1\t51.3\t55.7\t59.1",
        "iBOT+AttMask-Hint\t72.8\t76.1\t37.6\t52.2\t56.4\t59.6",
    ),
    "attmask_20": (
        "block-wise (iBOT)\t10-50%\t46.7\t56.4\t98.0\t86.0",
        "random\t75%\t47.3\t55.5\t97.7\t85.5",
        "random\t10-50%\t47.8\t56.7\t98.0\t86.1",
        "AttMask-Low\t10-50%\t44.0\t53.4\t97.6\t84.6",
        "AttMask-Hint\t10-50%\t49.5\t57.5\t98.1\t86.6",
        "AttMask-High\t10-50%\t49.7\t57.9\t98.2\t86.6",
    ),
    "latent_mim": ("Latent MIM\t50.1\t72.0\t83.0",),
}  # fmt: skip
# table 3 stands the other way around there: a row for each method, LP and FT of each data set
PRINTED_3 = {
    "SimMIM": "16.12 76.78 6.92 79.8 26.04 53.2 62.83 94.13 37.46 78.92 61.65 97.03 36.49 84.58",
    "KAMIM": "33.97 77.30 17.60 80.48 40.47 53.03 59.01 94.12 35.67 77.26 72.63 97.43 51.77 85.07",
    "PASS (SimMIM)": "x 82.1 x x x x x x x x x 97.1 x 81.7",
}
DATA_3 = ["ImageNet-1k", "iNaturalist 2021", "Places365", "CIFAR-10", "CIFAR-100", "CIFAR-10", "CIFAR-100"]
IMAGENET = {"source": "torch/imagenet", "classes": [f"class {i}" for i in range(1000)], "images": 50_000}
PHOTOGRAPHS = {"source": "photographs", "classes": ["astronaut", "brick"], "images": 256}
PAPERS_PROBE = {
    "evaluation": "linear_probe", "pooling": "mean", "norm": "none", "resolution": 192, "train": 1_281_167,
    "test": 50_000, "seeds": 1, "learning_rate": 0.005, "epochs": 100, "batch_size": 2048, "augmentation": "paper",
    "weight_decay": 0.05, "mixing": "both",
}  # fmt: skip
Write = Callable[..., Path]


def training(method: str = "KAMIM", source: str = "torch/imagenet", epochs: int = 100, **arguments: Any) -> Any:
    """A recipe as a run's description holds it."""
    own = {"weight_patch": 8, "temperature": 0.25, "map_style": "drawn"}
    own |= {"detector": {"class_path": "FAST", "init_args": {}}}
    arguments = {"mask_unit": 32, "mask_ratio": 0.6, **(own if method == "KAMIM" else {}), **arguments}
    return {
        "objective": {"class_path": method, "init_args": arguments},
        "data": {"source": source},
        "encoder": {"name": "vit_base", "image_size": 192},
        "optim": {"epochs": epochs, "batch_size": 2048, "learning_rate": 8e-4},
    }


def recipe_of(name: str, *overrides: str) -> Any:
    """A shipped recipe with overrides, as a run's description holds it."""
    return as_dict(parse_recipe(["--config", str(recipe_path(name)), *overrides]))


def attmask_of(masking: str, *, per_class: int | None = None, local_crops: int = 10, **arguments: Any) -> Any:
    """AttMask's pre-training by its public code, as a run's description holds it."""
    return {
        "objective": {
            "class_path": "AttMask",
            "init_args": {
                "masking": masking, "mask_ratio": 0.3, "mask_ratio_variation": 0.2, "mask_probability": 0.5,
                "head_outputs": 8192, "local_crops": local_crops, **arguments,
            },
        },
        "data": {"source": "torch/imagenet", "per_class": per_class},
        "encoder": {"name": "vit_small", "image_size": 224},
        "optim": {"epochs": 100, "batch_size": 240, "learning_rate": 5e-4 * 240 / 256},
    }  # fmt: skip


def small_vit(label: str, training: Any) -> dict[str, Any]:
    return model(label, "vit_small_patch16_224", model_args={"img_size": 224}, image_size=[224, 224], training=training)


def k_nn(value: float, k: int = 20, **items: Any) -> Row:
    """Accuracy of k-NN by AttMask's protocol, with what differs from it."""
    told = {
        "evaluation": "knn", "pooling": "cls", "norm": "final", "resolution": 224, "crop": 0.875,
        "interpolation": "bicubic", "train": 1_281_167, "test": 50_000, "temperature": 0.07,
    }  # fmt: skip
    return Row("knn", 12, None, f"top1_k{k}", value, value - 0.01, value + 0.01, 50_000, protocol(**told | items))


def model(label: str = "mine", architecture: str = "vit_base_patch16_224", **entry: Any) -> dict[str, Any]:
    return {
        "label": label, "spec": f"/runs/{label}", "architecture": architecture, "model_args": {"img_size": 192},
        "layers": 12, "patch_size": [16, 16], "image_size": [192, 192], **entry,
    }  # fmt: skip


def probe(value: float = 0.3401, *, layer: int | None = 8, images: int = 50_000, **items: Any) -> Row:
    """Accuracy of a linear probe after the paper's recipe, with what differs from it."""
    told = PAPERS_PROBE | items
    return Row(told["evaluation"], layer, None, "top1", value, value - 0.004, value + 0.004, images, protocol(**told))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a results directory of models and their rows; on ImageNet-1k unless told otherwise."""

    def write_results(
        *models: tuple[dict[str, Any], list[Row]], data: dict[str, Any] = IMAGENET, name: str = "r"
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        manifest = {"models": [entry for entry, _ in models], "data": data, "seed": 0}
        results.write(directory, manifest, {entry["label"]: rows for entry, rows in models}, {})
        return directory

    return write_results


def laid(name: str, *directories: Path) -> Laid:
    numbers = [number for directory in directories for number in numbers_in(directory)]
    return lay_out(name, table_modules([name])[name], numbers)


def cells(table: Laid) -> dict[tuple[str, ...], Cell]:
    """Cells with a measured number by the line's labels and the column's title."""
    return {
        (*line.labels, cell.column.title): cell for line in table.lines for cell in line.cells if cell.found is not None
    }


def only_cell(table: Laid) -> tuple[tuple[str, ...], Cell]:
    ((place, cell),) = cells(table).items()
    return place, cell


def notes(table: Laid, cell: Cell) -> str:
    return " ".join(table.notes[mark - 1] for mark in cell.marks)


@pytest.mark.parametrize("name", NAMES)
def test_module_offers_the_contract(name: str) -> None:
    module = plugins.load(PACKAGE, name, "table")
    assert isinstance(module, TableModule)
    assert module.TITLE
    assert re.search(r"arXiv \d{4}\.\d{5}", module.SOURCE)
    grid = module.GRID
    for line in grid.lines:
        assert len(line.printed) == len(grid.columns), line
        assert len(line.labels) == len(grid.stub), line
    named = [grid.expects, grid.others or {}, dict(tuple(pair)[::-1] for pair in grid.stub)]
    named += [facts for part in (*grid.columns, *grid.lines) for facts in (part.fits, part.expects)]
    assert {fact for facts in named for fact in facts} <= TITLES.keys()
    assert all("evaluation" in column.fits for column in grid.columns)


def test_orders_differ() -> None:
    orders = [module.ORDER for module in table_modules().values()]
    assert orders == sorted(set(orders))
    assert list(table_modules())[:5] == [f"kamim_{i}" for i in range(1, 6)]


@pytest.mark.parametrize("name", PRINTED)
def test_numbers_are_the_papers(name: str) -> None:
    lines = table_modules([name])[name].GRID.lines
    ours = ["\t".join([*line.labels, *line.printed]).rstrip(f"\t{NONE}") for line in lines]
    assert ours == list(PRINTED[name])


def test_numbers_of_table_3_are_the_papers() -> None:
    grid = table_modules(["kamim_3"])["kamim_3"].GRID
    titles = [column.title for column in grid.columns]
    assert [line.labels[0] for line in grid.lines] == DATA_3
    assert [line.labels[1] for line in grid.lines] == [*DATA_3[:5], "ImageNet-1k", "ImageNet-1k"]
    for method, text in PRINTED_3.items():
        for i, printed in enumerate(text.split()):
            title = f"{method} ({'FT' if i % 2 else 'LP'})"
            if printed != "x":
                assert grid.lines[i // 2].printed[titles.index(title)] == printed, (method, i)


def test_the_papers_own_protocol_stands_beside_it_without_a_mark(write: Write) -> None:
    table = laid("kamim_1", write((model(training=training()), [probe()])))
    place, cell = only_cell(table)
    assert place == ("ViT-B", "KAMIM (LP)")
    assert (cell.paper, cell.value, cell.interval, cell.sign) == ("33.97", "34.01", "[33.61, 34.41]", "")
    assert cell.found is not None
    assert not cell.found.differences
    assert not cell.found.untold
    assert "(paper:" not in notes(table, cell)
    for fact in ("layer 8 of 12", "pooling mean", "norm none", "resolution (px) 192", "seeds 1"):
        assert fact in notes(table, cell)


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        ({"layer": 12}, {"layer": "8"}),
        ({"pooling": "cls"}, {"pooling": "mean"}),
        ({"resolution": 64}, {"resolution": "192"}),
        ({"resolution": "192 px"}, {}),
        ({"epochs": 10}, {"epochs": "100"}),
        ({"norm": "final"}, {"norm": "none"}),
        ({"augmentation": "crop"}, {"augmentation": "TrivialAugment and erasing"}),
        ({"learning_rate": "5e-03"}, {}),
        ({"images": 512, "test": 512}, {"test": "all 50000"}),
        ({"train": 10_000}, {"train": "all 1281167"}),
        ({"evaluation": "fast_probe"}, {"evaluation": "linear_probe"}),
    ],
)
def test_what_differs_is_named(write: Write, change: dict[str, Any], differences: dict[str, str]) -> None:
    table = laid("kamim_1", write((model(training=training()), [probe(**change)])))
    _, cell = only_cell(table)
    assert cell.found is not None
    assert cell.found.differences == differences
    assert cell.sign == ("≠" if differences else "")
    for fact, papers in differences.items():
        assert f"{TITLES[fact]} {cell.found.number.protocol[fact]} (paper: {papers})" in notes(table, cell)


def test_a_small_run_on_photographs_cannot_be_mistaken(write: Write) -> None:
    small = model(training=training(source="photographs", epochs=4), image_size=[64, 64], patch_size=[8, 8])
    small["model_args"] = {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 8}
    directory = write((small, [probe(0.61, images=256, resolution=64, train=512, test=256)]), data=PHOTOGRAPHS)
    first = laid("kamim_1", directory)
    place, cell = only_cell(first)
    assert place == ("ViT of 96 channels and 8 layers", "KAMIM (LP)")
    assert cell.paper == NONE
    assert not first.lines[-1].in_paper
    second = laid("kamim_2", directory)
    place, cell = only_cell(second)
    assert place == ("8", "0.25", "LP")
    assert cell.sign == "≠"
    for named in (
        "data set photographs (paper: ImageNet-1k)",
        "encoder ViT of 96 channels and 8 layers (paper: ViT-B)",
        "patch size (px) 8 (paper: 16)",
        "resolution (px) 64 (paper: 192)",
        "pre-training epochs 4 (paper: 100)",
        "pre-trained on photographs (paper: ImageNet-1k)",
    ):
        assert named in notes(second, cell)
    text = tables([directory], ["kamim_2"])
    assert re.search(r"8 +0\.25 +paper +33\.97 .*\n +measured +61\.00 ≠\(1\)", text)


@pytest.mark.parametrize(
    ("architecture", "arguments", "row"),
    [
        ("vit_tiny_patch16_224", {}, "ViT-T"),
        ("vit_base_patch16_224", {"embed_dim": 384, "depth": 12}, "ViT-S"),
        ("deit_small_patch16_224", {"img_size": 192}, "ViT-S"),
        ("swin_tiny_patch4_window7_224", {"window_size": 6}, "Swin-T"),
        ("swin_base_patch4_window7_224", {}, "Swin-B"),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 48}, "swin of 48 channels"),
        ("vit_relpos_base_patch16_224", {}, "vit_relpos_base_patch16_224"),
    ],
)
def test_encoders_find_their_line(write: Write, architecture: str, arguments: dict[str, Any], row: str) -> None:
    entry = model(architecture=architecture, model_args=arguments, training=training())
    (label, _), cell = only_cell(laid("kamim_1", write((entry, [probe()]))))
    assert label == row
    if row.startswith("Swin"):  # the paper probes its last stage, with a LayerNorm or without
        assert cell.found is not None
        assert cell.found.differences == {"layer": "last"}


def test_methods_stand_in_their_columns_and_probes_before_fast_probes(write: Write) -> None:
    rows = [probe(0.5, evaluation="fast_probe"), probe(0.16), probe(0.7, evaluation="fine_tuning", layer=12)]
    directory = write((model("a", training=training("SimMIM")), rows), (model("b", training=training()), rows))
    table = laid("kamim_1", directory)
    values = {place: cell.value for place, cell in cells(table).items()}
    methods = ("SimMIM", "KAMIM")
    assert values == {("ViT-B", f"{m} ({e})"): v for m in methods for e, v in (("LP", "16.00"), ("FT", "70.00"))}
    cell = cells(table)["ViT-B", "KAMIM (LP)"]
    assert "closest to the paper's protocol of 2 that fit; others: 50.00 (evaluation fast_probe)" in notes(table, cell)
    assert cells(table)["ViT-B", "KAMIM (FT)"].sign == ""


def test_the_closest_protocol_is_shown_and_the_rest_named(write: Write) -> None:
    rows = [probe(0.1, layer=12), probe(0.2, layer=8, pooling="cls"), probe(0.3, layer=8), probe(0.4, layer=0)]
    tiny = write((model("low", training=training()), [probe(0.9)]), data=PHOTOGRAPHS, name="photographs")
    table = laid("kamim_1", tiny, write((model(training=training()), rows)))
    _, cell = only_cell(table)
    assert cell.value == "30.00"
    others = "10.00 (layer 12 of 12), 20.00 (pooling cls), 40.00 (layer 0 of 12) and 1 more"
    assert f"of 5 that fit; others: {others}" in notes(table, cell)


def test_the_papers_data_set_goes_before_other_differences_and_more_images_before_fewer(write: Write) -> None:
    unlike = probe(0.1, layer=12, pooling="cls", epochs=10, images=512, test=512)
    directory = write((model(training=training()), [unlike, unlike._replace(value=0.2, images=5000)]))
    photographs = write((model(training=training()), [probe(0.9, images=256)]), data=PHOTOGRAPHS, name="photographs")
    _, cell = only_cell(laid("kamim_1", photographs, directory))
    assert cell.value == "20.00"


def test_hyperparameters_detectors_and_norms_find_their_cells(write: Write) -> None:
    other = training(weight_patch=16, temperature=1.0, detector={"class_path": "kamim.ORB", "init_args": {}})
    odd = training(weight_patch=4)
    directory = write(
        (model("a", training=other), [probe(0.1), probe(0.2, norm="trained")]),
        (model("b", training=odd), [probe(0.3)]),
        (model("c", training=training("SimMIM")), [probe(0.4), probe(0.5, norm="final")]),
    )

    def shown(name: str) -> dict[tuple[str, ...], str]:
        return {place: cell.value for place, cell in cells(laid(name, directory)).items()}

    # ORB is of table 4 alone
    assert shown("kamim_2") == {("4", "0.25", "LP"): "30.00", ("SimMIM", "", "LP"): "40.00"}
    assert shown("kamim_4") == {
        ("none (SimMIM)", "LP"): "40.00", ("FAST", "LP"): "30.00", ("ORB", "LP"): "10.00"
    }  # fmt: skip
    fifth = shown("kamim_5")
    simmim = [fifth[f"{with_or_without} LayerNorm", "SimMIM (LP)"] for with_or_without in ("w/o", "w/")]
    assert simmim == ["40.00", "50.00"]
    assert fifth["w/ LayerNorm", "KAMIM (LP)"] == "20.00"


@pytest.mark.parametrize(
    ("pretrained_on", "row"),
    [("torch/cifar10", ("CIFAR-10", "CIFAR-10")), ("/data/ILSVRC2012/", ("CIFAR-10", "ImageNet-1k"))],
)
def test_table_3_tells_what_was_pretrained_on_what(write: Write, pretrained_on: str, row: tuple[str, str]) -> None:
    data = {"source": "torch/cifar10", "classes": list("0123456789"), "images": 10_000}
    entry = model(training=training("SimMIM", source=pretrained_on))
    table = laid("kamim_3", write((entry, [probe(images=10_000, test=10_000, train=50_000)]), data=data))
    place, cell = only_cell(table)
    assert place == (*row, "SimMIM (LP)")
    assert cell.sign == ""


def test_a_directory_is_imagenet_only_with_its_thousand_classes(write: Write) -> None:
    few = {"source": "/data/imagenet", "classes": ["n00000001", "n00000002"], "images": 50_000}
    some = write((model(training=training()), [probe()]), data=few)
    wordnet = {"source": "/data/pictures", "classes": [f"n{i:08}" for i in range(1000)], "images": 50_000}
    whole = write((model(training=training()), [probe()]), data=wordnet, name="whole")
    cell_of_some, cell_of_whole = only_cell(laid("kamim_1", some))[1], only_cell(laid("kamim_1", whole))[1]
    assert cell_of_some.found is not None
    assert cell_of_some.found.differences == {"data": "ImageNet-1k"}
    assert cell_of_whole.sign == ""


@pytest.mark.parametrize("label", ["KAMIM", "kamim", "KAMIM ViT-B", "KAMIM-ViT-B/16"])
def test_a_label_names_the_method_where_the_weights_do_not(write: Write, label: str) -> None:
    table = laid("kamim_1", write((model(label), [probe()])))
    place, cell = only_cell(table)
    assert place == ("ViT-B", "KAMIM (LP)")
    assert cell.sign == "?"
    assert f"{label!r} is taken for KAMIM by its label" in notes(table, cell)
    assert "pre-training epochs not told (paper: 100)" in notes(table, cell)


@pytest.mark.parametrize(
    "entry",
    [
        model("my KAMIM"),
        model("KAMIM ViT-S"),
        model("KAMIM", spec="random:vit_base"),
        model("KAMIM", training=training("Contrast")),
    ],
)
def test_what_is_no_kamim_stands_in_no_column_of_it(write: Write, entry: dict[str, Any]) -> None:
    directory = write((entry, [probe()]))
    assert not laid("kamim_1", directory).measured
    assert not laid("kamim_2", directory).measured


def test_training_goes_before_the_label(write: Write) -> None:
    place, cell = only_cell(laid("kamim_1", write((model("KAMIM", training=training("SimMIM")), [probe()]))))
    assert place == ("ViT-B", "SimMIM (LP)")
    assert cell.sign == ""


def test_few_shot_and_neighbours_find_v_k_and_pooling(write: Write) -> None:
    cls = {"pooling": "cls", "norm": "final", "resolution": 224, "crop": 0.875, "interpolation": "bicubic"}
    cls |= {"temperature": 0.07, "test": 50_000}
    mean = cls | {"pooling": "mean"}
    rows = []
    for i, k in enumerate((1, 20, 200)):
        neighbours = Row(
            "knn", 12, None, f"top1_k{k}", 0.6 + i / 100, 0.5, 0.7, 50_000, protocol(**mean, train=1281167)
        )
        of_cls = protocol(**cls, train=1281167)
        rows += [neighbours, neighbours._replace(statistic=f"top1_k{k}_cls", value=0.7 + i / 100, protocol=of_cls)]
        for v in (1, 20):
            told = protocol(**cls, train=1000 * v, seeds=5, per_class=v)
            few = Row("few_shot", 12, None, f"top1_v{v}_k{k}", (v + i) / 100, 0.0, 0.9, 50_000, told)
            rows += [few, few._replace(statistic=f"seed_deviation_v{v}_k{k}", value=0.9)]
    entry = model("iBOT", "vit_small_patch16_224", image_size=[224, 224])
    table = laid("attmask", write((entry, rows)))
    found = cells(table)
    shown = {place: cell.value for place, cell in found.items()}
    assert shown == {("iBOT", "k-NN"): "71.00", ("iBOT", "v = 1"): "1.00", ("iBOT", "v = 20"): "21.00"}
    assert {cell.sign for cell in found.values()} == {"?"}  # how the weights were trained is not told
    row = laid("latent_mim", write((entry, rows), name="again"))
    place, cell = only_cell(row)
    assert place == ("iBOT", "nearest neighbour")
    assert cell.value == "60.00"
    assert cell.found is not None
    assert cell.found.differences == {"encoder": "ViT-B", "train": "leave one out", "norm": "none"}


def test_reconstruction_keeps_its_units(write: Write) -> None:
    told = {"evaluation": "reconstruction", "resolution": 192, "test": 50_000, "seeds": 1, "mask_ratio": 0.4}
    values = {"psnr_reference": 12.0631, "ssim_reference": 0.10764, "psnr_masked": 15.5, "ssim_gaussian_pasted": 0.5}
    row = Row("reconstruction", None, None, "", 0, 0, 0, 50_000, protocol(**told))
    rows = [row._replace(statistic=n, value=v, ci_low=v - 0.1, ci_high=v + 0.1) for n, v in values.items()]
    table = laid("kamim_reconstruction", write((model(training=training()), rows)))
    shown = {place[1]: (cell.value, cell.interval, cell.sign) for place, cell in cells(table).items()}
    assert shown == {
        "PSNR, dB": ("12.063", "[11.963, 12.163]", ""),
        "SSIM": ("0.1076", "[0.0076, 0.2076]", ""),
        "PSNR masked, dB": ("15.500", "[15.400, 15.600]", ""),
        "SSIM pasted": ("0.5000", "[0.4000, 0.6000]", ""),
    }
    assert "layer" not in " ".join(table.notes)


def test_one_image_gives_no_interval(write: Write) -> None:
    row = probe()._replace(ci_low=float("nan"), ci_high=float("nan"))
    _, cell = only_cell(laid("kamim_1", write((model(training=training()), [row]))))
    assert cell.interval == ""


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Logs of a SimMIM run, of two KAMIM runs of the same recipe, and of one of another."""
    rates = {"simmim": (5.0, 100.0, 50.0), "fast": (1.0, 80.0, 80.0), "sift": (1.0, 50.0, 50.0), "long": (1.0, 9.0)}
    for name, rate in rates.items():
        recipe = training("SimMIM" if name == "simmim" else "KAMIM", epochs=200 if name == "long" else 100)
        if name == "sift":
            recipe["objective"]["init_args"]["detector"]["class_path"] = "SIFT"
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(recipe))
        entry = {"architecture": "vit_base_patch16_224", "model_args": {"img_size": 192, "patch_size": 16}}
        (tmp_path / name / "encoder.json").write_text(json.dumps(entry))
        lines = [{"step": i, "images_per_second": value} for i, value in enumerate(rate)] + [{"step": 9, "monitor": 1}]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: tmp_path / name for name in rates}


def test_epoch_time_is_against_simmim_of_the_same_recipe(runs: dict[str, Path]) -> None:
    lines = list(csv.DictReader(io.StringIO(tables([*runs.values()], ["kamim_4"], style="csv"))))
    shown = {line["row"]: line["value"] for line in lines if line["column"] == "epoch time"}
    # SimMIM takes (1/100 + 1/50) / 2 = 0.015 s a picture, the others 1/80 and 1/50
    assert shown == {"none (SimMIM)": "1.00", "FAST": "0.83", "SIFT": "1.33", "ORB": ""}
    text = tables([*runs.values()], ["kamim_4"])
    assert re.search(r"none \(SimMIM\) +paper .*\n +measured +not run +not run +1\.00x", text)
    with pytest.raises(UserError, match="no number"):
        tables([runs["long"]], ["kamim_4"])


def test_time_ratio_has_the_bootstraps_interval() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.gamma(100, 1, 400) / 50, rng.gamma(100, 1, 400) / 100
    value, low, high = time_ratio(ours, theirs)
    ratio = ours.mean() / theirs.mean()
    # delta method: both means have a coefficient of variation of about 0.1 / sqrt(400)
    half = 1.96 * ratio * np.sqrt((ours.var() / ours.mean() ** 2 + theirs.var() / theirs.mean() ** 2) / 400)
    assert value == pytest.approx(ratio)
    assert low == pytest.approx(ratio - half, rel=0.003)
    assert high == pytest.approx(ratio + half, rel=0.003)


@pytest.mark.parametrize(
    ("method", "arguments", "named"),
    [
        ("KAMIM", {"masking": "attmask_high"}, "KAMIM, attmask_high masks"),
        ("SimMIM", {"masking": "keypoint_hint"}, "SimMIM, keypoint_hint masks"),
        ("MAE", {"masking": "random", "keypoint_weights": True}, "MAE, keypoint weights"),
        ("AttMask", {"masking": "keypoint_high"}, "iBOT, keypoint_high masks"),
        ("AttMask", {"masking": "attmask_high", "keypoint_weights": True}, "iBOT+AttMask-High, keypoint weights"),
        ("LatentMIM", {"masking": "random", "target": "joint", "gap": 0}, "Latent MIM, target joint, no gap"),
        ("LatentMIM", {"masking": "random", "loss": "l2"}, "Latent MIM, loss l2"),
    ],
)
def test_a_variant_fills_no_cell_of_the_papers(
    write: Write, method: str, arguments: dict[str, Any], named: str
) -> None:
    """It is a method of its own, in a line of its own where a table has any."""
    rows = [probe(), probe(evaluation="fine_tuning", layer=12), k_nn(0.5), k_nn(0.6, k=1)]
    entry = model("KAMIM", training=training(method, **arguments))
    directory = write((entry, rows))
    for name in NAMES:
        for line in laid(name, directory).lines:
            assert not line.in_paper or all(cell.found is None for cell in line.cells), (name, line.labels)
    for name in ("attmask", "latent_mim"):
        assert laid(name, directory).lines[-1].labels == (named,)


@pytest.mark.parametrize("detector", ["BRISK", "SIFT"])
def test_another_detector_is_of_table_4_and_not_of_table_2(write: Write, detector: str) -> None:
    other = training(detector={"class_path": f"kamim.{detector}", "init_args": {}})
    directory = write((model(training=other), [probe()]))
    assert not laid("kamim_2", directory).measured
    (label, _), cell = only_cell(laid("kamim_4", directory))
    assert label == detector
    assert cell.sign == ("" if detector == "SIFT" else "≠") or cell.paper == NONE


def test_detectors_with_other_parameters_are_other_detectors(write: Write) -> None:
    other = training(detector={"class_path": "ORB", "init_args": {"edge_threshold": 8, "features": 500}})
    (label, _), _cell = only_cell(laid("kamim_4", write((model(training=other), [probe()]))))
    assert label == "ORB (edge threshold 8)"


@pytest.mark.parametrize("name", DETECTORS)
def test_kamims_detectors_are_those_of_our_defaults(name: str) -> None:
    module = plugins.load("kamim_analysis.keypoints", name.lower(), "detector")
    assert as_dict(getattr(module, name)()) == {"class_path": name, "init_args": DETECTORS[name]}


def test_a_temperature_that_the_run_found_is_none_of_table_2(write: Write) -> None:
    found = training(temperature="auto", found_temperature=0.25)
    (w_ps, t, _), _cell = only_cell(laid("kamim_2", write((model(training=found), [probe()]))))
    assert (w_ps, t) == ("8", "0.25 (auto)")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"mask_ratio": 0.75}, {"pretraining_mask_ratio": "0.6"}),
        ({"mask_unit": 16}, {"mask_unit": "32"}),
    ],
)
def test_other_masks_and_other_optimisation_are_named(
    write: Write, change: dict[str, Any], difference: dict[str, str]
) -> None:
    other = training(**change)
    _, cell = only_cell(laid("kamim_1", write((model(training=other), [probe()]))))
    assert cell.found is not None
    assert cell.found.differences == difference
    other["optim"] |= {"batch_size": 256, "learning_rate": 1e-4}
    _, cell = only_cell(laid("kamim_1", write((model(training=other), [probe()]), name="again")))
    assert cell.found is not None
    more = {"pretraining_batch_size": "2048", "pretraining_learning_rate": "8e-4"}
    assert cell.found.differences == difference | more


@pytest.mark.parametrize(
    ("masking", "row"),
    [("block", "iBOT"), ("attmask_high", "iBOT+AttMask-High"), ("attmask_hint", "iBOT+AttMask-Hint")],
)
def test_runs_of_attmask_fill_the_row_of_their_masks(write: Write, masking: str, row: str) -> None:
    table = laid("attmask", write((small_vit("mine", attmask_of(masking)), [k_nn(0.7)])))
    place, cell = only_cell(table)
    assert place == (row, "k-NN")
    assert cell.found is not None
    assert (cell.sign, cell.found.differences, cell.found.untold) == ("", {}, {})


def test_attmask_on_a_part_of_imagenet_has_a_table_of_its_own(write: Write) -> None:
    ratios = {"random_75": {"mask_ratio": 0.75, "mask_ratio_variation": 0.0}, "random": {}}
    maskings = ["block", *ratios, "attmask_low", "attmask_hint", "attmask_high"]
    models = [
        (
            small_vit(name, attmask_of(name.removesuffix("_75"), per_class=260, local_crops=6, **ratios.get(name, {}))),
            [k_nn(0.40 + i / 100, train=260_000)],
        )
        for i, name in enumerate(maskings)
    ]
    found = cells(laid("attmask_20", write(*models)))
    shown = [(place[0], place[1], cell.paper, cell.value, cell.sign) for place, cell in found.items()]
    assert shown == [
        ("block-wise (iBOT)", "10-50%", "46.7", "40.00", ""), ("random", "75%", "47.3", "41.00", ""),
        ("random", "10-50%", "47.8", "42.00", ""), ("AttMask-Low", "10-50%", "44.0", "43.00", ""),
        ("AttMask-Hint", "10-50%", "49.5", "44.00", ""), ("AttMask-High", "10-50%", "49.7", "45.00", ""),
    ]  # fmt: skip
    whole = write((small_vit("whole", attmask_of("block")), [k_nn(0.7)]), name="whole")
    _, cell = only_cell(laid("attmask_20", whole))
    assert cell.found is not None
    assert cell.found.differences == {"pretraining_data": "ImageNet-1k, 260 a class", "local_crops": "6"}


def test_runs_of_latent_mim_fill_its_row(write: Write) -> None:
    recipe = {
        "objective": {"class_path": "LatentMIM", "init_args": {"visible": 20, "gap": 4, "mask_ratio": 0.6}},
        "data": {"source": "torch/imagenet"}, "encoder": {"name": "vit_base", "image_size": 224},
        "optim": {"epochs": 800, "batch_size": 4096, "learning_rate": 2.4e-3},
    }  # fmt: skip
    entry = model("mine", image_size=[224, 224], training=recipe)
    row = k_nn(0.5, k=1, pooling="mean", norm="none", train="leave one out")
    place, cell = only_cell(laid("latent_mim", write((entry, [row]))))
    assert (place, cell.value, cell.sign) == (("Latent MIM", "nearest neighbour"), "50.00", "")


def test_shipped_recipes_are_the_tables_methods(write: Write) -> None:
    """What the recipes of Table 1 say of pre-training agrees with what its table expects."""
    for name, method in (("kamim_vit_b16_in1k", "KAMIM"), ("simmim_vit_b16_in1k", "SimMIM")):
        directory = write((model(training=recipe_of(name)), [probe()]), name=name)
        place, cell = only_cell(laid("kamim_1", directory))
        assert (place, cell.sign) == (("ViT-B", f"{method} (LP)"), "")


def test_a_sweeps_directory_is_all_that_ended_in_it(runs: dict[str, Path], tmp_path: Path, write: Write) -> None:
    probed = write((model("fast", training=training()), [probe(0.3)]))
    probed.rename(runs["fast"] / "probe")
    (tmp_path / "cut_short").mkdir()
    (tmp_path / "sweep.yaml").write_text("recipe: kamim_vit_b16_in1k\n")
    (tmp_path / "simmim.log").write_text("")
    lines = list(csv.DictReader(io.StringIO(tables([tmp_path], ["kamim_4"], style="csv"))))
    shown = {(line["row"], line["column"]): line["value"] for line in lines if line["value"]}
    assert shown == {
        ("none (SimMIM)", "epoch time"): "1.00", ("FAST", "epoch time"): "0.83", ("SIFT", "epoch time"): "1.33",
        ("FAST", "LP"): "30.00",
    }  # fmt: skip
    (tmp_path / "sweep.yaml").unlink()
    with pytest.raises(UserError, match=r"metrics\.csv is missing"):
        tables([tmp_path], ["kamim_4"])


WILD = "A_B & 50% #1 {x} $y$ ^~\\ | <b>*"


@pytest.fixture
def wild(write: Write) -> Path:
    """A model of no paper with a label that every style must escape."""
    told = protocol(pooling="mean", resolution=192, test=64)
    return write((model(WILD), [Row("knn", 12, None, "top1_k20", 0.5, 0.4, 0.6, 64, told)]), data=PHOTOGRAPHS)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_every_table_in_every_style_says_what_was_not_run(write: Write, name: str, style: str) -> None:
    rows = [probe(), probe(evaluation="fine_tuning"), Row("knn", 12, None, "top1_k1", 0.5, 0.4, 0.6, 9)]
    rows.append(Row("reconstruction", None, None, "psnr_reference", 12.0, 11.0, 13.0, 9))
    directory = write((model("KAMIM", training=training()), rows))
    printed = sum(value != NONE for line in table_modules([name])[name].GRID.lines for value in line.printed)
    measured = sum(cell.paper != NONE for cell in cells(laid(name, directory)).values())
    text = tables([directory], [name], style=style)
    # once more in the legend, which CSV has not
    assert text.count("not run") == printed - measured + (style != "csv")
    assert text.endswith("\n")


def test_csv_is_tidy_and_reads_back(write: Write) -> None:
    directory = write((model(training=training()), [probe(0.123456)]))
    lines = list(csv.DictReader(io.StringIO(tables([directory], ["kamim_1"], style="csv"))))
    assert set(CSV_COLUMNS.split()) | {"protocol", "differences"} <= set(lines[0])
    assert len(lines) == 20
    assert [line["row"] for line in lines if line["value"]] == ["ViT-B"]
    (line,) = (line for line in lines if line["value"])
    assert (line["column"], line["paper"], line["value"]) == ("KAMIM (LP)", "33.97", "12.35")
    assert (float(line["ci_low"]), float(line["ci_high"]), line["images"]) == (11.95, 12.75, "50000")
    assert (line["layer"], line["pooling"], line["norm"], line["seeds"]) == ("8 of 12", "mean", "none", "1")
    assert (line["model"], line["results"], line["differences"]) == ("mine", str(directory), "")
    assert {line["status"] for line in lines} == {"not run", "as in the paper"}


def test_latex_escapes_labels_and_balances(wild: Path) -> None:
    text = tables([wild], ["attmask"], style="latex")
    assert r"A\_B \& 50\% \#1 \{x\} \$y\$ \textasciicircum{}\textasciitilde{}\textbackslash{}" in text
    body = text[text.index(r"\begin{tabular}") : text.index(r"\end{tabular}")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {7}
    bare = re.sub(r"\\[\\{}$&%#_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert all(line.count("$") % 2 == 0 for line in bare.splitlines())
    assert not re.search(r"(?<!^)%", bare.replace("% \\usepackage", ""))
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert text.isascii()
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1


def test_markdown_has_as_many_cells_in_every_row(wild: Path) -> None:
    text = tables([wild], ["attmask"], style="markdown")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}
    assert r"A\_B \& 50% \#1 {x} \$y\$ ^\~\\ \| \<b\>\*" in text


def test_an_unknown_style_is_refused(wild: Path) -> None:
    with pytest.raises(UserError, match=r"unknown style 'latx' \(did you mean 'latex'\?\)"):
        tables([wild], style="latx")


def test_results_that_no_table_is_about_are_refused(wild: Path) -> None:
    with pytest.raises(UserError, match="fits kamim_1: the analyses there are knn; wanted are linear_probe"):
        tables([wild], ["kamim_1"])
