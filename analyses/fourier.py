"""Which spatial frequencies tokens carry, by depth (Park and Kim, arXiv 2202.06709; KAMIM, figure 4)."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from kamim_analysis.bootstrap import mean_interval
from kamim_analysis.encoders import patch_tokens
from kamim_analysis.shapes import Grid

from ._analysis import Findings, PerImage, Site, Subject

QUESTION = "Does a layer carry fine detail or broad patches of the picture?"
HOW_TO_READ = "Lower: less fine spatial detail in the tokens of that layer, relative to their mean over the picture."
SOURCE = "Park and Kim, arXiv 2202.06709; Park et al., arXiv 2305.00729; KAMIM, figure 4"
COST = "inside the hooks"
BY_DEFAULT = True


def _count(grid: Grid) -> int:
    """Frequencies on the half diagonal."""
    return min(size - size // 2 for size in grid)


@lru_cache(maxsize=64)
def _half_diagonal(grid: Grid, device: torch.device) -> Float[Tensor, "f n"]:
    """Cosines, then sines [2F, N] of the discrete Fourier transform at the frequencies (i, i) from DC outwards."""
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        frequency = torch.arange(_count(grid), dtype=torch.float64, device=device)
        y = torch.arange(grid.height, dtype=torch.float64, device=device) / grid.height
        x = torch.arange(grid.width, dtype=torch.float64, device=device) / grid.width
        phase = 2 * math.pi * frequency[:, None] * (y[:, None] + x).flatten()
        return torch.cat([phase.cos(), phase.sin()]).float()


def log_amplitude(tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b f"]:
    """Log amplitude on the half diagonal of each image's spectrum, mean over channels: [B, N, C] -> [B, F].

    log(|FFT2| + 1e-6) of each channel's map, at the frequencies (i/H, i/W) from DC (i = 0) outwards; for a 12 x 12
    grid i ends at 5, since an even grid's centred spectrum has DC at index 6. Only these F of the N coefficients are
    used, so they are computed directly, as one real product with F cosines and F sines that reads the tokens once.
    """
    waves = _half_diagonal(Grid(*grid), tokens.device)
    with torch.autocast(tokens.device.type, enabled=False):  # which would take products in half precision
        real, imaginary = (waves @ tokens.float()).chunk(2, dim=1)
    return (real.hypot(imaginary) + 1e-6).log().mean(-1)


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


def frequencies(grid: tuple[int, int]) -> NDArray[np.float64]:
    """Frequencies on the half diagonal as fractions of pi: [F], i / (size / 2) from 0 to below 1.

    1 is the fastest that a grid can carry, half a cycle per patch. Of a grid that is not square they are those along
    its shorter side, which is where the diagonal ends. Park and Kim's code stretches the axis instead, so that its last
    point stands at 1.0 pi; it is at 6/7 on their 14 x 14 patches.

    >>> frequencies((4, 4)), frequencies((6, 9))
    (array([0. , 0.5]), array([0.        , 0.33333333, 0.66666667]))
    """
    found: NDArray[np.float64] = 2 * np.arange(_count(Grid(*grid))) / min(grid)
    return found


class Fourier(PerImage):
    """Relative log amplitude of each image and layer, from the embedding on, and between attention and MLP.

    Park and Kim, and Park et al., follow 2L + 1 latents of L blocks, 25 of a ViT-B: the embedding, then for each block
    the residual stream after attention and that after the MLP. Here these are layer 0, then for i = 1, 2, ...
    `after_attention` of layer i and layer i itself. Every second one of them, which Park et al. plot, are the layers 0
    to L; KAMIM's notebook plots layers 0 to 11 of 12, the last being left out. Blocks that are not of two such steps
    (post-norm, attention and MLP in parallel) have no stream between them, and a number for their output alone.
    """

    SITES: ClassVar[frozenset[Site]] = frozenset({"tokens", "after_attention"})
    FILE: ClassVar[str] = "fourier"
    LEAST_LAYER: ClassVar[int] = 0

    @classmethod
    def unavailable(cls, subject: Subject) -> str | None:
        """Needs a frequency beside DC."""
        grids = {block.grid for block in subject.anatomy.blocks}
        return None if max(map(_count, grids)) > 1 else "a diagonal of fewer than 3 patches has no frequency but DC"

    def layers_wanted(self, site: Site) -> Sequence[int]:
        """All layers; between attention and MLP those that have a stream there."""
        if site == "after_attention":
            return [block.layer for block in self.subject.anatomy.blocks if block.mlp_norm is not None]
        return super().layers_wanted(site)

    def keys(self) -> list[str]:
        """A state [images, F] for each latent."""
        return [*super().keys(), *(f"after_attention{layer}" for layer in self.layers_wanted("after_attention"))]

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Reduce a layer's tokens."""
        if site in self.SITES:
            block = self.subject.block(layer)
            key = f"layer{layer}" if site == "tokens" else f"after_attention{layer}"
            self.put(key, log_amplitude(patch_tokens(values, block.prefix_tokens), block.grid))

    def compute(self) -> Findings:
        """Rows of the highest frequency on the diagonal against DC, and arrays of the whole half diagonal.

        Rows `delta_log_amplitude` for layers 0 to L (KAMIM's figure 4), `delta_log_amplitude_after_attention` for
        layers 1 to L, and what the two steps of a block add to it, `change_by_attention` and `change_by_mlp`: pictures
        differ far more than a step changes any of them, so its interval is of each picture's own difference. The first
        block of a Swin's later stage has no `change_by_attention`, its input lying on another grid. NaN on grids whose
        shorter side has less than 3 patches, the diagonal of which ends at DC. Arrays
        `diagonal{layer}` and `diagonal_after_attention{layer}` [3, F]: log amplitude less that of DC, mean over images,
        low and high end of its interval; `frequency{layer}` [F]: where, as fractions of pi (see `frequencies`). F may
        differ between layers, since Swin's grids do.
        """
        findings = Findings("fourier")
        outputs = {layer: self._add(findings, layer, f"layer{layer}", "") for layer in self.layers_wanted("tokens")}
        for layer in outputs:
            findings.arrays[f"frequency{layer}"] = frequencies(self.subject.block(layer).grid)
        for layer in self.layers_wanted("after_attention"):
            between = self._add(findings, layer, f"after_attention{layer}", "_after_attention")
            if self.subject.block(layer - 1).grid == self.subject.block(layer).grid:
                findings.add("change_by_attention", between - outputs[layer - 1], [layer])
            findings.add("change_by_mlp", outputs[layer] - between, [layer])
        return findings

    def _add(self, findings: Findings, layer: int, key: str, suffix: str) -> NDArray[np.float64]:
        """A latent's row and array; returns each image's highest frequency against DC, [images, 1]."""
        amplitude = self.values(key)
        relative = amplitude - amplitude[:, :1]
        highest = relative[:, -1:] if relative.shape[1] > 1 else np.full_like(relative, np.nan)
        findings.add(f"delta_log_amplitude{suffix}", highest, [layer])
        findings.arrays[f"diagonal{suffix}{layer}"] = np.stack(mean_interval(relative))
        return highest
