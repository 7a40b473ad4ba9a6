"""t-SNE of patch tokens: do tokens of one class lie together? (KAMIM, figure 3)."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kamim_analysis.encoders import patch_tokens

from ._analysis import Analysis, Batch, Findings, Site, Subject
from .attention_maps import to_pixels

QUESTION = "Do the patch tokens of one class lie together?"
HOW_TO_READ = "Neighbours in the plane have similar tokens; sizes of clusters and distances between them mean nothing."
SOURCE = "KAMIM, figure 3"
COST = "t-SNE of the tokens of a few pictures"
BY_DEFAULT = True
_IMAGES = 6
_PERPLEXITY, _ITERATIONS = 20, 1000
#: tokens below which there is no perplexity of one neighbour
_LEAST = 4


def token_tsne(tokens: NDArray[np.floating], *, seed: int = 0) -> NDArray[np.float32]:
    """Two-dimensional t-SNE of tokens [M, C] -> [M, 2], scikit-learn's: perplexity 20, 1000 iterations, random init.

    The settings of KAMIM's notebook. Distances between clusters and their sizes mean nothing in a t-SNE;
    which tokens are neighbours does. Fewer than 61 tokens lower the perplexity to a third of them; it takes four at
    least, so that it is that of one neighbour.
    """
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(tokens) - 1) / 3)
    embedding: NDArray[np.float32] = TSNE(
        perplexity=perplexity, max_iter=_ITERATIONS, init="random", random_state=seed
    ).fit_transform(tokens)
    return embedding.astype(np.float32)


class TokenTSNE(Analysis):
    """The last layer's patch tokens of the first six images, embedded together."""

    SITES: ClassVar[frozenset[Site]] = frozenset({"tokens"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._pending: Tensor | None = None
        self.add_lists("kept", "labels", "pixels")

    def layers_wanted(self, site: Site) -> Sequence[int]:
        """The last layer."""
        return [self.subject.layers] if site in self.SITES else []

    def _room(self) -> int:
        return _IMAGES - self.count("labels")

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Keep the first images' tokens."""
        if site in self.SITES and layer == self.subject.layers and self._room() > 0:
            tokens = patch_tokens(values, self.subject.block(layer).prefix_tokens)
            self._pending = tokens[: self._room()].float()

    def update(self, batch: Batch) -> None:
        """Close a batch."""
        room = self._room()
        if self._pending is not None and room > 0:
            self.append("kept", self._pending)
            self.append("labels", batch.labels[:room])
            self.append("pixels", to_pixels(batch.images[:room], self.subject))
        self._pending = None

    def compute(self) -> Findings:
        """Array `tsne` [images, N, 2] with each image's class and `tsne_pixels`, uint8 [images, H, W, 3]."""
        tokens = self.collected("kept")[:_IMAGES].numpy()
        images, count, channels = tokens.shape
        if images * count < _LEAST:
            findings = Findings("token_tsne")
            findings.absent = f"needs {_LEAST} patches, of all pictures together"
            return findings
        plane = token_tsne(tokens.reshape(-1, channels), seed=self.subject.seed)
        labels, pixels = (self.collected(name)[:_IMAGES].numpy() for name in ("labels", "pixels"))
        arrays = {"tsne": plane.reshape(images, count, 2), "tsne_labels": labels, "tsne_pixels": pixels}
        return Findings("token_tsne", arrays)
