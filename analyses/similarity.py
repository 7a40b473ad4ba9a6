"""How alike the layers of a model are, and of two models: unbiased linear CKA and shared nearest neighbours."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from kamim_analysis.bootstrap import mean_interval
from kamim_analysis.cka import LEAST_BY_IMAGE, cka_by_image, grams_of
from kamim_analysis.encoders import patch_tokens
from kamim_analysis.shared_neighbours import shared_neighbours

from ._analysis import Findings, PerImage, Site
from ._directions import unit
from .geometry import FEATURES

QUESTION = "Which layers of a model, or of two models, tell images apart in the same way?"
HOW_TO_READ = "CKA of 1: the same features up to rotation and scale; 0: unrelated. Neighbours: the share in common."
SOURCE = "Nguyen et al., arXiv 2010.15327; Huh et al., arXiv 2405.07987"
COST = "a feature of each layer of up to 2,048 pictures"
BY_DEFAULT = True
#: neighbours of each image, as in Huh et al.
NEIGHBOURS = 10
# directions of float32 that differ less differ by rounding
_ROUNDING = 1e-6
# rows of the matrix of all images' similarities that are held at a time
_ROWS = 128


def nearest(features: Float[Tensor, "i d"], k: int) -> Int32[Tensor, "i k"]:
    """Numbers of each image's k nearest other images by cosine, in ascending order: [images, C] -> [images, k].

    In double precision: features of early layers differ by thousandths, and the sets should not be rounding's. All -1
    where all features point alike, so that nobody is nearer than another.

    >>> nearest(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [0.0, 1.0]]), 2).tolist()
    [[1, 2], [0, 2], [0, 1], [1, 2]]
    """
    directions = unit(features.double())
    if (directions - directions[0]).abs().amax() <= _ROUNDING:
        return torch.full((len(features), k), -1, dtype=torch.int32)
    found = []
    for start in range(0, len(directions), _ROWS):
        cosine = directions[start : start + _ROWS] @ directions.T
        cosine.diagonal(start).fill_(-torch.inf)
        found.append(cosine.topk(k, dim=1).indices.sort(1).values)
    return torch.cat(found).int()


class Similarity(PerImage):
    """CKA and shared neighbours of mean-pooled patch tokens of every layer, the last one's before the final norm too.

    CKA rows hold each image's part in it (`kamim_analysis.cka.cka_by_image`), whose mean is the CKA of all images:
    their interval is that of CKA over another set of as many images. The interval of shared neighbours is over the
    images that are asked for their neighbours, among the same images.
    """

    SITES: ClassVar[frozenset[Site]] = frozenset({"tokens"})
    FILE: ClassVar[str] = "similarity"
    LEAST_LAYER: ClassVar[int] = 0
    MOST: ClassVar[int | None] = FEATURES

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Pool a layer's tokens."""
        if site in self.SITES:
            self.put(f"layer{layer}", patch_tokens(values, self.subject.block(layer).prefix_tokens).float().mean(1))

    def compute(self) -> Findings:
        """Rows `cka_with_last` and `mutual_knn_with_last` of the layers before the last, and arrays.

        `grams` [layers + 1, groups, n, n], for CKA with other models (`kamim_analysis.cka.cka_of_grams`);
        `gram_images`; `cka`, `cka_low`, `cka_high` [layers + 1, layers + 1]; `neighbours` [layers + 1, images, 10].
        Fewer than five images leave nothing; fewer than twelve no neighbours, of which each would have all. NaN for
        layers whose images are all alike.
        """
        findings = Findings("similarity")
        images, earlier = len(self.collected("layer0")), list(range(self.subject.layers))
        if images < LEAST_BY_IMAGE:
            findings.absent = f"needs {LEAST_BY_IMAGE} pictures"
        else:
            grams = np.stack([grams_of(self.collected(key).numpy()) for key in self.keys()])
            parts = cka_by_image(grams, grams, images)
            findings.add("cka_with_last", parts[:, :-1, -1], earlier)
            findings.arrays |= {"grams": grams, "gram_images": np.array(images)}
            findings.arrays |= dict(zip(("cka", "cka_low", "cka_high"), mean_interval(parts), strict=True))
        if images > NEIGHBOURS + 1:
            neighbours = np.stack([nearest(self.collected(key), NEIGHBOURS).numpy() for key in self.keys()])
            shared = [shared_neighbours(layer, neighbours[-1]) for layer in neighbours[:-1]]
            findings.add("mutual_knn_with_last", np.stack(shared, axis=1), earlier)
            findings.arrays["neighbours"] = neighbours
        return findings
