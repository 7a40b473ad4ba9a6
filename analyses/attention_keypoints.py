"""Does a model look where the keypoints are? Attention against KAMIM's keypoint density, patch by patch."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kamim_analysis.results import rows_of

from ._analysis import Analysis, Batch, Findings, Site, Subject, as_array, only_single_patches
from ._keypoint_density import cell_density, has_keypoints, keypoint_maps

QUESTION = "Do patches with many keypoints receive more attention?"
HOW_TO_READ = (
    "Rank correlation of a patch's attention with its keypoint density: 0 none, 1 the same order; "
    "what counts is the excess over the control, the same picture's densities mirrored left to right."
)
SOURCE = "this project's own measure, on the keypoint density of KAMIM, arXiv 2407.13873, equation 1"
COST = "inside the hooks, and keypoints of each picture"
BY_DEFAULT = True
_NAMES: dict[Site, str] = {"patch_attention": "received", "attention": "cls"}


def received_attention(attention: Float[Tensor, "b h q n"]) -> Float[Tensor, "b h n"]:
    """What each patch receives: the mean over queries of A[q, k], [B, heads, N, N] -> [B, heads, N]; sums to one.

    >>> received_attention(torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]))
    tensor([[[0.7500, 0.2500]]])
    """
    return attention.mean(-2, dtype=torch.float32)


def spearman(first: Float[Tensor, "*b n"], second: Float[Tensor, "*#b n"]) -> Float[Tensor, "*b"]:
    """Spearman's rank correlation along the last axis, in [-1, 1]: Pearson's of ranks, those of ties averaged.

    Of ranks, since both attention and densities have long tails: a few patches would decide Pearson's. Ties must be
    averaged, since most patches of many pictures have no keypoint at all. Where either side is constant it follows
    nothing, and the correlation, which is then 0/0, counts as 0: the mean over all ways to break the ties.

    >>> spearman(torch.tensor([0.1, 0.2, 0.4, 0.9]), torch.tensor([0.0, 0.0, 0.5, 0.25]))
    tensor(0.7379)
    """
    return _product(_unit_ranks(first), _unit_ranks(second))


def _product(first: Float[Tensor, "*b n"], second: Float[Tensor, "*#b n"]) -> Float[Tensor, "*b"]:
    return (first * second).sum(-1).clamp(-1, 1)  # rounding can leave it a hair beyond one


def _unit_ranks(values: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """Ranks, those of ties averaged, less their mean and scaled to length one; all 0 where all are tied."""
    values = values.detach()
    count, order = values.shape[-1], _order(values)
    tied_group = functional.pad(values.gather(-1, order).diff(dim=-1) != 0, (1, 0)).cumsum(-1)
    # twice the rank less twice the mean rank: whole numbers, so that sums are exact
    ranks = torch.arange(1.0 - count, count, 2, device=values.device).expand(values.shape)
    zeros = ranks.new_zeros(values.shape)
    total = zeros.scatter_add(-1, tied_group, ranks)
    size = zeros.scatter_add(-1, tied_group, torch.ones_like(ranks))
    averaged = (total / size).gather(-1, tied_group)
    return functional.normalize(zeros.scatter(-1, order, averaged), dim=-1)


def _order(values: Float[Tensor, "*b n"]) -> Int64[Tensor, "*b n"]:
    """What sorts the last axis; on a CPU by NumPy, whose sort takes a tenth of the time of torch's."""
    if values.device.type != "cpu" or values.dtype == torch.bfloat16:  # which NumPy lacks
        return values.argsort(dim=-1)
    return torch.from_numpy(np.argsort(values.numpy(), axis=-1))


def against_density(
    values: Float[Tensor, "b *h n"], density: Float[Tensor, "b n"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "b *h"], Float[Tensor, "b *h"]]:
    """`spearman` of each image's patches with its keypoint density, and with the mirrored density, the control.

    The control must say what attention would score that knows how photographs are laid out, but not what is in this
    one. A density mirrored left to right keeps what the picture's has: how many keypoints, how they clump, how they
    thin out towards the sides and how they lie above or below the horizon, since photographs are as likely as their
    mirror images. It only lies where the content is not. (Shuffled patches lose clumps and layout both, and shifted
    ones the layout: both average 0, whatever the model, and would call any preference for the centre a find.) A picture
    that is its own mirror image scores alike in both, so the excess over the control errs towards none.

    >>> density = torch.tensor([[0.0, 0.5, 1.0, 0.0, 0.2, 0.9]])
    >>> against_density(density, density, (2, 3))
    (tensor([1.]), tensor([-0.9118]))
    """
    ranks, of_density = _unit_ranks(values), _unit_ranks(density)
    mirrored = of_density.unflatten(-1, grid).flip(-1).flatten(-2)
    shape = (len(density), *[1] * (values.ndim - 2), -1)
    return _product(ranks, of_density.view(shape)), _product(ranks, mirrored.view(shape))


