"""SimMIM's mask: square units hidden at random, the same number in every image."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UserError
from ..patches import divide, enlarge
from ..shapes import Grid, Size
from ._masking import Amount, Masking


def random_blocks(
    image_size: Size, *, unit: int, ratio: float, patch_size: int, generator: torch.Generator | None = None
) -> Bool[Tensor, "gy gx"]:
    """A mask over patches (True = hidden): ceil(ratio x units) units of `unit` x `unit` pixels, drawn at random.

    Source: SimMIM (arXiv 2111.09886, section 3.2) and its code; KAMIM takes units of 32 pixels and a ratio of 0.6.
    Without `generator` the mask is drawn from torch's global one.

    Raises UserError when the unit does not divide the image, the patch does not divide the unit, or the ratio
    is not in (0, 1].

    >>> mask = random_blocks(Size(192, 192), unit=32, ratio=0.6, patch_size=16)
    >>> mask.shape, int(mask.sum())          # ceil(0.6 x 36) = 22 units of 4 patches
    (torch.Size([12, 12]), 88)
    """
    if not 0 < ratio <= 1:
        raise UserError(f"mask ratio {ratio} is not in (0, 1]; SimMIM's is 0.6")
    units = divide(image_size, unit, what="mask unit")
    within = divide(Size(unit, unit), patch_size, what="patch size")
    # 0.6 x 35 is 21.000000000000004 in floating point: round before the ceiling
    hidden = max(1, math.ceil(round(ratio * units.area, 9)))
    order = torch.randperm(units.area, generator=generator)
    mask = torch.zeros(units.area, dtype=torch.bool)
    mask[order[:hidden]] = True
    return enlarge(mask.reshape(units), Size(within.height, within.width))


class RandomBlocks(Masking):
    """The same number of units in every picture; `variation` and `probability` have no part in it."""

    def draw(self, grid: Grid, patch_size: int, amount: Amount) -> dict[str, Tensor]:
        """`mask` itself."""
        size = Size(grid.height * patch_size, grid.width * patch_size)
        return {"mask": random_blocks(size, unit=amount.unit, ratio=amount.ratio, patch_size=patch_size)}

    def mask(self, drawn: Mapping[str, Tensor], scores: Float[Tensor, "b n"] | None = None) -> Bool[Tensor, "b gy gx"]:
        """As drawn."""
        return drawn["mask"]


MASKING = RandomBlocks()
