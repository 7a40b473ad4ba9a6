"""Any picture file as 8-bit RGB, the way a person sees it: upright, transparency on white, full tonal range."""

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BufferedIOBase
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import printable

#: Pixels of the largest picture that is decoded: 179 million, which fill half a GiB as RGB. Cameras give 151 million at
#: most; beyond, Pillow refuses by default too, but its limit is a global that any library may lift.
MOST_PIXELS = 2**29 // 3
# What is tried, whatever a file is called. Not all that Pillow knows: its EPS reader starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

_TURN = Image.Transpose
_TURNS = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}


class UnreadableImage(Exception):
    """A picture that could not be decoded. `name` is the file (or the item of a data set), `reason` is one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"'{printable(self.name)}': {self.reason}"


@contextmanager
def opened(source: str | PathLike[str] | BufferedIOBase) -> Iterator[Image.Image]:
    """A picture file of which only the header is read, so far. Raises whatever Pillow's decoders raise, OSError for
    what is no regular file, and ValueError for more than `MOST_PIXELS`.

    What Pillow warns of in damaged files, here and where pixels are decoded, is left unsaid.
    """
    if isinstance(source, str | PathLike):
        check_regular(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(cast(Any, source), formats=_formats()) as image:
            if image.width * image.height > MOST_PIXELS:
                pixels = image.width * image.height
                raise ValueError(
                    f"{image.width} x {image.height} is {pixels:,} pixels, of which {MOST_PIXELS:,} are read at most"
                )
            yield image


def check_regular(path: str | PathLike[str]) -> None:
    """Raise OSError for a path that is no regular file, nor a link to one: to open a named pipe may never end."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError("it is no regular file")


@cache
def _formats() -> list[str]:
    """Those that the installed Pillow was built with."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def read_rgb(source: str | PathLike[str] | BufferedIOBase, name: str | None = None) -> UInt8[ndarray, "y x 3"]:
    """Decode the first frame of a picture file to RGB. Raises UnreadableImage for whatever cannot be decoded."""
    try:
        with opened(source) as image:
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise UnreadableImage(str(name or source), f"it is none of {', '.join(_formats())}, or damaged") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(str(name or source), reason) from error


def to_rgb(image: Image.Image) -> UInt8[ndarray, "y x 3"]:
    """A Pillow image of any mode as RGB, uint8 [H, W, 3].

    EXIF orientation is applied, if EXIF can be read; palettes, gray and CMYK are converted; alpha is composed on white;
    16-bit gray is scaled to 8 bits (Pillow's own conversion clips it); float gray is stretched from its least to its
    greatest value.
    """
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bit(np.asarray(image), image.mode))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says. Pillow's own function also writes what remains of EXIF, which fails where it is damaged."""
    image.load()  # may turn a TIFF, and takes its orientation away
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # many kinds: of damaged EXIF, on which no pixel depends
        turn = None
    return image if turn is None else image.transpose(turn)


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
