"""A control: contrast, without regard to corners."""

from dataclasses import dataclass

from jaxtyping import Float32, UInt8
from numpy import ndarray

from ._detector import Detector, cells_of, luminance
from ._drawing import Style

# of gray levels from 0 to 255: half of the pixels black, half white
_LARGEST = 127.5**2


@dataclass(frozen=True, kw_only=True)
class Variance(Detector):
    """The variance of the gray levels within each cell, over the largest there can be, 127.5^2.

    An absolute scale, as that of keypoints: relative to a picture's own maximum, the noise of a blank wall would weigh
    as much as a face. Natural pictures reach a few hundredths, so the temperature must be lower, or `auto`.
    """

    def density(self, image: UInt8[ndarray, "y x 3"], style: Style, cell: int) -> Float32[ndarray, "gy gx"]:
        """0 where a cell is of one gray, 1 where half of it is black and half white."""
        variance: ndarray = cells_of(luminance(image), cell).var(-1)
        return (variance / _LARGEST).astype("float32")
