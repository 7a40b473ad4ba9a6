"""Attention distance: how far, in pixels, a patch looks (Park et al., arXiv 2305.00729; figure 6 of KAMIM)."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from kamim_analysis.patches import pairwise_distance
from kamim_analysis.shapes import Grid, Size

from ._analysis import Findings, PerImage, Site

QUESTION = "How far does each layer look?"
HOW_TO_READ = (
    "Higher: patches look farther, in pixels of the model's own input; uniform attention on 12 x 12 patches of 16 "
    "px gives 99.8."
)
SOURCE = "Park et al., arXiv 2305.00729; KAMIM, figure 6"
COST = "inside the hooks"
BY_DEFAULT = True


def attention_distance(
    attention: Float[Tensor, "b h n n"], grid: tuple[int, int], patch_size: int | tuple[int, int]
) -> Float[Tensor, "b h"]:
    """Mean distance in pixels between a query patch and the patches it attends to: [B, heads, N, N] -> [B, heads].

    Mean over queries q of sum over keys k of A[q, k] x |centre(q) - centre(k)|. `attention` is over patches only,
    rows summing to one (see `patch_attention`); 0 when every patch attends to itself. Uniform attention on 12 x 12
    patches of 16 px gives 99.8 px, which is what KAMIM's layers show in figure 6 (99.57 to 99.97).

    Source: Park et al., arXiv 2305.00729, section 3; KAMIM, arXiv 2407.13873, section 5.4.

    >>> attention_distance(torch.full((1, 1, 144, 144), 1 / 144), (12, 12), 16)
    tensor([[99.7529]])
    """
    size = Size(patch_size, patch_size) if isinstance(patch_size, int) else Size(*patch_size)
    distance = pairwise_distance(Grid(*grid), size, attention.device)
    with torch.autocast(attention.device.type, enabled=False):  # which would take products in half precision
        by_query: Tensor = torch.linalg.vecdot(attention.float(), distance)
    return by_query.mean(-1)


class AttentionDistance(PerImage):
    """Attention distance of each image, layer and head."""

    SITES: ClassVar[frozenset[Site]] = frozenset({"patch_attention"})

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Reduce a layer's attention."""
        if site in self.SITES:
            block = self.subject.block(layer)
            self.put(f"layer{layer}", attention_distance(values, block.grid, block.patch_size))

    def compute(self) -> Findings:
        """Pixels; rows `mean` for each layer and head."""
        findings = Findings("attention_distance")
        findings.add_by_head("mean", [self.values(key) for key in self.keys()])
        return findings
