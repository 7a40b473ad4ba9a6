"""Random resized crops and flips on the device: a worker squeezes the picture and draws, the device cuts the batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize

from kamim_analysis.decode import UnreadableImage

from .crop import UNREADABLE, Crop
from .device_decode import JPEG, decode

Interpolation = Literal["bilinear", "bicubic"]
# of a sample, beside the squeezed picture
BOX, FLIPS = "box", "flips"
# pixels on each side of a position that bilinear and bicubic interpolation look at
_REACH = {"bilinear": 1, "bicubic": 2}
# Keys's cubic (1981): torch takes OpenCV's parameter, and Pillow's where it antialiases
_CUBIC, _CUBIC_ANTIALIASED = -0.75, -0.5
# of weights, and the number of bits that torch's 16-bit integers leave for the largest of an axis
_MOST_BITS, _INTEGER = 15, 2**15 - 0.5


def squeeze(picture: UInt8[ndarray, "y x 3"], size: int) -> UInt8[Tensor, "3 s s"]:
    """A picture as a square of `size` pixels, whatever its shape was; one of that size stays as it is.

    Bicubic and antialiased (torch's, as Pillow's). Of photographs of 500 x 375 px it leaves more detail at 256 px than
    the mean of areas (OpenCV's INTER_AREA), which takes twice as long, and than the bilinear kernel.
    """
    square = _square(torch.from_numpy(picture).permute(2, 0, 1), size)
    # colours first, several times as fast as torch's copy
    return torch.from_numpy(np.stack(cv2.split(square.permute(1, 2, 0).numpy())))


def _square(picture: UInt8[Tensor, "3 y x"], size: int) -> UInt8[Tensor, "3 s s"]:
    square: Tensor = resize(picture, [size, size], v2.InterpolationMode.BICUBIC, antialias=True)
    return square


def _squares(
    images: Sequence[Tensor | JPEG], size: int, device: torch.device
) -> tuple[UInt8[Tensor, "b 3 s s"], list[UnreadableImage]]:
    """Squeezed pictures of a batch on the device, decoded there where they are not yet; and which could not be."""
    decoded, failed = decode([image for image in images if isinstance(image, JPEG)], device)
    rest = iter(decoded)
    squares = [
        _square(next(rest), size) if isinstance(image, JPEG) else image.to(device, non_blocking=True)
        for image in images
    ]
    return torch.stack(squares), failed


@dataclass(frozen=True)
class DeviceCrop(Crop):
    """torchvision's random resized crop and flips, in two parts.

    In the worker the sample becomes `image` uint8 [3, S, S], the whole picture squeezed to `device_size` S (or its
    JPEG file, which `finish` decodes and squeezes); `box` [4],
    the top, left, height and width of the crop in pixels of that square; and `flips` [2], left-right and top-bottom.
    They are drawn as `v2.RandomResizedCrop` and the flips draw them, from the picture's own height and width, so that
    boxes and flips are those of the workers' path, draw for draw. `finish` makes `image` [B, 3, size, size] of them.

    What squeezing changes: detail finer than the square's pixels is lost before the crop, where the workers' path
    interpolates the picture's own pixels, by default without antialiasing, and so finds more keypoints. With KAMIM's
    defaults at 192 px, device beside workers: of photographs of 500 x 375 px the mean density is 0.557 for 0.604 and
    the mean weight 16.1 for 18.8 with S = 256, 0.589 and 18.1 with S = 384; of pictures of about 200 px 0.213 for
    0.224 and 7.5 for 7.9 with 256. Pictures of exactly S x S give the workers' pixels to one gray level.
    """

    crop: v2.RandomResizedCrop
    """What draws the boxes; its size, interpolation and antialiasing are the device's."""
    flip_probabilities: tuple[float, float]
    device_size: int
    takes_files: bool = False

    on_device = True

    def __call__(self, picture: UInt8[ndarray, "y x 3"] | JPEG) -> dict[str, Any]:
        """Squeeze and draw, in a worker; a JPEG goes on as it is."""
        if isinstance(picture, JPEG):
            return {"image": picture} | self.draw(picture.height, picture.width)
        return {"image": squeeze(picture, self.device_size)} | self.draw(*picture.shape[:2])

    def draw(self, height: int, width: int) -> dict[str, Tensor]:
        """Box and flips of a picture of this size, from torch's global random state."""
        box = self.crop.make_params([torch.empty(3, height, width, device="meta")])
        scale = {"top": height, "height": height, "left": width, "width": width}
        sides = [box[name] * (self.device_size / scale[name]) for name in ("top", "left", "height", "width")]
        flips = [bool(torch.rand(1) < chance) for chance in self.flip_probabilities]
        return {BOX: torch.tensor(sides, dtype=torch.float64), FLIPS: torch.tensor(flips)}

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with `image` cropped, resized and flipped, and without what said how."""
        rest = {name: values for name, values in batch.items() if name not in (BOX, FLIPS)}
        images, interpolation = batch["image"], self.crop.interpolation.value
        if not isinstance(images, Tensor):
            images, rest[UNREADABLE] = _squares(images, self.device_size, batch[BOX].device)
        return rest | {
            "image": resized_crops(
                images,
                batch[BOX],
                batch[FLIPS],
                self.crop.size[0],
                interpolation=interpolation,
                antialias=bool(self.crop.antialias),
            )
        }


@torch.no_grad()
def resized_crops(
    images: UInt8[Tensor, "b 3 y x"],
    boxes: Float[Tensor, "b 4"],
    flips: Bool[Tensor, "b 2"],
    size: int,
    *,
    interpolation: Interpolation,
    antialias: bool,
) -> UInt8[Tensor, "b 3 s s"]:
    """Of each image its box (top, left, height, width) in size x size pixels, then flipped left-right, top-bottom.

    The batch is two batched matrix products: each image's rows and columns have weights of their own, those of torch's
    interpolation in torch's fixed point, and what they give is rounded to gray levels after either axis, as torch does
    on a CPU. For boxes of whole pixels that is `v2.functional.resized_crop` of uint8, to one gray level where it
    antialiases down and bit for bit elsewhere (but for one pixel in 100,000 of bicubic).
    """
    weigh = _antialiased if antialias else _sampled
    top, left, height, width = boxes.double().unbind(1)
    rows = _fixed_point(weigh(top, height, flips[:, 1], size, images.shape[2], interpolation))
    columns = _fixed_point(weigh(left, width, flips[:, 0], size, images.shape[3], interpolation))
    with _exact_products(images.device):
        # columns first; transposed, so that neither product needs a copy of its operands
        across = _gray_levels(columns @ images.float().flatten(1, 2).transpose(1, 2))  # b, s, 3 y
        both = _gray_levels(across.unflatten(2, (3, -1)).flatten(1, 2) @ rows.transpose(1, 2))  # b, s 3, s
    crops: Tensor = both.to(torch.uint8).unflatten(1, (size, 3)).permute(0, 2, 3, 1).contiguous()
    return crops


def _gray_levels(values: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Rounded, halves upwards, and cut off at black and white."""
    return (values + 0.5).floor_().clamp_(0, 255)


def _fixed_point(weights: Float[Tensor, "b s pixels"]) -> Float[Tensor, "b s pixels"]:
    """The weights to as many bits as torch's integers leave, but 15 at most, each image's own number of them.

    Sums of 255 times such weights stay below 2^24 steps, so float32 adds them without error, in any order: pixels
    depend neither on the batch that an image is in nor on the device.
    """
    bits = (_INTEGER / weights.amax((1, 2), keepdim=True)).log2().floor().clamp(max=_MOST_BITS)
    steps = torch.exp2(bits)
    rounded: Tensor = (weights * steps).round() / steps
    return rounded.float()


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Products in float32: neither autocast nor TF32, whose rounding of weights would move gray levels."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _sampled(
    start: Float[Tensor, " b"],
    length: Float[Tensor, " b"],
    flipped: Bool[Tensor, " b"],
    size: int,
    pixels: int,
    interpolation: Interpolation,
) -> Float[Tensor, "b s pixels"]:
    """Weights of one axis without antialiasing: of the two or four pixels around each position."""
    positions = _positions(start, length, flipped, size) - 0.5  # from the middle of the first pixel
    below = positions.floor()
    low, high = _pixels_within(start, length, pixels)
    columns = torch.arange(pixels, device=start.device)
    weights = start.new_zeros(len(start), size, pixels)
    reach = _REACH[interpolation]
    for tap in range(1 - reach, 1 + reach):
        at = below + tap
        weight = _kernel((positions - at).abs(), interpolation, _CUBIC)
        # beyond the box lie its own edge pixels again, as where the crop is cut before it is resized
        weights += weight[..., None] * (torch.clamp(at, low, high)[..., None] == columns)
    return weights


