"""Tokens before and after self-attention: does attention gather or spread them? (KAMIM, figures 8 to 10)."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from kamim_analysis.encoders import patch_tokens

from ._analysis import Batch, Findings, PerImage, Site, Subject, only_single_patches
from ._directions import direction
from .attention_maps import to_pixels

QUESTION = "Does self-attention gather the tokens of an image or spread them?"
HOW_TO_READ = "Cosine after above cosine before: self-attention makes the tokens of a picture more alike."
SOURCE = "KAMIM, figures 8 to 10"
COST = "inside the hooks"
BY_DEFAULT = True
#: pictures whose tokens are kept for figures 8 to 10: 6, 6 and 4 of three classes
SHOWN = (6, 6, 4)


def mean_pairwise_cosine(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, " b"]:
    """Mean cosine between two different tokens of an image: [B, N, C] -> [B], in [-1, 1]; 1 when all point alike.

    The sum over all pairs is the squared norm of the sum of unit vectors, so no N x N matrix is made. NaN for a
    single token, and where a token is zero, which has no direction.

    Source: a number of ours for what figures 8 to 10 of KAMIM show, arXiv 2407.13873.

    >>> mean_pairwise_cosine(torch.eye(4)[None]), mean_pairwise_cosine(torch.ones(1, 4, 4))
    (tensor([0.]), tensor([1.]))
    """
    count = tokens.shape[1]
    unit = direction(tokens)
    pairs = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    return pairs / (count * (count - 1))


def principal_plane(*groups: NDArray[np.floating]) -> list[NDArray[np.float32]]:
    """Groups of vectors [..., C] on the first two principal components of all of them together: [..., 2] each.

    Vectors that are all alike, as a single one is, have no such components: zeros.
    """
    from sklearn.decomposition import PCA

    flat = [group.reshape(-1, group.shape[-1]) for group in groups]
    together = np.concatenate(flat)
    if (together == together[0]).all():
        return [np.zeros((*group.shape[:-1], 2), np.float32) for group in groups]
    plane = PCA(n_components=2, svd_solver="full").fit(together)
    return [
        plane.transform(vectors).reshape(*group.shape[:-1], 2).astype(np.float32)
        for vectors, group in zip(flat, groups, strict=True)
    ]


class SelfAttentionTokens(PerImage):
    """Mean pairwise cosine before and after attention at each layer; principal planes of a few images' tokens.

    "Before" is the attention module's input (after the block's first norm), "after" its output (after the
    projection, before the residual sum), as in KAMIM's notebooks.
    """

    SITES: ClassVar[frozenset[Site]] = frozenset({"attention_input", "attention_output"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        # the paper shows layer 11 of 12 (figure 8) and the last (figures 9 and 10)
        self.shown_layers = sorted({max(subject.layers - 1, 1), subject.layers})
        self._pending_shown: dict[str, Tensor] = {}
        self.add_lists(*self._shown_keys(), "shown_labels", "shown_pixels")

    @classmethod
    def unavailable(cls, subject: Subject) -> str | None:
        """Needs pairs of patches."""
        return only_single_patches(subject)

    def keys(self) -> list[str]:
        """Two states for each layer."""
        return [f"{when}{i}" for when in ("before", "after") for i in range(1, self.subject.layers + 1)]

    def _shown_keys(self) -> Sequence[str]:
        return [f"shown_{when}{i}" for when in ("before", "after") for i in self.shown_layers]

    def _room(self) -> int:
        return sum(SHOWN) - self.count("shown_labels")

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Reduce a layer's tokens; keep those of the first few images."""
        if site not in self.SITES:
            return
        when = "before" if site == "attention_input" else "after"
        tokens = patch_tokens(values, self.subject.block(layer).prefix_tokens)
        self.put(f"{when}{layer}", mean_pairwise_cosine(tokens))
        if layer in self.shown_layers and self._room() > 0:
            self._pending_shown[f"shown_{when}{layer}"] = tokens[: self._room()].float()

    def update(self, batch: Batch) -> None:
        """Close a batch."""
        super().update(batch)
        room = self._room()
        for key, tokens in self._pending_shown.items():
            self.append(key, tokens)
        self._pending_shown = {}
        if room > 0:
            self.append("shown_labels", batch.labels[:room])
            self.append("shown_pixels", to_pixels(batch.images[:room], self.subject))

    def compute(self) -> Findings:
        """Rows `cosine_before`, `cosine_after`; planes `before{layer}`, `after{layer}` [16, N, 2], fitted together."""
        layers = range(1, self.subject.layers + 1)
        findings = Findings("self_attention_tokens")
        for when in ("before", "after"):
            values = np.stack([self.values(f"{when}{i}") for i in layers], axis=1)
            findings.add(f"cosine_{when}", values, list(layers))
        arrays = findings.arrays
        for i in self.shown_layers:
            before, after = (self.values(f"shown_{when}{i}")[: sum(SHOWN)] for when in ("before", "after"))
            # figure 8 shows one image, 9 two images, 10 all of them after attention: each has a plane of its own
            arrays[f"one_before{i}"], arrays[f"one_after{i}"] = principal_plane(before[:1], after[:1])
            arrays[f"two_before{i}"], arrays[f"two_after{i}"] = principal_plane(before[:2], after[:2])
            (arrays[f"all_after{i}"],) = principal_plane(after)
        arrays["self_attention_layers"] = np.array(self.shown_layers)
        for name in ("labels", "pixels"):
            arrays[f"self_attention_{name}"] = self.collected(f"shown_{name}")[: sum(SHOWN)].numpy()
        return findings
