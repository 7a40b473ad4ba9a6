"""What loading costs: packed shards against a tree, the device's part, and keypoint weights.

The loading path: decode a 500 x 375 JPEG, crop to 192 px, flip, mask, detect.
"""

import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from _timing import medians
from PIL import Image

from kamim_analysis import photographs
from kamim_analysis.commands import pack
from kamim_analysis.decode import read_rgb
from kamim_analysis.keypoint_maps import find_detector, keypoint_map
from kamim_analysis.keypoints._detector import luminance
from kamim_analysis.shapes import Grid
from kamim_analysis.train.masks import MaskDraws
from kamim_analysis.train.objectives.simmim import SimMIM
from kamim_analysis.train.samples import TrainingSamples
from kamim_analysis.train.settings import parse_recipe
from kamim_analysis.train.views import Augmentation, KeypointView, MaskedView


def jpegs() -> list[bytes]:
    """The bundled photographs as 500 x 375 JPEGs of quality 90: an average ImageNet file."""
    files = []
    for path in photographs.paths():
        buffer = io.BytesIO()
        Image.fromarray(read_rgb(path)).resize((500, 375)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def tree_of(files: list[bytes], folder: Path) -> Path:
    """The JPEGs as a tree of 120 files."""
    (folder / "all").mkdir(parents=True)
    for i in range(120):
        (folder / "all" / f"{i:03d}.jpg").write_bytes(files[i % len(files)])
    return folder


def loader(source: Path, *options: str) -> Callable[[], object]:
    """Loads sixty samples of a recipe at 192 px as one worker does."""
    recipe = parse_recipe(["--data.source", str(source), "--encoder.name", "vit_tiny", *options])
    start = recipe.objective.start(recipe)
    view = recipe.objective.view(Augmentation.of(recipe.data), start.encoder)
    samples = TrainingSamples(start.pictures, view, seed=0)
    return lambda: [samples[0, i] for i in range(60)]


def compare(name: str, one: Callable[[], object], other: Callable[[], object], asked: str, rounds: int = 21) -> None:
    """Print how many times as long `one` takes as `other`: they take turns, the interval is over rounds."""
    pairs = []
    for _ in range(2 + rounds):
        times = [time.thread_time()]
        for function in (one, other):
            function()
            times.append(time.thread_time())
        pairs.append(np.diff(times))
    first, second = np.array(pairs[2:]).T
    ratios = first / second
    drawn = np.median(np.random.default_rng(0).choice(ratios, (2000, rounds)), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    print(
        f"{name:<52} {np.median(ratios):.2f}x [{low:.2f}, {high:.2f}]   {1e3 * np.median(first) / 60:.2f} ms to "
        f"{1e3 * np.median(second) / 60:.2f} ms an image   {asked and 'asked ' + asked}",
        flush=True,
    )


def compare_sources(files: list[bytes]) -> None:
    """A tree of 500-px JPEGs against shards of 256 px, and the workers' part with and without the device's."""
    with tempfile.TemporaryDirectory() as folder:
        tree, shards = tree_of(files, Path(folder, "tree")), Path(folder, "shards")
        pack.run([str(tree), "--out", str(shards), "--size", "256"])
        for objective in ("SimMIM", "KAMIM"):
            chosen = ("--objective", objective)
            asked = ">= 1.5x"
            compare(f"{objective}: 500-px tree / 256-px shards", loader(tree, *chosen), loader(shards, *chosen), asked)
        for source, name in ((tree, "500-px tree"), (shards, "256-px shards")):
            device = loader(source, "--objective", "KAMIM", "--data.device_augment", "true")
            compare(f"KAMIM, {name}: workers alone / device_augment", loader(source, *chosen), device, "")


def main() -> None:
    """Print milliseconds per image and the ratios."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    files = jpegs()
    compare_sources(files)
    draws = MaskDraws(SimMIM(), Grid(12, 12), 16)
    plain = MaskedView(Augmentation((0.67, 1.0), (3 / 4, 4 / 3), 0.5, 0.5), 192, draws)
    detectors = {name: KeypointView(plain, find_detector(name), "drawn", 8) for name in ("fast", "orb", "sift")}
    views = {"no keypoints": plain, **detectors}

    def load(view: object) -> None:
        torch.manual_seed(0)
        for file in files:
            view(read_rgb(io.BytesIO(file)))  # type: ignore[operator]

    times = medians({name: (lambda view=view: load(view)) for name, view in views.items()}, rounds=30)
    for name, seconds in times.items():
        ratio = seconds / times["no keypoints"]
        print(f"loading path, {name:<13} {1e3 * seconds / len(files):6.2f} ms an image   {ratio:.2f}x")

    crops = [cv2.resize(read_rgb(io.BytesIO(file)), (192, 192)) for file in files]
    fast = find_detector("fast").build()

    def reference(crop: np.ndarray) -> np.ndarray:
        drawing = cv2.drawKeypoints(np.zeros_like(crop), fast.detect(crop, None), None, color=(255, 255, 255))
        return np.sign(drawing.max(2))

    steps = {
        "detect (gray given)": lambda: [fast.detect(gray, None) for gray in map(luminance, crops)],
        "detect + points": lambda: [keypoint_map(crop, style="points") for crop in crops],
        "detect + drawn": lambda: [keypoint_map(crop) for crop in crops],
        "detect + OpenCV's drawing": lambda: [reference(crop) for crop in crops],
    }
    times = medians(steps, rounds=50)
    for name, seconds in times.items():
        ratio = seconds / times["detect (gray given)"]
        print(f"192-px map, {name:<26} {1e3 * seconds / len(crops):6.3f} ms an image   {ratio:.2f}x")


if __name__ == "__main__":
    sys.exit(main())
