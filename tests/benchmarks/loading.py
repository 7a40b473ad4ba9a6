"""What keypoint weights cost in the loading path: decode a 500 x 375 JPEG, crop to 192 px, flip, mask, detect."""

import io
import sys

import cv2
import numpy as np
import torch
from _timing import medians
from PIL import Image

from kamim_analysis import photographs
from kamim_analysis.decode import read_rgb
from kamim_analysis.keypoint_maps import find_detector, keypoint_map
from kamim_analysis.keypoints._detector import luminance
from kamim_analysis.shapes import Grid
from kamim_analysis.train.masks import MaskDraws
from kamim_analysis.train.objectives.simmim import SimMIM
from kamim_analysis.train.views import Augmentation, KeypointView, MaskedView


def jpegs() -> list[bytes]:
    """The bundled photographs as 500 x 375 JPEGs of quality 90: an average ImageNet file."""
    files = []
    for path in photographs.paths():
        buffer = io.BytesIO()
        Image.fromarray(read_rgb(path)).resize((500, 375)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def main() -> None:
    """Print milliseconds per image and the two ratios."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    files = jpegs()
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
