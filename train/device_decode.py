"""JPEGs that the device decodes: what workers send of them, and what is made of a batch."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from kamim_analysis.data import Pictures
from kamim_analysis.decode import UnreadableImage, opened, read_rgb

_ORIENTATION, _UPRIGHT = 0x0112, 1
_MID_GRAY = 128


class JPEG(NamedTuple):
    """The file of an upright picture, RGB or gray, not decoded."""

    name: str
    height: int
    width: int
    data: UInt8[Tensor, " bytes"]


def as_jpeg(data: bytes, name: str) -> JPEG | None:
    """The file of a picture that the device can decode; None for any other, for what is rotated, and for no picture.

    Only the header is read; pictures of more than MOST_PIXELS are none.
    """
    try:
        with opened(io.BytesIO(data)) as image:
            plain = image.format == "JPEG" and image.mode in ("RGB", "L")
            if not plain or image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
                return None
            return JPEG(name, image.height, image.width, torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except Exception:  # as in read_rgb, which will say why
        return None


@dataclass(frozen=True)
class Undecoded:
    """Reads pictures as JPEG files, and decoded where they are none."""

    pictures: Pictures

    def __call__(self, index: int) -> tuple[UInt8[ndarray, "y x 3"] | JPEG, int]:
        """Picture `index` and its class. Raises UnreadableImage."""
        data, labels = self.pictures.encoded(index), self.pictures.labels
        if data is None or labels is None:  # pixels in memory, or a class that stands in the file alone
            return self.pictures.read(index)
        name = self.pictures.identity(index)
        return as_jpeg(data, name) or read_rgb(io.BytesIO(data), name), int(labels[index])


def decode(files: Sequence[JPEG], device: torch.device) -> tuple[list[UInt8[Tensor, "3 _ _"]], list[UnreadableImage]]:
    """RGB pictures on the device, by nvJPEG on CUDA, and which of them could not be decoded: those are of one gray.

    Decoders differ by a gray level or two. What torchvision refuses is decoded as workers do it.
    """
    try:
        with warnings.catch_warnings():
            # torchvision 0.29 announces that TorchCodec will take its place, which asks for FFmpeg today
            warnings.simplefilter("ignore", DeprecationWarning)
            return decode_jpeg([file.data for file in files], mode=ImageReadMode.RGB, device=device), []
    except RuntimeError:
        pictures, failed = [], []
        for file in files:
            try:
                pixels = torch.from_numpy(read_rgb(io.BytesIO(file.data.numpy().tobytes()), file.name)).permute(2, 0, 1)
            except UnreadableImage as error:
                failed.append(error)
                pixels = torch.full((3, file.height, file.width), _MID_GRAY, dtype=torch.uint8)
            pictures.append(pixels.to(device))
        return pictures, failed
