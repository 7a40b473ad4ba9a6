"""How many 192-px pictures a second FAST marks in batches on the device, eager and compiled, beside OpenCV on one core.

`python device_fast.py`. Without CUDA the figures are of this CPU, small and labelled so: batches on a CPU are no use.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch

from kamim_analysis import photographs
from kamim_analysis.decode import read_rgb
from kamim_analysis.keypoints._batched import corner_maps
from kamim_analysis.keypoints.fast import FAST

SIDE, ROUNDS = 192, 20
BATCHES = (256, 512, 1024)


def pictures(count: int) -> np.ndarray:
    """Crops of the bundled photographs, uint8 [count, 192, 192, 3]: real pictures have few corners, noise many."""
    crops = (photographs.crop(i, "train", 0)[0] for i in itertools.count())
    return np.stack([cv2.resize(crop, (SIDE, SIDE)) for crop in itertools.islice(crops, count)])


def marked(images: torch.Tensor, *, compiled: bool) -> torch.Tensor:
    """KAMIM's default map of each picture."""
    detector = FAST()
    return corner_maps(
        images,
        threshold=detector.threshold,
        nonmax_suppression=detector.nonmax_suppression,
        arc=detector.arc,
        style="drawn",
        compiled=compiled,
    )


def rate(device: torch.device, compiled: bool, batch: int = 512) -> float:
    """Pictures a second, pictures and maps on the device: the median of 20 batches, after two to warm up."""
    few = torch.from_numpy(pictures(16)).permute(0, 3, 1, 2)
    images = few.repeat(-(-batch // 16), 1, 1, 1)[:batch].contiguous().to(device)
    for _ in range(2):
        marked(images, compiled=compiled)
    seconds = _seconds_cuda if device.type == "cuda" else _seconds_cpu
    rounds = ROUNDS if device.type == "cuda" else 3
    return batch / statistics.median(seconds(lambda: marked(images, compiled=compiled)) for _ in range(rounds))


def _seconds_cuda(function: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _seconds_cpu(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def identical(device: torch.device, compiled: bool = False) -> int:
    """Over the bundled photographs at 192 px, how many pixels of their maps differ from OpenCV's."""
    shown = np.stack([cv2.resize(read_rgb(path), (SIDE, SIDE)) for path in photographs.paths()])
    expected = np.stack([FAST().map(picture, "drawn") for picture in shown]) > 0
    found = marked(torch.from_numpy(shown).permute(0, 3, 1, 2).to(device), compiled=compiled)
    return int((found.cpu().numpy() != expected).sum())


def opencv_rate() -> float:
    """Pictures a second of the path that data workers take, on one core."""
    cv2.setNumThreads(0)
    shown, detector = pictures(64), FAST()
    seconds = [_seconds_cpu(lambda: [detector.map(picture, "drawn") for picture in shown]) for _ in range(5)]
    return len(shown) / statistics.median(seconds)


def main() -> None:
    """Print rates, the ratio of compiled to eager, and whether the maps are OpenCV's."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    where = torch.cuda.get_device_name() if cuda else "this CPU, of one thread: no figure of a device"
    if not cuda:
        torch.set_num_threads(1)
    core = opencv_rate()
    print(f"OpenCV, one core: {core:,.0f} pictures of {SIDE} px a second")
    for compiled in (False, True):
        name = "compiled" if compiled else "eager"
        print(f"{name}: {identical(device, compiled)} pixels differ from OpenCV's maps of the photographs ({where})")
    for batch in BATCHES if cuda else (16,):
        eager, compiled_rate = rate(device, False, batch), rate(device, True, batch)
        print(
            f"batch {batch}: eager {eager:,.0f}/s, compiled {compiled_rate:,.0f}/s = {compiled_rate / eager:.2f}x, "
            f"{compiled_rate / core:,.1f} OpenCV cores ({where})",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
