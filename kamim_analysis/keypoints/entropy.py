"""A control: how many gray levels there are, wherever they lie."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from ._detector import Detector, cells_of, luminance
from ._drawing import Style

_LEVELS = 256


@dataclass(frozen=True, kw_only=True)
class Entropy(Detector):
    """Shannon's entropy of the histogram of gray levels within each cell, in bytes: bits over the 8 of a gray level.

    A cell of n pixels reaches log2(n) / 8 at most: 0.75 for 8 x 8 pixels. Sensor noise alone makes several bits.
    """

    def density(self, image: UInt8[ndarray, "y x 3"], style: Style, cell: int) -> Float32[ndarray, "gy gx"]:
        """0 where a cell is of one gray, 1 where all 256 are equally frequent."""
        cells = cells_of(luminance(image), cell)
        *grid, pixels = cells.shape
        cell_number = np.arange(np.prod(grid)).reshape(*grid, 1)
        counts = np.bincount((cell_number * _LEVELS + cells).ravel(), minlength=cell_number.size * _LEVELS)
        # - sum of p log p with p = count / pixels is log pixels - sum of count log count / pixels
        logarithms = np.arange(pixels + 1) * np.log2(np.maximum(np.arange(pixels + 1), 1))
        bits = np.log2(pixels) - logarithms[counts].reshape(*grid, _LEVELS).sum(-1) / pixels
        density: ndarray = np.maximum(bits / 8, 0)
        return density.astype("float32")
