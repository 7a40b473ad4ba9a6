"""The glossary of axis names used in every tensor signature, and the two records that carry sizes.

| axis | meaning |
| --- | --- |
| b | image of a batch |
| h | attention head |
| q, k, t | query, key, any token (prefix tokens, such as cls and registers, included) |
| n | patch (tokens less the prefix) |
| d | channel of a token |
| c | colour of a picture, in the order red, green, blue |
| y, x | row and column of a pixel |
| gy, gx | row and column of a cell of a grid: a patch, a mask unit or a weight patch |

The shapes are checked while the tests run (jaxtyping with beartype), never in normal use.
"""

from typing import NamedTuple


class Grid(NamedTuple):
    """Patches of an image: rows and columns."""

    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of patches."""
        return self.height * self.width


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int
