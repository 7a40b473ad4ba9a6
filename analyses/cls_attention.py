"""What the cls token and the patches attend to, and how much it changes them (Beyond [cls], arXiv 2412.03215)."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kamim_analysis.models._anatomy import Window
from kamim_analysis.shapes import Grid

from ._analysis import Findings, PerImage, Site, Subject
from ._directions import length

QUESTION = "Do the cls token and the patches select what they attend to, or average over the whole picture?"
HOW_TO_READ = (
    "Entropy 1: attention is spread evenly over all patches, as masked image models do; lower: few patches are "
    "selected, as joint-embedding models do; cls to cls near 1: cls hardly takes in the picture at all."
)
SOURCE = "Beyond [cls], arXiv 2412.03215"
COST = "inside the hooks, a logarithm of every entry of attention"
BY_DEFAULT = True
_OF_PATCHES = ("patch_to_itself", "patch_to_itself_among_patches", "patch_entropy")
_OF_CLS = ("cls_to_cls", "cls_to_patches", "cls_entropy", "patch_to_cls")
# entries of attention worked on at a time on a CPU, 16 MB: memory stays bounded and is asked for once a layer
_CHUNK = 2**22
# added to the stream's norm as the paper's code does, so that a token of zeros leaves a finite number
_EPSILON = 1e-6


def attention_entropy(
    attention: Float[Tensor, "b h q n"], reach: Int64[Tensor, " q"] | None = None
) -> Float[Tensor, "b h q"]:
    """Entropy of each query's attention over patches: [B, heads, Q, N] -> [B, heads, Q], as a fraction of uniform's.

    With p = A[q, k] / sum over k of A[q, k]: H = -sum over k of p log p, here H / log N; 1 is uniform, 0 a single one
    of several patches. In nats: times log N (4.97 for 12 x 12 patches). `attention` holds the columns of patches alone;
    rows need not sum to one. `reach`: how many patches each query can attend to, where that is not all N. Uniform are
    also a row whose patches receive nothing, as in `patch_attention`, and one that can reach a single patch. No
    gradient flows.

    Source: Beyond [cls], arXiv 2412.03215, whose entropies are in nats, which do not compare across image sizes.

    >>> attention_entropy(torch.tensor([[[[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.0, 0.0], [0.7, 0.0, 0.0, 0.0]]]]))
    tensor([[[1.0000, 0.5000, 0.0000]]])
    """
    rows = attention.detach().flatten(0, 1)
    total = rows.sum(-1, dtype=torch.float32)
    # of the rows as they are, S = total: -sum p log p = log S - (sum A log A) / S, so none is divided
    nats = total.log() - _sum_of_a_log_a(rows) / total
    most = torch.as_tensor(attention.shape[-1] if reach is None else reach, device=rows.device).log()
    fraction = torch.where((total == 0) | (most == 0), 1.0, nats / most)
    by_query: Tensor = fraction.unflatten(0, attention.shape[:2])
    return by_query


def _sum_of_a_log_a(rows: Float[Tensor, "bh q n"]) -> Float[Tensor, "bh q"]:
    """Sum over keys of A log A with 0 log 0 = 0, in float32, through one buffer."""
    count, queries, keys = rows.shape
    step = max(count if rows.is_cuda else _CHUNK // (queries * keys), 1)
    buffer = torch.empty(min(step, count), queries, keys, dtype=torch.float32, device=rows.device)
    # the least number above 0: its logarithm is finite, and times zero nothing
    least = torch.finfo(torch.float32).tiny * torch.finfo(torch.float32).eps
    sums = []
    for part in rows.split(step):
        whole = part.float()
        log = torch.clamp_min(whole, least, out=buffer[: len(part)]).log_()
        sums.append(log.mul_(whole).sum(-1))
    return torch.cat(sums)


@lru_cache(maxsize=64)
def window_reach(window: Window, grid: Grid) -> Int64[Tensor, " n"]:
    """How many patches each patch of a Swin can attend to: those of its window.

    Fewer where a shifted window holds patches from opposite edges of the picture, which Swin hides from each other.

    >>> window_reach(Window((2, 2), (1, 1)), Grid(4, 4)).view(4, 4)
    tensor([[1, 2, 2, 1],
            [2, 4, 4, 2],
            [2, 4, 4, 2],
            [1, 2, 2, 1]])
    """
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        rows, columns = (_reach_along(*axis) for axis in zip(grid, window.size, window.shift, strict=True))
        return (rows[:, None] * columns).flatten()


def _reach_along(length: int, size: int, shift: int) -> Int64[Tensor, " n"]:
    """Along one side of the picture: places that share both window and, in Swin's mask, region."""
    rolled = (torch.arange(length) - shift) % length
    padded = -(-length // size) * size
    region = (rolled >= padded - shift).long() if shift else torch.zeros_like(rolled)
    cell = 2 * (rolled // size) + region
    return (cell[:, None] == cell).sum(1)


def attention_statistics(
    attention: Float[Tensor, "b h t t"],
    prefix_tokens: int,
    *,
    has_cls: bool = True,
    reach: Int64[Tensor, " n"] | None = None,
) -> dict[str, Float[Tensor, "b h"]]:
    """Where attention of cls and of patches goes: [B, heads, T, T] over all tokens -> by name [B, heads], in [0, 1].

    With c the cls token, q and k patches, and means over the N patches q:

    - `patch_to_itself`: mean of A[q, q]; `patch_to_itself_among_patches`: the same, rows renormalised over patches
    - `patch_entropy`: mean of `attention_entropy` of the patches' rows over patches
    - `cls_to_cls`: A[c, c]; `cls_to_patches`: sum over k of A[c, k]; `cls_entropy`: entropy of c's row over patches
    - `patch_to_cls`: mean of A[q, c]

    The last two lines only for a model with a cls token, which is the first of the prefix tokens. The others
    (registers) are neither cls nor patches: no statistic counts what they attend to, and what goes to them is what
    `cls_to_cls` + `cls_to_patches` leave of one. `reach` as in `attention_entropy`.

    Source: Beyond [cls], arXiv 2412.03215. Its code divides `cls_to_patches` by N, and has A[c, c] / sum over k of
    A[c, k] besides, which follows from the two here.

    >>> found = attention_statistics(torch.full((1, 1, 5, 5), 0.2), prefix_tokens=1)
    >>> found["cls_to_patches"], found["patch_to_itself_among_patches"], found["patch_entropy"]
    (tensor([[0.8000]]), tensor([[0.2500]]), tensor([[1.]]))
    """
    patches = attention[:, :, prefix_tokens:, prefix_tokens:]
    itself = patches.diagonal(dim1=-2, dim2=-1).float()
    among = patches.sum(-1, dtype=torch.float32)
    found = {
        "patch_to_itself": itself.mean(-1),
        "patch_to_itself_among_patches": torch.where(among == 0, 1 / patches.shape[-1], itself / among).mean(-1),
        "patch_entropy": attention_entropy(patches, reach).mean(-1),
    }
    if has_cls and prefix_tokens:
        from_cls = attention[:, :, :1, prefix_tokens:]
        found |= {
            "cls_to_cls": attention[:, :, 0, 0].float(),
            "cls_to_patches": from_cls.sum(-1, dtype=torch.float32)[..., 0],
            "cls_entropy": attention_entropy(from_cls)[..., 0],
            "patch_to_cls": attention[:, :, prefix_tokens:, 0].mean(-1, dtype=torch.float32),
        }
    return found


def norm_ratio(added: Float[Tensor, "b t d"], stream: Float[Tensor, "b t d"]) -> Float[Tensor, "b t"]:
    """How much attention changes each token: |what it adds| / |the stream it is added to|, [B, T, C] -> [B, T].

    The stream is the residual one, the block's input. From 0; 1 where the addition is as long as the token itself.

    Source: Beyond [cls], arXiv 2412.03215, whose code divides the norm of the attention module's output by that of the
    block's input, in models without layer scale. With layer scale that output is not what is added, so `added` is
    taken behind it here: the same number where they measured, and the same meaning elsewhere.

    >>> norm_ratio(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 10.0]]]))
    tensor([[0.5000]])
    """
    return length(added) / (length(stream) + _EPSILON)


class ClsAttention(PerImage):
    """Attention statistics of each image, layer and head, and norm ratios of each image and layer.

    Norm ratios only for blocks that add attention to the stream and then the MLP, each normalised before (see
    `Block.mlp_norm`). In windowed attention entropies are fractions of uniform attention within reach, so 1 is uniform
    there too; attention of a patch to itself is that of a window's few patches.
    """

    SITES: ClassVar[frozenset[Site]] = frozenset({"attention", "attention_output", "after_attention"})

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._pending_added: dict[int, Tensor] = {}

    def layers_wanted(self, site: Site) -> Sequence[int]:
        """All layers, for norm ratios those that have a stream between attention and MLP."""
        blocks = self.subject.anatomy.blocks
        return [block.layer for block in blocks if site == "attention" or block.mlp_norm is not None]

    def keys(self) -> list[str]:
        """A state of [images, heads, statistics] for each layer, and one of [images, cls and patches]."""
        wanted: dict[str, Site] = {"attention": "attention", "ratio": "after_attention"}
        return [f"{name}{i}" for name, site in wanted.items() for i in self.layers_wanted(site)]

    def _has_cls(self, layer: int) -> bool:
        """Whether the block sees the cls token, which in some models joins behind the first blocks."""
        return self.subject.anatomy.has_cls and self.subject.block(layer).prefix_tokens > 0

    def _statistics(self, layer: int) -> tuple[str, ...]:
        return _OF_PATCHES + _OF_CLS if self._has_cls(layer) else _OF_PATCHES

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Reduce a layer's attention; hold what attention adds until the sum shows what it was added to."""
        block = self.subject.block(layer)
        if site == "attention":
            reach = None if block.window is None else window_reach(block.window, block.grid).to(values.device)
            found = attention_statistics(values, block.prefix_tokens, has_cls=self._has_cls(layer), reach=reach)
            self.put(f"attention{layer}", torch.stack([found[name] for name in self._statistics(layer)], dim=-1))
        elif site == "attention_output":
            self._pending_added[layer] = _layer_scaled(self.subject.encoder.get_submodule(block.path), values)
        elif site == "after_attention":
            added = self._pending_added.pop(layer)
            ratio = norm_ratio(added, values - added)
            patches = ratio[:, block.prefix_tokens :].mean(1, keepdim=True)
            self.put(f"ratio{layer}", torch.cat([ratio[:, :1], patches], 1) if self._has_cls(layer) else patches)

    def compute(self) -> Findings:
        """Rows by head of `attention_statistics`; rows `cls_norm_ratio` and `patch_norm_ratio`."""
        findings = Findings("cls_attention")
        for name in _OF_PATCHES + _OF_CLS:
            layers = [i for i in self.layers_wanted("attention") if name in self._statistics(i)]
            values = [self.values(f"attention{i}")[..., self._statistics(i).index(name)] for i in layers]
            findings.add_by_head(name, values, layers)
        for name, column in (("patch_norm_ratio", -1), ("cls_norm_ratio", 0)):
            layers = [i for i in self.layers_wanted("after_attention") if column or self._has_cls(i)]
            if layers:
                values = [self.values(f"ratio{i}")[:, column] for i in layers]
                findings.add(name, np.stack(values, axis=1), layers)
        return findings


def _layer_scaled(block: Any, output: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
    """An attention module's output as its block adds it: `ls1` of timm's ViTs, `gamma_1` of its BEiT and EVA."""
    if hasattr(block, "ls1"):
        scaled: Tensor = block.ls1(output)
        return scaled
    scale = getattr(block, "gamma_1", None)
    return output if scale is None else output * scale
