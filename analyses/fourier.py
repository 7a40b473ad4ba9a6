"""Which spatial frequencies tokens carry, by depth (Park and Kim, arXiv 2202.06709; KAMIM, figure 4)."""

import math
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from kamim_analysis.encoders import patch_tokens
from kamim_analysis.shapes import Grid

from ._analysis import Findings, PerImage, Site

QUESTION = "Does a layer carry fine detail or broad patches of the picture?"
HOW_TO_READ = "Lower: less fine spatial detail in the tokens of that layer, relative to their mean over the picture."
SOURCE = "Park and Kim, arXiv 2202.06709; KAMIM, figure 4"
COST = "inside the hooks"
BY_DEFAULT = True


@lru_cache(maxsize=64)
def _half_diagonal(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, F] of the discrete Fourier transform at the frequencies (i, i) from DC outwards."""
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        count = min(size - size // 2 for size in grid)
        frequency = torch.arange(count, dtype=torch.float64, device=device)
        y = torch.arange(grid.height, dtype=torch.float64, device=device) / grid.height
        x = torch.arange(grid.width, dtype=torch.float64, device=device) / grid.width
        phase = (2 * math.pi * (y[:, None, None] + x[None, :, None]) * frequency).flatten(0, 1)
        return phase.cos().float(), phase.sin().float()


def log_amplitude(tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b f"]:
    """Log amplitude on the half diagonal of each image's spectrum, mean over channels: [B, N, C] -> [B, F].

    log(|FFT2| + 1e-6) of each channel's map, at the frequencies (i/H, i/W) from DC (i = 0) outwards; for a 12 x 12
    grid i ends at 5, since an even grid's centred spectrum has DC at index 6. Only these F of the N coefficients are
    used, so they are computed directly, as a product with F cosines and sines.
    """
    cosine, sine = _half_diagonal(Grid(*grid), tokens.device)
    maps = tokens.float().transpose(1, 2)
    return ((maps @ cosine).hypot(maps @ sine) + 1e-6).log().mean(1)


def relative_log_amplitude(tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, " f"]:
    """Log amplitude by frequency relative to DC, mean over images and channels: [B, N, C] -> [F], first entry 0.

    `tokens` are patch tokens in row-major order. Figure 4 of KAMIM plots the last entry (the highest frequency, 5/12
    of a cycle per patch on a 12 x 12 grid) by depth: the lower, the more the layer has smoothed over the picture.

    Source: Park and Kim, arXiv 2202.06709, section 2; KAMIM, arXiv 2407.13873, section 5.2.

    >>> relative_log_amplitude(torch.ones(1, 16, 3), (4, 4)).round()
    tensor([  0., -17.])
    """
    amplitude = log_amplitude(tokens, grid).mean(0)
    return amplitude - amplitude[0]


class Fourier(PerImage):
    """Relative log amplitude of each image and layer, from the embedding on."""

    SITES: ClassVar[frozenset[Site]] = frozenset({"tokens"})
    LEAST_LAYER: ClassVar[int] = 0

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Reduce a layer's tokens."""
        if site in self.SITES:
            block = self.subject.block(layer)
            self.put(f"layer{layer}", log_amplitude(patch_tokens(values, block.prefix_tokens), block.grid))

    def compute(self) -> Findings:
        """Rows `delta_log_amplitude`: the highest frequency on the diagonal against DC."""
        findings = Findings("fourier")
        for layer, key in enumerate(self.keys()):
            amplitude = self.values(key)
            findings.add("delta_log_amplitude", amplitude[:, -1:] - amplitude[:, :1], [layer])
        return findings
