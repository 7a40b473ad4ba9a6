"""Two thousand mutations of valid picture files, each all the way into a training view and an evaluation transform."""

import subprocess
import sys
from pathlib import Path

import pytest

MUTATIONS = 2000
# seconds; the child needs about fifteen on a quiet machine, and none of its files a tenth of one
A_FILE, ALTOGETHER = 30, 400
# Mebibytes that two thousand files may leave behind: what allocators keep, no leak of a few kB for each
KEPT = 64

CHILD = r"""
import faulthandler, io, random, sys, warnings
from pathlib import Path

import numpy as np
import timm.data
import torch
from PIL import Image

from kamim_analysis.decode import UnreadableImage, read_rgb
from kamim_analysis.evaluation_set import middle
from kamim_analysis.keypoint_maps import find_detector
from kamim_analysis.shards import decode_packed
from kamim_analysis.train.device_decode import as_jpeg, decode
from kamim_analysis.train.views import Augmentation, CropView, KeypointView
from kamim_analysis.train.recipe import Data

count, a_file = map(int, sys.argv[1:])
torch.set_num_threads(1)
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 40000, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def valid_files():
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    rgb = Image.fromarray(noise).resize((40, 32), Image.Resampling.BICUBIC)
    gray, exif = rgb.convert("L"), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    alpha = Image.merge("RGBA", [*rgb.split(), gray])
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    files = [
        encoded(rgb, "JPEG"), encoded(rgb, "JPEG", progressive=True, exif=exif), encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(rgb, "PNG", exif=exif), encoded(rgb.quantize(16), "PNG", transparency=3), encoded(deep, "PNG"),
        encoded(alpha, "PNG"), encoded(rgb.quantize(16), "GIF", save_all=True, append_images=[rgb.quantize(4)]),
        encoded(rgb, "TIFF"), encoded(rgb, "TIFF", compression="tiff_lzw"), encoded(rgb, "TIFF", compression="jpeg"),
        encoded(rgb.convert("1"), "TIFF", compression="group4"), encoded(gray.convert("F"), "TIFF"),
        encoded(rgb, "BMP"), encoded(rgb.quantize(8), "BMP"), encoded(rgb, "PPM"), encoded(gray, "PPM"),
        encoded(rgb, "WEBP", exif=exif), encoded(alpha, "WEBP", lossless=True),
        encoded(rgb, "WEBP", save_all=True, append_images=[gray.convert("RGB")]), encoded(rgb, "JPEG2000"),
    ]
    return files + ([encoded(rgb, "AVIF", speed=10)] if "AVIF" in Image.SAVE else [])


def flip(draw, data):
    for _ in range(draw.choice([1, 1, 3, 20])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def truncate(draw, data):
    del data[draw.randrange(1, len(data)):]


def insert(draw, data):
    at = draw.randrange(len(data))
    data[at:at] = draw.randbytes(draw.choice([1, 2, 4, 16, 200]))


def remove(draw, data):
    at = draw.randrange(1, len(data))
    del data[at : at + draw.choice([1, 2, 4, 12, 50])]


def swap(draw, data):
    width, a, b = draw.choice([1, 4, 8, 32]), draw.randrange(len(data)), draw.randrange(len(data))
    first, second = data[a : a + width], data[b : b + width]
    data[a : a + len(second)], data[b : b + len(first)] = second, first


def set_field(draw, data):
    width, at = draw.choice([1, 2, 4]), draw.randrange(min(len(data), draw.choice([32, 100, 400, len(data)])))
    data[at : at + width] = (draw.choice(EXTREMES) % 256**width).to_bytes(width, draw.choice(["big", "little"]))


def splice(draw, data):
    other = draw.choice(VALID)
    data[draw.randrange(1, len(data)):] = other[draw.randrange(len(other)):]


VALID = valid_files()
MUTATORS = [flip, truncate, insert, remove, swap, set_field, set_field, splice]


def mutated(seed):
    draw = random.Random(seed)
    data = bytearray(draw.choice(VALID))
    for _ in range(draw.choice([1, 1, 2, 4])):
        draw.choice(MUTATORS)(draw, data)
    return bytes(data)


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def load(data, view, transform, seed):
    '''Whether it could be read; everything that training and analyses do with it.'''
    decode_packed(data)
    jpeg = as_jpeg(data, "x")
    if jpeg is not None and jpeg.height * jpeg.width < 10**6:
        decode([jpeg], torch.device("cpu"))
    try:
        pixels = read_rgb(io.BytesIO(data), "x")
    except UnreadableImage as error:
        assert str(error) and len(str(error).splitlines()) == 1, str(error)
        return False
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
    sample = view(pixels)
    assert sample["image"].shape == (3, 32, 32) and bool(sample["density"].isfinite().all())
    if seed % 4 == 0 and pixels.size < 3 * 10**6:
        assert bool(transform(middle(Image.fromarray(pixels))).isfinite().all())
    return True


def main():
    view = KeypointView(CropView(Augmentation.of(Data()).crop(32)), find_detector("fast"), "drawn", 8)
    transform = timm.data.create_transform((3, 32, 32), is_training=False)
    assert all(load(data, view, transform, 0) for data in VALID), "every file is valid before"
    # as with `python -W error`; every module is imported by now
    warnings.simplefilter("error")
    readable = 0
    for seed in range(count):
        print(seed, flush=True)
        faulthandler.dump_traceback_later(a_file, exit=True)
        readable += load(mutated(seed), view, transform, seed)
        if seed == count // 4:  # caches and arenas have their size
            before, files = resident_mib(), len(list(Path("/proc/self/fd").iterdir()))
    faulthandler.cancel_dump_traceback_later()
    print(readable, resident_mib() - before, len(list(Path("/proc/self/fd").iterdir())) - files)


main()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory and open files are counted in /proc")
def test_mutations_of_valid_files_neither_crash_nor_hang_nor_leak():
    command = [sys.executable, "-X", "faulthandler", "-c", CHILD, str(MUTATIONS), str(A_FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ALTOGETHER)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"mutation of seed {lines[-1] if lines else None}: {done.stderr[-2000:]}"
    readable, kept, files = map(float, lines[-1].split())
    assert len(lines) == MUTATIONS + 1
    # neither are all mutations harmless nor all files destroyed
    assert MUTATIONS / 10 < readable < 9 * MUTATIONS / 10
    assert kept < KEPT
    assert files == 0
    # libtiff itself writes to the standard error of what it finds; Pillow, OpenCV and Python are silent
    assert not [line for line in done.stderr.splitlines() if "Warning" in line or "Traceback" in line]
