"""Any picture file as 8-bit RGB, the way a person sees it: upright, transparency on white, full tonal range."""

from io import BufferedIOBase
from os import PathLike
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageOps


class UnreadableImage(Exception):
    """A picture that could not be decoded. `name` is the file (or the item of a data set), `reason` is one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name!r}: {self.reason}"


def read_rgb(source: str | PathLike[str] | BufferedIOBase, name: str | None = None) -> UInt8[ndarray, "y x 3"]:
    """Decode the first frame of a picture file to RGB. Raises UnreadableImage for whatever cannot be decoded."""
    try:
        with Image.open(cast(Any, source)) as image:
            return to_rgb(image)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(str(name or source), reason) from error


def to_rgb(image: Image.Image) -> UInt8[ndarray, "y x 3"]:
    """A Pillow image of any mode as RGB, uint8 [H, W, 3].

    EXIF orientation is applied; palettes, gray and CMYK are converted; alpha is composed on white; 16-bit gray is
    scaled to 8 bits (Pillow's own conversion clips it); float gray is stretched from its least to its greatest value.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bit(np.asarray(image), image.mode))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _to_8_bit(values: ndarray, mode: str) -> ndarray:
    """Gray of 16, 32 or float bits as uint8."""
    values = values.astype(np.float64)
    if mode == "F":
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low).clip(low, high)
        values = (values - low) / (high - low if high > low else 1.0) * 255
    else:
        values = values / 257  # 65535 / 255; Pillow opens 16-bit PNG as mode I or I;16 by its version
    scaled: ndarray = values.round().clip(0, 255).astype(np.uint8)
    return scaled