class AttentionKeypoints(Analysis):
    """Correlation of attention with keypoint density, within each image, for each layer and head.

    Of what a patch receives from patches, and, where there is one, of what the cls token pays to patches. Pictures
    without a keypoint have no correlation and are left out: the same ones for every model that sees the same pixels,
    so that numbers stay paired; the column `images` counts the others. Layers of a single patch are left out too.

    In a Swin every window's patches share the same sum of attention, so that what a patch receives can follow the
    density within windows only: its correlations are lower than a ViT's by construction.
    """

    SITES: ClassVar[frozenset[Site]] = frozenset({"attention", "patch_attention"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._pending: dict[str, list[Tensor]] = {}
        self.add_lists(*self._keys().keys(), "mirror")

    @classmethod
    def unavailable(cls, subject: Subject) -> str | None:
        """Needs patches to choose from."""
        return only_single_patches(subject)

    def _keys(self) -> dict[str, int]:
        """Names of the states with their layers; each state [images, heads + 1], the control behind the heads."""
        return {f"{name}{i}": i for site, name in _NAMES.items() for i in self.layers_wanted(site)}

    def layers_wanted(self, site: Site) -> Sequence[int]:
        """Layers that have patches to choose from; of all tokens' attention, those with a cls token among these."""
        chosen = [block for block in self.subject.anatomy.blocks if block.grid.area > 1]
        if site == "attention":
            chosen = [block for block in chosen if self.subject.anatomy.has_cls and block.prefix_tokens]
        return [block.layer for block in chosen]

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Reduce a layer's attention to a number for each head and patch; what it follows is known after the pass."""
        if site == "patch_attention":
            self._pending.setdefault(f"received{layer}", []).append(received_attention(values))
        elif site == "attention":
            # a copy, since a view would keep all of the attention
            cls = values[:, :, 0, self.subject.block(layer).prefix_tokens :].float().clone()
            self._pending.setdefault(f"cls{layer}", []).append(cls)

    def update(self, batch: Batch) -> None:
        """Correlate this batch's attention with its densities. Raises RuntimeError when a site stayed silent."""
        pending, self._pending = self._pending, {}
        silent = [key for key in self._keys() if sum(map(len, pending.get(key, []))) != len(batch.images)]
        if silent:
            raise RuntimeError(f"{type(self).__name__} did not see {', '.join(silent)} of every image")
        maps = keypoint_maps(batch.images, self.subject)
        usable = has_keypoints(maps)
        density = {grid: cell_density(maps, grid) for grid in {block.grid for block in self.subject.anatomy.blocks}}
        for key, layer in self._keys().items():
            grid, attention = self.subject.block(layer).grid, torch.cat(pending[key])
            by_head, control = against_density(attention, density[grid].to(attention.device), grid)
            found = torch.cat([by_head, control.mean(1, keepdim=True)], dim=1)
            self.append(key, found[usable.to(found.device)])
        first = self.subject.block(1).grid
        self.append("mirror", against_density(density[first], density[first], first)[1][usable])

    def compute(self) -> Findings:
        """Rows by layer of what a patch receives, and of cls's attention with `cls` in place of `received`.

        `received_spearman` by head, `received_spearman_control` and `received_spearman_excess`, the difference, of
        means over heads. `density_mirror_spearman`, without layer: how alike the densities are to their mirror image,
        on the first layer's patches; near 1 the pictures are symmetric, and there is no excess to be had.
        """
        findings = Findings("attention_keypoints")
        mirror = as_array(self.collected("mirror"))
        if not len(mirror):
            findings.absent = "no picture has keypoints"
            return findings
        for site, name in _NAMES.items():
            layers = self.layers_wanted(site)
            values = [as_array(self.collected(f"{name}{i}")) for i in layers]
            self._add(findings, f"{name}_spearman", values, layers)
        findings.add("density_mirror_spearman", mirror[:, None], [None])
        return findings

    @staticmethod
    def _add(findings: Findings, name: str, values: list[NDArray[np.float64]], layers: Sequence[int]) -> None:
        if not layers:
            return
        findings.add_by_head(name, [one[:, :-1] for one in values], layers)
        control = np.stack([one[:, -1] for one in values], axis=1)
        mean = np.stack([one[:, :-1].mean(1) for one in values], axis=1)
        # no finding of its own to compare models by, which would only cost the others in the correction for many
        findings.rows += rows_of(findings.analysis, f"{name}_control", control, layers=layers)
        findings.add(f"{name}_excess", mean - control, layers)
