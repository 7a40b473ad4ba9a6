"""A results directory of three models with invented numbers, written the way `kamim analyze` does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kamim_analysis import results
from kamim_analysis.cka import grams_of
from kamim_analysis.comparison import compare_all
from kamim_analysis.figures._draw import draw_all
from kamim_analysis.figures._figure import figure_modules
from kamim_analysis.results import Results, Row, Samples

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
GEOMETRY = "token_cosine token_rankme image_cosine image_rankme uniformity share_within_images".split()
GEOMETRY += "share_within_classes share_between_classes class_share_of_images".split()
DENSE_BY_DEPTH = ["flip_match", "flip_match_within_one", "flip_same_position"]
LATENTS = ["delta_log_amplitude_after_attention", "change_by_attention", "change_by_mlp"]
OF_PATCHES = ["patch_entropy", "patch_to_itself", "patch_norm_ratio"]
OF_CLS = ["cls_entropy", "cls_to_cls", "cls_norm_ratio", "patch_to_cls"]
KEYPOINTS = ["received_spearman", "cls_spearman", "error_keypoint_spearman"]
NORMS = ["norm_p5", "norm_median", "norm_p75", "norm_p99", "outlier_share"]
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
    rows += [Row("knn", 1, None, "top1_k10", 0.4, 0.3, 0.5, 64)] * (layers == 3)
    rows += few_shot_of_model(layers)
    rows += aggregation_of_model(layers)
    names = OF_PATCHES + OF_CLS * (layers > 3)  # the third model has no cls token
    rows += [row("cls_attention", i, None, name) for i in reversed(range(1, layers + 1)) for name in names]
    rows += [row("token_norms", i, None, name) for i in reversed(range(layers + 1)) for name in NORMS]
    rows += [row("geometry", i, None, name) for i in reversed(range(layers + 1)) for name in GEOMETRY]
    rows += [row("geometry", layers, None, f"{name}_final") for name in ("image_cosine", "image_rankme", "uniformity")]
    rows += [row("dense", i, None, name) for i in reversed(range(1, layers + 1)) for name in DENSE_BY_DEPTH]
    rows += [row("dense", None, None, name) for name in ("colour_match", "colour_match_within_one")]
    rows += [row("dense", layers, None, name) for name in ("silhouette", "segment_coherence")]
    rows += [row("fourier", i, None, name) for i in reversed(range(1, layers + 1)) for name in LATENTS]
    filters = [f"{kind}_{cycles}" for kind in ("high_pass", "low_pass") for cycles in (8, 2, 4)]
    rows += [row("frequency_bias", layers, None, f"top1_{name}") for name in (*filters, "unfiltered")]
    rows += [row("attribution", None, None, f"{name}_deletion_auc") for name in ("knn", "probe")]
    rows += [row("alignment", layers, None, name) for name in ("alignment", "distance_to_others", "relative_alignment")]
    probed = [(i, pooling) for i in reversed(range(layers + 1)) for pooling in ("central", "mean", "cls")[: layers - 1]]
    rows += [row("fast_probe", i, None, f"{name}_{p}")._replace(protocol=f"evaluation=fast_probe; pooling={p}")
             for i, p in probed for name in ("top1", "held_out_top1")]  # fmt: skip
    rows += [rows[-2]._replace(statistic="top1_best"), row("fast_probe", None, None, "majority")]
    if reconstruction:
        rows += [row("reconstruction", None, None, statistic) for statistic in ("masked_l1", "mean_colour_l1")]
        rows += [row("reconstruction", None, None, f"{KEYPOINTS[2]}{end}") for end in ("", "_control", "_excess")]
    for name in KEYPOINTS[: 1 + (layers > 3)]:
        places = [(i, h) for i in reversed(range(1, layers + 1)) for h in (None, 0, 1)]
        rows += [row("attention_keypoints", i, h, name) for i, h in places]
        rows += [row("attention_keypoints", i, None, f"{name}_control") for i, h in places if h is None]
    return rows


def few_shot_of_model(layers: int) -> list[Row]:
    """From 1, 5 and 10 pictures of each of three classes, at two depths, by two poolings; the k that fit."""
    rng = np.random.default_rng(layers)
    places = [(layer, pooling, v) for layer in (layers, 1) for pooling in ("mean", "cls") for v in (10, 1, 5)]
    rows = []
    for layer, pooling, v in places:
        told = f"evaluation=few_shot; pooling={pooling}; train={3 * v}; test=64; seeds=5; per_class={v}"
        for k in [k for k in (1, 10, 20) if k <= 3 * v]:
            name, value = f"v{v}_k{k}{'_cls' * (pooling == 'cls')}", rng.uniform(0.2, 0.7)
            rows.append(Row("few_shot", layer, None, f"top1_{name}", value, value - 0.1, value + 0.05, 64, told))
            rows.append(Row("few_shot", layer, None, f"seed_deviation_{name}", 0.02, np.nan, np.nan, 64, told))
    return rows


def aggregation_of_model(layers: int) -> list[Row]:
    """Poolings at two depths, of the third model without those that need a cls token."""
    rng = np.random.default_rng(layers)
    poolings = ["mean", "cls", "central", "cls_attention", "abmilp", "attentive"]
    poolings = [name for name in poolings if layers > 3 or "cls" not in name]
    names = [f"top1_{name}" for name in poolings] + [f"entropy_{name}" for name in poolings if name != "cls"]
    names += [f"gain_over_mean_{name}" for name in poolings if name != "mean"] + ["entropy_of_average_attentive"]
    rows = []
    for layer, name in [(layer, name) for layer in (layers, 1) for name in names]:
        told = f"evaluation=aggregation; pooling={name.split('_')[-1]}; train=80; test=64; seeds=3"
        value = rng.uniform(-0.1, 0.1) if name.startswith("gain") else rng.uniform(0.4, 0.9)
        rows.append(Row("aggregation", layer, None, name, value, value - 0.06, value + 0.04, 64, told))
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
            **norms_of_model(entry),
            "self_attention_pixels": np.random.default_rng(size).integers(0, 256, (16, *size, 3), dtype=np.uint8),
        },
        "explorer": explorer_of_model(entry),
        "fourier": diagonals_of_model(entry),
        "frequency": filtered_of_model(entry),
        "geometry": spectra_of_model(layers),
        "similarity": similarity_of_model(layers),
        "dense": dense_of_model(entry),
        "attribution": attribution_of_model(entry),
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


def explorer_of_model(entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Attention of two pictures as the explorer keeps it; the first layer lies on twice the grid, in cells of four."""
    (height, width), size = entry["grid"], entry["image_size"]
    tokens, pixels = height * width, np.random.default_rng(size).integers(0, 256, (16, *size, 3), dtype=np.uint8)
    rng, found = np.random.default_rng(tokens), {"pixels": pixels[:2], "labels": LABELS[:2]}
    for layer in range(1, entry["layers"] + 1):
        attention = np.exp(2 * rng.normal(size=(2, 2, tokens, tokens)))
        attention /= attention.sum(-1, keepdims=True)
        largest = attention.max(-1)
        found[f"codes{layer}"] = np.rint(255 * np.sqrt(attention / largest[..., None])).astype(np.uint8)
        found[f"largest{layer}"] = largest.astype(np.float16)
        heads_and_mean = np.concatenate([attention, attention.mean(1, keepdims=True)], axis=1)
        found[f"entropy{layer}"] = -(heads_and_mean * np.log(heads_and_mean)).sum(-1) / np.log(tokens)
        found[f"distance{layer}"] = rng.uniform(3, 30, largest.shape).astype(np.float32)
        found[f"grid{layer}"] = np.array([2 * height, 2 * width, 2] if layer == 1 else [height, width, 1])
    return found


