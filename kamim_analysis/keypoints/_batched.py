"""FAST of a whole batch in tensor operations, on the pictures' own device, bit for bit OpenCV's.

A pixel is a corner where an arc of the circle round it is brighter, or darker, than it by more than the threshold at
every pixel. Its score is one less than the largest threshold at which it still is: over arcs, the best of the arc's
least difference.
"""

from collections.abc import Callable
from functools import cache, reduce
from typing import Any, Literal

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn.functional import pad

from ..errors import UserError
from ._drawing import Style, ring_rows

Arc = Literal["5_8", "7_12", "9_16"]
Extreme = Callable[[Tensor, Tensor], Tensor]

# OpenCV keeps so many pixels from the border whatever the circle
_BORDER = 3
# the first quarter of each circle, (down, across) from its centre; the others are this one turned
_QUARTERS = {"5_8": ((1, 0), (1, 1)), "7_12": ((2, 0), (2, 1), (1, 2)), "9_16": ((3, 0), (3, 1), (2, 2), (1, 3))}


@torch.no_grad()
def corner_maps(
    images: UInt8[Tensor, "b 3 y x"],
    *,
    threshold: int,
    nonmax_suppression: bool,
    arc: Arc,
    style: Style,
    compiled: bool = False,
) -> Bool[Tensor, "b y x"]:
    """The maps of RGB pictures: FAST's corners (`points`), or the rings that OpenCV draws for them (`drawn`).

    `compiled` fuses each of three parts into few kernels; it changes no bit. The gray and the scores are each read many
    times, at shifted places, so that they must lie in memory: as one part, each reader would compute them anew.

    Raises UserError for a threshold that no byte can have, which versions of OpenCV take in different ways.
    """
    if not 0 <= threshold <= 255:
        raise UserError(f"a FAST threshold of {threshold} gray levels does not exist; give one from 0 to 255")
    if min(images.shape[2:]) <= 2 * _BORDER:
        return images.new_zeros(len(images), *images.shape[2:], dtype=torch.bool)
    made: Callable[..., Any] = _compiled if compiled else lambda part: part
    scores = made(_scores)(made(luminances)(images), threshold, _QUARTERS[arc])
    maps: Tensor = made(_marks)(scores, nonmax_suppression, ring_rows() if style == "drawn" else ())
    return maps


@cache
def _compiled(part: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(part, dynamic=False)
    return compiled


def luminances(images: UInt8[Tensor, "b 3 y x"]) -> UInt8[Tensor, "b y x"]:
    """`luminance` of each picture: OpenCV's fixed-point weights of blue, green and red, given red, green and blue."""
    red, green, blue = images.int().unbind(1)
    return ((3735 * red + 19235 * green + 9798 * blue + 2**14) >> 15).byte()


def _scores(
    gray: UInt8[Tensor, "b y x"], threshold: int, quarter: tuple[tuple[int, int], ...]
) -> UInt8[Tensor, "b iy ix"]:
    """Of the pixels within the border, 1 + the score where they are corners, else 0.

    Extremes of arcs are taken of gray levels, a byte each; the centre is subtracted from the best arc's alone.
    """
    height, width = (side - 2 * _BORDER for side in gray.shape[1:])

    def shifted(down: int, across: int) -> Tensor:
        top, left = _BORDER + down, _BORDER + across
        return gray[:, top : top + height, left : left + width]

    circle = [shifted(*place) for place in _circle(quarter)]
    centre = shifted(0, 0).short()
    light, dark = _best_arc(circle, torch.minimum, torch.maximum), _best_arc(circle, torch.maximum, torch.minimum)
    best = torch.maximum(light.short() - centre, centre - dark.short())
    if len(circle) < 16:
        light = torch.minimum(light, _facing(circle, torch.minimum, torch.maximum))
        dark = torch.maximum(dark, _facing(circle, torch.maximum, torch.minimum))
    corners = torch.maximum(light.short() - centre, centre - dark.short()) > threshold
    return (best * corners).byte()


def _facing(circle: list[Tensor], least: Extreme, most: Extreme) -> Tensor:
    """What OpenCV asks of a circle before it looks for an arc: least over k of the most of its k-th and k + 8th pixels.

    On a circle of 16 these face each other, so that every arc of nine passes. OpenCV asks the same of the smaller ones,
    where k + 8 goes on from the start: of eight, it asks for all.
    """
    pairs = {frozenset((k % len(circle), (k + 8) % len(circle))) for k in range(8)}
    return reduce(least, [reduce(most, [circle[k] for k in sorted(pair)]) for pair in sorted(pairs, key=sorted)])


def _circle(quarter: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    places = list(quarter)
    while len(places) < 4 * len(quarter):
        places += [(-across, down) for down, across in places[-len(quarter) :]]
    return places


def _best_arc(circle: list[Tensor], least: Extreme, most: Extreme) -> Tensor:
    """The most, over arcs of one more than half the circle, of the least value in the arc.

    Two arcs that begin side by side share all but their ends: the better of the two ends stands for both.
    """
    length = len(circle) // 2
    pairs = [least(circle[i], circle[i + 1 - len(circle)]) for i in range(1, len(circle), 2)]
    shared = _windows(pairs, length // 2, least)
    ends = [most(circle[i], circle[i + length + 1 - len(circle)]) for i in range(0, len(circle), 2)]
    return reduce(most, map(least, shared, ends))


def _windows(values: list[Tensor], length: int, extreme: Extreme) -> list[Tensor]:
    """Extremes of `length` values in a row round the circle, from each on: windows grow by overlapping themselves."""
    span = 1
    while span < length:
        step = min(span, length - span)
        values = [extreme(value, values[i + step - len(values)]) for i, value in enumerate(values)]
        span += step
    return values


def _marks(
    scores: UInt8[Tensor, "b iy ix"], nonmax_suppression: bool, rows: tuple[tuple[int, ...], ...]
) -> Bool[Tensor, "b y x"]:
    """Corners on the whole picture, dilated by the ring of `rows` where there is one."""
    corners = scores > (_highest_neighbour(scores).clamp(min=1) if nonmax_suppression else 0)
    if not rows:
        return pad(corners, 4 * [_BORDER])
    return _dilated(pad(corners, 4 * [_BORDER + len(rows) // 2]), rows)


def _highest_neighbour(scores: UInt8[Tensor, "b iy ix"]) -> UInt8[Tensor, "b iy ix"]:
    padded = pad(scores, 4 * [1])
    sides = torch.maximum(padded[:, :, :-2], padded[:, :, 2:])
    rows = torch.maximum(sides, padded[:, :, 1:-1])
    return torch.maximum(torch.maximum(rows[:, :-2], rows[:, 2:]), sides[:, 1:-1])


def _dilated(padded: Bool[Tensor, "b py px"], rows: tuple[tuple[int, ...], ...]) -> Bool[Tensor, "b y x"]:
    """True where a corner lies at one of the ring's places; `rows` are its columns, row by row.

    Shifts and unions of bytes, one row of the ring at a time, rows that are alike once: 25 unions, which compile fuses.
    A convolution says the same, but of one channel, which is what GPUs' convolutions are worst at. Corners keep so far
    from the border that OpenCV draws whole rings, cut off by the border alone.
    """
    width, height = (side - len(rows) + 1 for side in reversed(padded.shape[1:]))
    across = {
        row: reduce(torch.bitwise_or, [padded[:, :, column : column + width] for column in row]) for row in set(rows)
    }
    return reduce(torch.bitwise_or, [across[row][:, down : down + height] for down, row in enumerate(rows)])
