"""Swin's windows stitched back to image coordinates."""

from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from .models._anatomy import Window
from .shapes import Grid


@lru_cache(maxsize=64)
def positions(window: Window, grid: Grid) -> Int64[Tensor, "w t"]:
    """Row-major index in the image of each token of each window; grid.area for tokens that pad the image.

    Follows the order of Swin's own steps: roll by the shift, pad at the bottom right, cut into windows.
    """
    (height, width), (rows, columns) = grid, window.size
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        index = torch.arange(grid.area).reshape(grid)
        index = index.roll((-window.shift[0], -window.shift[1]), (0, 1))
        index = pad(index, (0, -width % columns, 0, -height % rows), value=grid.area)
        tiles = index.unfold(0, rows, rows).unfold(1, columns, columns)
        return tiles.reshape(-1, rows * columns)


def stitch_attention(attention: Float[Tensor, "bw h t t"], window: Window, grid: Grid) -> Float[Tensor, "b h n n"]:
    """Attention within windows as attention over the whole image, zero between tokens of different windows."""
    place = positions(window, grid).to(attention.device)
    windows, area = place.shape
    batch, heads = attention.shape[0] // windows, attention.shape[1]
    whole = attention.new_zeros(batch, heads, grid.area + 1, grid.area + 1)
    by_window = attention.reshape(batch, windows, heads, area, area).transpose(1, 2)
    whole[:, :, place[:, :, None], place[:, None, :]] = by_window
    return whole[:, :, :-1, :-1]


def stitch_tokens(tokens: Float[Tensor, "bw t d"], window: Window, grid: Grid) -> Float[Tensor, "b n d"]:
    """Tokens cut into windows as tokens of the whole image, in row-major order."""
    place = positions(window, grid).to(tokens.device)
    windows, area = place.shape
    batch = tokens.shape[0] // windows
    whole = tokens.new_zeros(batch, grid.area + 1, tokens.shape[-1])
    whole[:, place.flatten()] = tokens.reshape(batch, windows * area, -1)
    return whole[:, :-1]