def norms_of_model(entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Norms with a second hump, and outliers that come back in the first patch; none in the random control."""
    (height, width), layers = entry["grid"], entry["layers"]
    outliers = not entry["spec"].startswith("random:")
    maps = np.zeros((layers + 1, height, width), np.float32)
    maps[layers, 0, 0] = 0.5 * outliers
    counts = np.zeros((layers + 1, 12), np.int64)
    counts[:, 2:5], counts[:, 9] = (300, 900, 400), 20 * outliers
    found = {f"norm_outliers{i}": places for i, places in enumerate(maps)}
    return found | {"norm_edges": np.geomspace(0.1, 100, 13), "norm_histogram": counts}


def diagonals_of_model(entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Half diagonals that fall the sooner the deeper, the embedding's on twice the grid."""
    found, side = {}, min(entry["grid"])
    for layer in range(entry["layers"] + 1):
        count = side - side // 2 if layer else side
        frequency = 2 * np.arange(count) / (side if layer else 2 * side)
        value = -(1 + layer / entry["layers"]) * frequency
        found |= {f"frequency{layer}": frequency, f"diagonal{layer}": np.stack([value, 1.1 * value, 0.9 * value])}
    return found


def filtered_of_model(entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Six filters and what they leave of a picture."""
    size, cycles = entry["image_size"], np.array([2, 4, 8])
    share = np.array([0.6, 0.8, 0.9])
    return {
        "cycles": cycles,
        "nyquist": 2 * cycles / min(size),
        "low_pass_variance": np.stack([share, share - 0.05, share + 0.05]),
        "k": np.array(20),
        "majority": np.array(0.4),
        "pixels": np.random.default_rng(size).integers(0, 256, (7, *size, 3), dtype=np.uint8),
    }


def spectra_of_model(layers: int) -> dict[str, np.ndarray]:
    """Spectra that fall as powers of the rank; the last singular value of the images' is zero."""
    ranks = np.array([1.0, 2, 4, 8, 16])
    tokens = np.stack([ranks, 0.3 * ranks**-1.5, 0.2 * ranks**-1.5, 0.4 * ranks**-1.5])
    images = np.stack([ranks, 0.4 / ranks * (ranks < 16)])
    found = {f"token_spectrum{i}": tokens for i in range(layers + 1)}
    return found | {f"image_spectrum{i}": images for i in range(layers + 1)} | {f"image_spectrum_final{layers}": images}


def similarity_of_model(layers: int) -> dict[str, np.ndarray]:
    """Layers that drift away from the embedding, on the same 20 images for all models."""
    common, own = np.random.default_rng(1).normal(size=(20, 6)), np.random.default_rng(layers).normal(size=(20, 6))
    features = [(1 - i / layers) * common + i / layers * own for i in range(layers + 1)]
    neighbours = [np.sort(np.argsort(np.square(x[:, None] - x).sum(-1))[:, 1:4], axis=1) for x in features]
    return {
        "grams": np.stack([grams_of(layer) for layer in features]),
        "gram_images": np.array(20),
        "neighbours": np.stack(neighbours).astype(np.int32),
    }


def dense_of_model(entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Colours of four pictures at two depths, the first on twice the grid; segments in stripes; one pair."""
    (height, width), size, layers = entry["grid"], entry["image_size"], entry["layers"]
    rng = np.random.default_rng(layers)
    found = {
        "pixels": np.random.default_rng(size).integers(0, 256, (4, *size, 3), dtype=np.uint8),
        "labels": LABELS[:4],
        "segments": np.broadcast_to(np.arange(width) % 4, (4, height, width)).astype(np.uint8),
        "pairs": np.array([[0, 3]]),
        "matches0": np.array([[0, 0, 1, 1], [height - 1, width - 1, 0, 1]]),
        "cosines0": np.array([0.9, 0.7], np.float32),
    }
    for layer, scale in ((1, 2), (layers, 1)):
        found[f"rgb{layer}"] = rng.integers(0, 256, (4, scale * height, scale * width, 3), dtype=np.uint8)
        found[f"explained{layer}"] = np.array([0.4, 0.2, 0.1], np.float32)
    return found


def attribution_of_model(entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Maps of eight pictures of two decisions, the third picture's wrong; curves that fall and rise."""
    rng, size, shares = np.random.default_rng(entry["layers"]), entry["image_size"], np.linspace(0, 1, 7)
    found = {
        "pixels": np.random.default_rng(size).integers(0, 256, (8, *size, 3), dtype=np.uint8),
        "labels": LABELS[:8],
        "shares": shares,
    }
    for decision in ("knn", "probe"):
        curves = {"deletion": (1 - shares) ** 2, "insertion": 1 - (1 - shares) ** 2, "random": 1 - shares}
        found |= {f"{decision}_{kind}": np.stack([curve, curve - 0.1, curve + 0.1]) for kind, curve in curves.items()}
        found[f"{decision}_maps"] = rng.normal(size=(8, *entry["grid"])).astype(np.float32)
        found[f"{decision}_predicted"] = np.where(np.arange(8) == 2, 0, LABELS[:8])
    return found


def samples_of_model(number: int, layers: int) -> Samples:
    """Values of twenty pictures: a statistic that differs with depth, one that does not, and two without spread."""
    rng = np.random.default_rng(number)
    pictures = np.random.default_rng(9).normal(size=20)
    found = {
        ("fourier", "delta_log_amplitude", i): pictures + i * number * rng.normal(1, 0.5, 20) for i in range(layers + 1)
    }
    found |= {("geometry", "uniformity", i): pictures + rng.normal(size=20) for i in range(layers + 1)}
    found |= {("reconstruction", "masked_l1", None): np.full(20, number), ("knn", "top1_k10", layers): np.ones(20)}
    return {key: values.astype(np.float32) for key, values in found.items()}


def write(directory: Path, models: dict[str, dict[str, Any]]) -> Results:
    rng = np.random.default_rng(0)
    rows, arrays = {}, {}
    for label, entry in models.items():
        rows[label] = rows_of_model(rng, entry["layers"], reconstruction=not entry["skipped"])
        for file, named in arrays_of_model(rng, entry).items():
            arrays.setdefault(file, {})[label] = named
    samples = {label: samples_of_model(i, entry["layers"]) for i, (label, entry) in enumerate(models.items())}
    results.write(directory, manifest(models), rows, arrays, samples)
    compare_all(samples).to_csv(directory / results.COMPARISON, index=False)
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


@pytest.fixture(scope="session")
def explorable(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The same three models with a report to be explored, without figures; to be read only."""
    results = write(tmp_path_factory.mktemp("explorable"), MODELS)
    draw_all(results.directory, [])
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
