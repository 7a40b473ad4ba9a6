"""Heads on frozen tokens, many side by side: pooling, standardised feature, linear classifier.

Every head of a group sees the same batch, so that the tokens, which are large, are read once for all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kamim_analysis.poolings._pooling import QueryPooling

Inputs = Callable[[Int64[Tensor, " b"]], Tensor]
"""Frozen features of the pictures at some positions: patch tokens [b, N, C], or pooled already [b, C]."""
# pictures whose tokens are in memory at once where nothing is learned from them
_AT_ONCE = 128
# of the batch normalisation that the paper's code has between pooling and classifier
_EPSILON = 1e-6
# a channel whose deviation is below this share of its size holds rounding only
_ROUNDING = 1e-6


class Scale(NamedTuple):
    """By which the channels of frozen features are standardised."""

    mean: Float[Tensor, " d"]
    deviation: Float[Tensor, " d"]
    """Infinite for a channel that is constant, which then counts for nothing."""


def in_batches(inputs: Inputs, positions: Int64[Tensor, " i"]) -> Iterator[tuple[Int64[Tensor, " b"], Tensor]]:
    """`positions` in parts, in order, each with its features."""
    return ((some, inputs(some)) for some in positions.split(_AT_ONCE))


def scale_of(inputs: Inputs, positions: Int64[Tensor, " i"]) -> Scale:
    """Mean and standard deviation of each channel over pictures and, of patch tokens, patches; summed in float64."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for _, batch in in_batches(inputs, positions):
        rows = batch.flatten(0, -2).double()
        count += len(rows)
        total, squares = total.to(rows) + rows.sum(0), squares.to(rows) + rows.square().sum(0)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return Scale(mean.float(), deviation.masked_fill(deviation <= _ROUNDING * mean.abs(), torch.inf).float())


class Head(nn.Module):
    """A learned pooling, or none where features are pooled already, and a linear classifier."""

    def __init__(self, width: int, classes: int, pooling: QueryPooling | None) -> None:
        super().__init__()
        self.pooling = pooling
        self.classifier = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)


def pooled(
    heads: Sequence[Head], inputs: Float[Tensor, "b ..."], scale: Scale
) -> tuple[Float[Tensor, "head b d"], Float[Tensor, "b head q n"] | None]:
    """What each head's classifier is given, before its standardisation, and the weights of patches in it.

    A learned pooling is applied to standardised tokens z = (x - mean) / deviation. The tokens themselves stay as they
    are: softmax(z w) = softmax(x (w / deviation)), since the mean moves all scores alike, and the sum of z by weights
    that sum to one is the standardised sum of x.
    """
    if heads[0].pooling is None:
        return ((inputs - scale.mean) / scale.deviation).expand(len(heads), -1, -1), None
    poolings = [head.pooling for head in heads if head.pooling is not None]
    rows = torch.stack([pooling.query_rows() for pooling in poolings])
    scores = nn.functional.linear(inputs, rows.flatten(0, 1) / scale.deviation)
    weights = scores.mT.softmax(-1)
    gathered = (weights @ inputs - scale.mean) / scale.deviation
    by_head = gathered.unflatten(1, rows.shape[:2])
    features = [pooling.combined(by_head[:, i]) for i, pooling in enumerate(poolings)]
    return torch.stack(features), weights.unflatten(1, rows.shape[:2])


def batch_logits(
    heads: Sequence[Head], inputs: Float[Tensor, "b ..."], scale: Scale, counts: Float[Tensor, "head b"]
) -> Float[Tensor, "head b classes"]:
    """Logits in training: features are standardised over the batch, as by batch normalisation without weights.

    `counts`: 1 for the pictures of the batch that a head learns from, else 0.
    """
    features, _ = pooled(heads, inputs, scale)
    share = (counts / counts.sum(1, keepdim=True).clamp(min=1))[:, None]
    mean = share @ features
    variance = share @ (features - mean).square()
    return _classified(heads, (features - mean) / (variance + _EPSILON).sqrt())


def _classified(heads: Sequence[Head], features: Float[Tensor, "head b d"]) -> Float[Tensor, "head b classes"]:
    weight = torch.stack([head.classifier.weight for head in heads])
    bias = torch.stack([head.classifier.bias for head in heads])
    return torch.baddbmm(bias[:, None], features, weight.mT)


@dataclass(frozen=True)
class TrainedHeads:
    """Heads whose features are standardised by what they are over the pictures that were learned from."""

    heads: Sequence[Head]
    scale: Scale
    mean: Float[Tensor, "head 1 d"]
    deviation: Float[Tensor, "head 1 d"]

    def only(self, chosen: Sequence[int]) -> "TrainedHeads":
        """Some of the heads."""
        some = list(chosen)
        return TrainedHeads([self.heads[i] for i in some], self.scale, self.mean[some], self.deviation[some])

    def judge(
        self, inputs: Float[Tensor, "b ..."]
    ) -> tuple[Float[Tensor, "head b classes"], Float[Tensor, "b head q n"] | None]:
        """Log-probabilities of the classes, and the weights of patches where the heads pool them."""
        features, weights = pooled(self.heads, inputs, self.scale)
        logits = _classified(self.heads, (features - self.mean) / self.deviation)
        return logits.log_softmax(-1), weights


@torch.no_grad()
def settled(
    heads: Sequence[Head], inputs: Inputs, positions: Int64[Tensor, " m"], scale: Scale, counts: Float[Tensor, "head i"]
) -> TrainedHeads:
    """Fix the standardisation of features at mean and deviation over the pictures that each head learned from: exact,
    no average that runs along with training.
    """
    total = squares = torch.zeros(())
    for some, batch in in_batches(inputs, positions):
        features = pooled(heads, batch, scale)[0].double()
        share = (counts[:, some] / counts[:, positions].sum(1, keepdim=True))[:, None].to(features)
        total, squares = total.to(share) + share @ features, squares.to(share) + share @ features.square()
    variance = (squares - total.square()).clamp(min=0)
    return TrainedHeads(heads, scale, total.float(), (variance + _EPSILON).sqrt().float())
