"""A control: the same density everywhere, with which KAMIM is SimMIM bit for bit."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from ._detector import Detector, cells_of
from ._drawing import Style


@dataclass(frozen=True, kw_only=True)
class Uniform(Detector):
    """Every patch weighs exactly 1, at any temperature."""

    def density(self, image: UInt8[ndarray, "y x 3"], style: Style, cell: int) -> Float32[ndarray, "gy gx"]:
        """1 everywhere."""
        return np.ones(cells_of(image[..., 0], cell).shape[:2], np.float32)