def _antialiased(
    start: Float[Tensor, " b"],
    length: Float[Tensor, " b"],
    flipped: Bool[Tensor, " b"],
    size: int,
    pixels: int,
    interpolation: Interpolation,
) -> Float[Tensor, "b s pixels"]:
    """Weights of one axis with antialiasing: the kernel is as wide as an output pixel, and cut off at the box."""
    stretch = (length / size).clamp(min=1)[:, None, None]
    low, high = _pixels_within(start, length, pixels)
    columns = torch.arange(pixels, device=start.device)
    distance = (columns + 0.5 - _positions(start, length, flipped, size)[..., None]).abs() / stretch
    inside = (columns >= low[..., None]) & (columns <= high[..., None])
    weights = _kernel(distance, interpolation, _CUBIC_ANTIALIASED) * inside
    return weights / weights.sum(-1, keepdim=True)


def _positions(
    start: Float[Tensor, " b"], length: Float[Tensor, " b"], flipped: Bool[Tensor, " b"], size: int
) -> Float[Tensor, "b s"]:
    """Where the middle of each output pixel lies, in pixels from the edge of the picture."""
    index = torch.arange(size, device=start.device)
    index = torch.where(flipped[:, None], size - 1 - index, index)
    return start[:, None] + (index + 0.5) * (length / size)[:, None]


def _pixels_within(
    start: Float[Tensor, " b"], length: Float[Tensor, " b"], pixels: int
) -> tuple[Float[Tensor, "b 1"], Float[Tensor, "b 1"]]:
    """First and last pixel whose middle lies in the box; the nearest where the box is so small that none does."""
    low = (start - 0.5).ceil().clamp(max=pixels - 1)
    high = ((start + length - 0.5).ceil() - 1).clamp(max=pixels - 1)
    return low[:, None], torch.maximum(low, high)[:, None]


def _kernel(distance: Float[Tensor, "*b"], interpolation: Interpolation, cubic: float) -> Float[Tensor, "*b"]:
    """What a pixel weighs at a distance."""
    if interpolation == "bilinear":
        return (1 - distance).clamp(min=0)
    near = ((cubic + 2) * distance - (cubic + 3)) * distance**2 + 1
    far = cubic * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
