"""How long patch tokens are, and which stand out (Vision Transformers Need Registers, arXiv 2309.16588)."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kamim_analysis.shapes import Grid

from ._analysis import Batch, Findings, PerImage, Site, Subject
from ._directions import length

QUESTION = "Are some patch tokens far longer than the others, and where do they lie?"
HOW_TO_READ = (
    "Outliers, patch tokens more than 3 times as long as the upper quartile of their picture, are the artefacts that "
    "registers cure; a share in the border above the share overall says that they gather there."
)
SOURCE = "Vision Transformers Need Registers, arXiv 2309.16588, figure 3"
COST = "inside the hooks"
BY_DEFAULT = True
OUTLIER_RATIO = 3.0
#: edges of the histogram: 40 bins for each power of ten (6% wide), from 0.001 to 100,000
EDGES = tuple(10 ** (i / 40) for i in range(-120, 201))
_QUANTILES = {"norm_p5": 0.05, "norm_median": 0.5, "norm_p75": 0.75, "norm_p95": 0.95, "norm_p99": 0.99}
_OF_PATCHES = ("norm_mean", *_QUANTILES, "outlier_share", "outlier_share_border")


def token_norms(tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t"]:
    """L2 norm of each token over its channels: [B, T, C] -> [B, T], in float32 whatever the tokens are in.

    Of raw tokens: the final norm gives all tokens about one length, and with it the artefacts seem gone (which is what
    `get_intermediate_layers` of DINOv2 hands out unless told otherwise; its issue 373).

    Source: Vision Transformers Need Registers, arXiv 2309.16588, section 2.

    >>> token_norms(torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]))
    tensor([[5., 2.]])
    """
    return length(tokens)


def outliers(norms: Float[Tensor, "b n"], ratio: float = OUTLIER_RATIO) -> Bool[Tensor, "b n"]:
    """Which patch tokens are more than `ratio` times as long as the upper quartile of the patches of their image.

    The paper cuts the histogram of DINOv2-g's last layer at 150, between its two humps; the outliers, around 2%, are
    about ten times as long as the others. Norms of other models, sizes and layers are on other scales (medians from 1
    to 46 within DINOv2-S), so the cut is relative here. Three lies midway between one and ten on a logarithmic scale.
    The quartile stays with the usual tokens until a quarter of all are outliers. The median would until half of them
    are, but a picture mostly of one colour has a small median in models that change their embedding little: three
    times the median marked patches in 13 of 790 pictures with a random ViT of layer scale, where none is an artefact,
    and three times the quartile in none; nor did it with a random ViT-S, SimMIM or KAMIM behind the embedding.

    Source: after Vision Transformers Need Registers, arXiv 2309.16588, section 2 and figure 3.

    >>> outliers(torch.tensor([[1.0, 1.1, 0.9, 1.0, 2.9, 0.8, 1.2, 1.0, 10.0]])).int()
    tensor([[0, 0, 0, 0, 0, 0, 0, 0, 1]], dtype=torch.int32)
    """
    return norms > ratio * norms.quantile(0.75, dim=-1, keepdim=True)


def border(grid: tuple[int, int]) -> Bool[Tensor, " n"]:
    """Which patches, in row-major order, lie in the outermost ring of the grid.

    >>> border((3, 4)).view(3, 4).int()
    tensor([[1, 1, 1, 1],
            [1, 0, 0, 1],
            [1, 1, 1, 1]], dtype=torch.int32)
    """
    ring = torch.ones(grid, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    return ring.flatten()


def norm_statistics(norms: Float[Tensor, "b n"], grid: tuple[int, int]) -> dict[str, Float[Tensor, " b"]]:
    """Each image's norms of patch tokens in a few numbers: [B, N] -> by name [B].

    `norm_mean`, `norm_median` and percentiles `norm_p5`, `norm_p75`, `norm_p95`, `norm_p99` (linear between two
    tokens), in the unit of the tokens; `outlier_share` of the patches and `outlier_share_border` of those in the border
    ring, both from 0 to 1. Outliers that lie anywhere alike make the two equal; where the first is larger, the inside
    has more of them.

    >>> found = norm_statistics(torch.tensor([[9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]), (3, 3))
    >>> found["norm_median"], found["outlier_share"], found["outlier_share_border"]
    (tensor([1.]), tensor([0.1111]), tensor([0.1250]))
    """
    levels = norms.quantile(norms.new_tensor(tuple(_QUANTILES.values())), dim=1)
    high = outliers(norms).float()
    return {
        "norm_mean": norms.mean(1),
        **dict(zip(_QUANTILES, levels, strict=True)),
        "outlier_share": high.mean(1),
        "outlier_share_border": high[:, border(grid).to(high.device)].mean(1),
    }


def norm_histogram(norms: Float[Tensor, "b n"]) -> Int64[Tensor, " f"]:
    """How many tokens of a batch fall between each two of `EDGES`, 320 counts; the outermost bins take what is beyond.

    >>> counts = norm_histogram(torch.tensor([[0.0, 1.05, 1e9]]))
    >>> counts[0], counts[120], counts[-1]
    (tensor(1), tensor(1), tensor(1))
    """
    inner = norms.new_tensor(EDGES[1:-1])
    return torch.bucketize(norms.flatten().contiguous(), inner, right=True).bincount(minlength=len(EDGES) - 1)


class TokenNorms(PerImage):
    """Norms of each image and layer, from the embedding on, before the final norm; counts over all images besides.

    The cls token and the others before the patches (registers, a distillation token) have numbers of their own.
    """

    SITES: ClassVar[frozenset[Site]] = frozenset({"tokens"})
    LEAST_LAYER: ClassVar[int] = 0

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._pending_counts: dict[str, Tensor] = {}
        # sums over images, one row for each process: they merge by concatenation like all states
        self.add_lists(*(f"{name}{i}" for name in ("histogram", "places") for i in range(subject.layers + 1)))

    def _statistics(self, layer: int) -> tuple[str, ...]:
        prefix, cls = self.subject.block(layer).prefix_tokens, self.subject.anatomy.has_cls
        return _OF_PATCHES + ("cls_norm",) * (prefix > 0 and cls) + ("register_norm",) * (prefix > cls)

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Reduce a layer's tokens."""
        if site not in self.SITES:
            return
        block, cls = self.subject.block(layer), int(self.subject.anatomy.has_cls)
        norms = token_norms(values)
        patches = norms[:, block.prefix_tokens :]
        found = norm_statistics(patches, block.grid)
        found |= {"cls_norm": norms[:, 0], "register_norm": norms[:, cls : block.prefix_tokens].mean(1)}
        self.put(f"layer{layer}", torch.stack([found[name] for name in self._statistics(layer)], dim=1))
        self._pending_counts[f"histogram{layer}"] = norm_histogram(patches)
        self._pending_counts[f"places{layer}"] = outliers(patches).sum(0)

    def update(self, batch: Batch) -> None:
        """Close a batch."""
        super().update(batch)
        for name, counts in self._pending_counts.items():
            (total,) = getattr(self, name) or [0]
            setattr(self, name, [total + counts[None]])
        self._pending_counts = {}

    def compute(self) -> Findings:
        """Rows of `norm_statistics`, `cls_norm`, `register_norm` (mean over them); arrays over all images.

        `norm_edges` [321] and `norm_histogram` [layers + 1, 320], counts of patch tokens; for each layer
        `norm_outliers{layer}` [rows, columns], the share of images with an outlier at that place.
        """
        findings = Findings("token_norms")
        layers = range(self.subject.layers + 1)
        values = [self.values(key) for key in self.keys()]
        for name in (*_OF_PATCHES, "cls_norm", "register_norm"):
            having = [i for i in layers if name in self._statistics(i)]
            if having:
                columns = [values[i][:, self._statistics(i).index(name)] for i in having]
                findings.add(name, np.stack(columns, axis=1), having)
        counts = [self.collected(f"histogram{i}").sum(0).numpy() for i in layers]
        findings.arrays = {"norm_edges": np.array(EDGES), "norm_histogram": np.stack(counts)}
        for i in layers:
            grid = Grid(*self.subject.block(i).grid)
            share = self.collected(f"places{i}").sum(0).numpy().reshape(grid) / len(values[i])
            findings.arrays[f"norm_outliers{i}"] = share.astype(np.float32)
        return findings
