"""Batches of pictures for a frozen model: timm's evaluation transform, unreadable files left out and counted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .data import Pictures, Unreadable
from .decode import UnreadableImage
from .worker_processes import load_batches

# times; panoramas and scrolls stay whole
_MOST_ELONGATED = 100


@dataclass(frozen=True)
class ImageBatch:
    """Normalised images with their classes and their indices in the data."""

    images: Float[Tensor, "b 3 y x"]
    labels: Int64[Tensor, " b"]
    indices: Int64[Tensor, " b"]


def middle(picture: Image.Image) -> Image.Image:
    """The picture, or its middle where it is more than a hundred times as long as wide.

    Transforms that bring the shorter side to the model's size before they cut out the middle would make two hundred
    million pixels of 1 x 4000; what they cut out is here still.
    """
    most = _MOST_ELONGATED * min(picture.size)
    left, top = (max(side - most, 0) // 2 for side in picture.size)
    return picture.crop((left, top, picture.width - left, picture.height - top)) if left or top else picture


class _Evaluated(Dataset[Any]):
    def __init__(self, pictures: Pictures, indices: Sequence[int], transform: Any) -> None:
        self.pictures, self.indices, self.transform = pictures, list(indices), transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        index = self.indices[position]
        try:
            rgb, label = self.pictures.read(index)
        except UnreadableImage as error:
            return error
        return self.transform(middle(Image.fromarray(rgb))), label, index


def _collate(items: list[Any]) -> tuple[ImageBatch | None, list[UnreadableImage]]:
    failed = [item for item in items if isinstance(item, UnreadableImage)]
    read = [item for item in items if not isinstance(item, UnreadableImage)]
    if not read:
        return None, failed
    images, labels, indices = zip(*read, strict=True)
    return ImageBatch(torch.stack(images), torch.tensor(labels), torch.tensor(indices)), failed


def image_batches(
    pictures: Pictures,
    indices: Sequence[int],
    transform: Any,
    unreadable: Unreadable,
    *,
    batch_size: int = 32,
    workers: int = 0,
) -> Iterator[ImageBatch]:
    """Batches of the pictures at `indices`, in that order, through `transform` (a Pillow image -> float [3, H, W])."""
    positions = range(len(indices))
    batches = [positions[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    for batch, failed in load_batches(_Evaluated(pictures, indices, transform), batches, _collate, workers=workers):
        unreadable.add(failed)
        if batch is not None:
            yield batch
