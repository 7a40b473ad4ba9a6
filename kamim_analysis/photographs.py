"""Natural pictures that scikit-image and scikit-learn install with themselves: a small data set without download.

Each picture is a class. Training crops come from the left 70% of a picture, validation crops from the right 30%:
the two share no pixel, and telling the pictures apart takes their textures, not their layout.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from .decode import read_rgb
from .errors import UserError

# scikit-image's other bundled pictures are drawings, documents, or need a download
_FILES = {
    "skimage": (
        "data",
        "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png gravel.png motorcycle_left.png "
        "rocket.jpg",
    ),
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
}
TRAIN_SHARE = 0.7


def paths() -> list[Path]:
    """The picture files, in the order of their names. Raises UserError when an installed package lacks one."""
    found = []
    for package, (folder, names) in _FILES.items():
        spec = find_spec(package)
        root = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else Path(package)
        found += [root / folder / name for name in names.split()]
    missing = [str(path) for path in found if not path.is_file()]
    if missing:
        raise UserError(f"bundled photographs missing: {', '.join(missing)}; reinstall scikit-image and scikit-learn")
    return sorted(found, key=lambda path: path.name)


@cache
def region(path: Path, split: Literal["train", "val"]) -> UInt8[ndarray, "y x 3"]:
    """The part of a picture that belongs to a split."""
    picture = read_rgb(path)
    boundary = round(TRAIN_SHARE * picture.shape[1])
    return picture[:, :boundary] if split == "train" else picture[:, boundary:]


def crop(index: int, split: Literal["train", "val"], seed: int) -> tuple[UInt8[ndarray, "s s 3"], int]:
    """Crop `index` of a split with its class: a square anywhere in its region, its side 12% to 30% of the
    whole picture's width.

    Classes take turns; the crop depends on nothing but (seed, split, index).
    """
    files = paths()
    label = index % len(files)
    pixels = region(files[label], split)
    draw = np.random.default_rng([seed, index, split == "val"])
    height, width = pixels.shape[:2]
    # the sides of both splits are shares of the validation strip's width: a texture then has one scale in both
    strip = width if split == "val" else round((1 - TRAIN_SHARE) / TRAIN_SHARE * width)
    shorter = min(height, strip)
    side = int(draw.uniform(0.4, 1.0) * shorter)
    top, left = draw.integers(0, height - side + 1), draw.integers(0, width - side + 1)
    return pixels[top : top + side, left : left + side], label
