"""NMI of attention: does a patch look by where it is? (Park et al., arXiv 2305.00729; KAMIM, figure 7)."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ._analysis import Findings, PerImage, Site, Subject, only_single_patches

QUESTION = "Does what a patch attends to depend on where the patch is?"
HOW_TO_READ = "0: all patches of a picture attend alike, wherever they are; 1: each attends to one patch of its own."
SOURCE = "Park et al., arXiv 2305.00729; KAMIM, figure 7"
COST = "inside the hooks"
BY_DEFAULT = True


def attention_nmi(attention: Float[Tensor, "b h n n"]) -> Float[Tensor, "b h"]:
    """Normalised mutual information of query and key: [B, heads, N, N] -> [B, heads], in [0, 1].

    With queries equally likely, p(q) = 1/N, and keys p(k) = mean over q of A[q, k]:
    I = sum of p(q) A log(A / p(k)) = H(k) - mean over q of H(A[q]), and NMI = I / sqrt(H(q) H(k)), H(q) = log N.
    0: every query attends alike (attention has collapsed); 1: each attends to one patch of its own. Where all
    attention goes to one key, H(k) = 0 and so is I: NMI is 0. NaN for a single patch, where H(q) = 0 too.
    `attention` as in `attention_distance`. Rows are summed in float32, and what is left of them in double: where
    attention is nearly uniform, I is a small difference of two large entropies.

    Source: Park et al., arXiv 2305.00729, section 3; their code adds 1e-8 to A first, a difference below 1e-5.

    >>> attention_nmi(torch.eye(4)[None, None]), attention_nmi(torch.full((1, 1, 4, 4), 0.25))
    (tensor([[1.]]), tensor([[0.]]))
    """
    attention = attention.float()
    queries = attention.shape[-2]
    key_entropy = torch.special.entr(attention.mean(-2).double()).sum(-1)
    row_entropy = torch.special.entr(attention).sum(-1).double().mean(-1)
    information = (key_entropy - row_entropy).clamp_min(0)  # rounding can leave it a hair below zero
    if queries < 2:
        return torch.full_like(information, torch.nan).float()
    scale = (math.log(queries) * key_entropy).sqrt()
    return torch.where(key_entropy == 0, 0.0, information / scale).float()


class AttentionNMI(PerImage):
    """NMI of each image, layer and head."""

    SITES: ClassVar[frozenset[Site]] = frozenset({"patch_attention"})

    @classmethod
    def unavailable(cls, subject: Subject) -> str | None:
        """Needs patches to choose from."""
        return only_single_patches(subject)

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Reduce a layer's attention."""
        if site in self.SITES:
            self.put(f"layer{layer}", attention_nmi(values))

    def compute(self) -> Findings:
        """Rows `mean` for each layer and head; NaN for a layer of a single patch."""
        findings = Findings("attention_nmi")
        findings.add_by_head("mean", [self.values(key) for key in self.keys()])
        return findings
