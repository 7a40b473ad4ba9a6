"""A results directory of three models with invented numbers, written the way `kamim analyze` does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kamim_analysis import results
from kamim_analysis.figures._draw import draw_all
from kamim_analysis.figures._figure import figure_modules
from kamim_analysis.results import Results, Row

MODELS: dict[str, dict[str, Any]] = {
    "SimMIM": {"spec": "/runs/simmim", "grid": [4, 4], "image_size": [32, 32], "layers": 4, "skipped": {}},
    "untrained (random)": {
        "spec": "random:vit_tiny",
        "grid": [4, 4],
        "image_size": [32, 32],
        "layers": 4,
        "skipped": {"reconstruction": "its weights hold no <mask> token"},
    },
    "<b>wide</b> $a$_b_$c$ of/a/long/path_of_names": {
        "spec": "timm:vit_tiny",
        "grid": [2, 3],
        "image_size": [32, 48],
        "layers": 3,
        "skipped": {"reconstruction": "its weights hold no <mask> token"},
        "notes": ["left out: <b>head</b>.weight"],
    },
}
CLASSES = ["cat", "<script>alert(1)</script>", "$x_1$ owl$"]
LABELS = np.array([0, 1, 2, *[0] * 5, *[1] * 5, *[2] * 3])


def manifest(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "kamim_analysis": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "command": ["kamim", "analyze"],
        "versions": {"torch": "2.15.0", "timm": "1.0.31"},
        "seed": 7,
        "data": {"source": "/data/<birds>", "classes": CLASSES, "images": 64, "neighbours": "leave one out"},
        "models": [{"label": label, "architecture": "vit_tiny", **entry} for label, entry in models.items()],
    }


def rows_of_model(rng: np.random.Generator, layers: int, *, reconstruction: bool) -> list[Row]:
    def row(analysis: str, layer: int | None, head: int | None, statistic: str) -> Row:
        value, below, above = rng.uniform(0.2, 0.7), rng.uniform(0.01, 0.1), rng.uniform(0.01, 0.1)
        return Row(analysis, layer, head, statistic, value, value - below, value + above, 64)

    # not in the order of layers: a figure must sort
    rows = [row("fourier", i, None, "delta_log_amplitude") for i in reversed(range(layers + 1))]
    for analysis in ("attention_distance", "attention_nmi"):
        rows += [row(analysis, i, h, "mean") for i in range(1, layers + 1) for h in (None, 0, 1)]
    rows += [row("knn", layers, None, f"top1_k{k}") for k in (100, 1, 10)]
    if reconstruction:
        rows += [row("reconstruction", None, None, statistic) for statistic in ("masked_l1", "mean_colour_l1")]
    return rows


def arrays_of_model(rng: np.random.Generator, entry: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    (height, width), size, layers = entry["grid"], entry["image_size"], entry["layers"]
    tokens = height * width
    attention = rng.random((4, 2, tokens, tokens))
    found: dict[str, dict[str, np.ndarray]] = {
        "attention": {
            "maps": (attention / attention.sum(-1, keepdims=True)).astype(np.float16),
            "pixels": np.random.default_rng(size).integers(0, 256, (4, *size, 3), dtype=np.uint8),
        },
        "tokens": {
            "tsne": rng.normal(size=(6, tokens, 2)).astype(np.float32),
            "tsne_labels": LABELS[:6],
            "self_attention_layers": np.array([layers - 1, layers]),
            "self_attention_labels": LABELS,
        },
    }
    for layer in (layers - 1, layers):
        for name, images in (
            ("one_before", 1),
            ("one_after", 1),
            ("two_before", 2),
            ("two_after", 2),
            ("all_after", 16),
        ):
            found["tokens"][f"{name}{layer}"] = rng.normal(size=(images, tokens, 2)).astype(np.float32)
    if not entry["skipped"]:
        found["reconstructions"] = {"pixels": rng.integers(0, 256, (4, 4, *size, 3), dtype=np.uint8)}
    return found


def write(directory: Path, models: dict[str, dict[str, Any]]) -> Results:
    rng = np.random.default_rng(0)
    rows, arrays = {}, {}
    for label, entry in models.items():
        rows[label] = rows_of_model(rng, entry["layers"], reconstruction=not entry["skipped"])
        for file, named in arrays_of_model(rng, entry).items():
            arrays.setdefault(file, {})[label] = named
    results.write(directory, manifest(models), rows, arrays)
    return Results.open(directory)


@pytest.fixture
def drawable(tmp_path: Path) -> Results:
    """Three models: one complete, one random control without reconstruction, one on another grid with a wild label."""
    return write(tmp_path, MODELS)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The same three models with all figures and the report; to be read only."""
    results = write(tmp_path_factory.mktemp("drawn"), MODELS)
    assert draw_all(results.directory) == list(figure_modules())
    return results


@pytest.fixture
def control_only(tmp_path: Path) -> Results:
    """A single model, without reconstruction."""
    return write(tmp_path, {"untrained (random)": MODELS["untrained (random)"]})


@pytest.fixture
def empty(tmp_path: Path) -> Results:
    """One model, no numbers and no arrays at all."""
    entry = {**MODELS["SimMIM"], "skipped": {"reconstruction": "no head", "knn": "a single class"}}
    results.write(tmp_path, manifest({"SimMIM": entry}), {}, {})
    return Results.open(tmp_path)
