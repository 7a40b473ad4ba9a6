"""What patches can be weighted by: keypoints of a detector, a map of pixels, or any other density."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from numpy import ndarray

from ..errors import UserError
from ._drawing import Keypoints, Style, draw_map

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Detector(ABC):
    """What gives the density that weights and masks are made of, with its parameters.

    Three kinds: keypoints (`KeypointDetector`), any map of single pixels (`MapDetector`), and those that have a density
    alone.
    """

    #: whether `densities` can be had, of a batch on its own device
    batched: ClassVar[bool] = False

    @abstractmethod
    def density(self, image: UInt8[ndarray, "y x 3"], style: Style, cell: int) -> Float32[ndarray, "gy gx"]:
        """The density within each cell of `cell` x `cell` pixels of an RGB picture, from 0 to 1.

        On an absolute scale, the same for all pictures, so that a temperature means the same for each of them. Raises
        UserError where the cells do not tile the picture.
        """

    def densities(self, images: "Tensor", style: Style, cell: int) -> "Tensor":
        """`density` of each of uint8 RGB pictures [B, 3, H, W], float32 [B, H / cell, W / cell], on their own device.

        Raises UserError unless the detector is `batched`.
        """
        raise UserError(
            f"{type(self).__name__} cannot detect on the device, where FAST alone can; set data.device_augment false, "
            "so that data workers detect"
        )


@dataclass(frozen=True, kw_only=True)
class MapDetector(Detector):
    """A map of pixels, 0 or 1, whose density is the share of a cell's pixels that it sets (KAMIM, equation 1)."""

    @abstractmethod
    def map(self, image: UInt8[ndarray, "y x 3"], style: Style) -> UInt8[ndarray, "y x"]:
        """The map of an RGB picture."""

    def density(self, image: UInt8[ndarray, "y x 3"], style: Style, cell: int) -> Float32[ndarray, "gy gx"]:
        """The share of each cell's pixels that the map sets."""
        import torch

        from ..patches import block_mean

        density: ndarray = block_mean(torch.from_numpy(self.map(image, style))[None], cell)[0].numpy()
        return density


@dataclass(frozen=True, kw_only=True)
class KeypointDetector(MapDetector):
    """A keypoint detector of OpenCV, or one that is called alike.

    Calling `build()` makes OpenCV's object, which cannot be pickled: a data worker makes its own, once.
    """

    #: whether keypoints lie on whole pixels, so that their drawing can be had by dilation
    whole_pixels: ClassVar[bool] = False

    @abstractmethod
    def build(self) -> Any:
        """OpenCV's detector; has `detect(image, mask)`."""

    def keypoints(self, image: UInt8[ndarray, "y x 3"]) -> Keypoints:
        """The keypoints of an RGB picture, as OpenCV's objects."""
        found: Keypoints = _built(self).detect(luminance(image), None)
        return found

    def map(self, image: UInt8[ndarray, "y x 3"], style: Style) -> UInt8[ndarray, "y x"]:
        """1 at each keypoint's pixel (`points`), or where its ring is drawn (`drawn`)."""
        return draw_map(self.keypoints(image), image.shape[:2], style, whole_pixels=self.whole_pixels)


@lru_cache(maxsize=32)
def _built(detector: KeypointDetector) -> Any:
    """OpenCV's object for these parameters, made once in each process."""
    return detector.build()


def luminance(image: UInt8[ndarray, "y x 3"]) -> UInt8[ndarray, "y x"]:
    """OpenCV's gray of an RGB image [H, W, 3] as KAMIM's public code sees it.

    It hands RGB to a detector that expects BGR, so red gets blue's weight (0.114) and blue gets red's (0.299).
    The papers' tables were made with this, so we keep it.
    """
    import cv2

    gray: ndarray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return gray


def cells_of(values: Shaped[ndarray, "y x"], cell: int) -> Shaped[ndarray, "gy gx n"]:
    """The pixels of each cell of `cell` x `cell`. Raises UserError where the cells do not tile the picture."""
    from ..patches import divide
    from ..shapes import Size

    grid = divide(Size(*values.shape), cell, what="weight patch size")
    rows = values.reshape(grid.height, cell, grid.width, cell)
    return np.ascontiguousarray(rows.transpose(0, 2, 1, 3)).reshape(*grid, cell * cell)


def contributed(name: str) -> Any:
    """A class of OpenCV 4 that OpenCV 5 keeps among its contributed modules. Raises UserError where it has none."""
    import cv2

    for module in (cv2, getattr(cv2, "xfeatures2d", None)):
        if hasattr(module, name):
            return getattr(module, name)
    raise UserError(
        f"OpenCV {cv2.__version__} as installed has no {name}; remove opencv-python-headless (or opencv-python) and "
        "install opencv-contrib-python-headless"
    )
