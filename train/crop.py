"""What cuts a picture: a data worker, or a worker and the device together."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor

from .device_decode import JPEG

#: of a finished batch, pictures that could not be decoded; the loader takes them out
UNREADABLE = "unreadable"


class Crop(ABC):
    """Makes `image` uint8 [3, S, S] of a picture by random draws, in the worker or only once `finish` was called."""

    on_device: ClassVar[bool]
    takes_files: bool = False
    """Whether JPEGs may come as they are, for `finish` to decode."""

    @abstractmethod
    def __call__(self, picture: UInt8[ndarray, "y x 3"] | JPEG) -> dict[str, Any]:
        """In a worker: `image`, and what else `finish` needs, from torch's global random state."""

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """On the device: the batch with `image` cropped."""
        return batch


@dataclass(frozen=True)
class WorkerCrop(Crop):
    """A transform of uint8 [3, H, W]."""

    augment: Any

    on_device = False

    def __call__(self, picture: UInt8[ndarray, "y x 3"] | JPEG) -> dict[str, Tensor]:
        """Crop and flip."""
        assert not isinstance(picture, JPEG)
        return {"image": self.augment(torch.from_numpy(picture).permute(2, 0, 1))}
