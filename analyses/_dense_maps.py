"""Patch tokens as pictures: their principal components as colours, and their clusters as segments."""

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ._directions import unit

#: clusters of one picture's patches; see `segments`
SEGMENTS = 4
# ends of the colour scale, as shares of all tokens: what lies beyond is shown as the end
_SCALE = (0.01, 0.99)
# components with less than this share of the variance are rounding
_LEAST_VARIANCE = 1e-9
_GRAY = 128


def principal_colours(
    tokens: Float[Tensor, "i n d"], grid: tuple[int, int]
) -> tuple[UInt8[Tensor, "i gy gx 3"], Float[Tensor, " 3"]]:
    """The first three principal components of all pictures' tokens together as red, green and blue.

    [images, N, C], patches in row-major order -> maps uint8 [images, rows, columns, 3], and each component's share of
    the variance about the mean of all tokens, in [0, 1]. One fit and one scale for all pictures, so one colour means
    one direction in all of them. The scale of a component goes from its 1st to its 99th percentile, so that no single
    token sets it. Its sign, which a principal component leaves open, is such that its third moment is not negative:
    the rarer end is the bright one. That rule knows no channels and no places, so it is the same for every model.
    What does not vary is mid-gray.

    The first component is no mask of the foreground here. DINOv2's figures threshold it, at a value and with a sign
    chosen by eye for a set of pictures; with other models it can be a gradient over the picture.

    Source: Oquab et al., DINOv2, arXiv 2304.07193, section 7.5.

    >>> colours, explained = principal_colours(torch.tensor([[[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [3.0, 1.0]]]), (2, 2))
    >>> colours[0, ..., 0]                   # red: the first component, whose rarer end is bright
    tensor([[  0,   0],
            [  0, 255]], dtype=torch.uint8)
    >>> explained
    tensor([1., 0., 0.])
    """
    flat = tokens.flatten(0, 1).double()
    centred = flat - flat.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    # of constant tokens only rounding is left, however it is shared out
    whole = variances.clamp_min(0).sum()
    real = whole > 1e-12 * flat.square().sum()
    explained = flat.new_zeros(3)
    maps = torch.full((len(flat), 3), _GRAY, dtype=torch.uint8, device=flat.device)
    for i, which in enumerate(reversed(range(max(len(variances) - 3, 0), len(variances)))):
        share = variances[which] / whole
        if real and share > _LEAST_VARIANCE:
            explained[i], maps[:, i] = share, _brightness(centred @ directions[:, which])
    return maps.view(len(tokens), *grid, 3), explained.float()


def _brightness(scores: Float[Tensor, " t"]) -> UInt8[Tensor, " t"]:
    """A component as 0 to 255, the longer tail bright."""
    if scores.pow(3).sum() < 0:
        scores = -scores
    low, high = scores.quantile(scores.new_tensor(_SCALE))
    # where all but a few tokens are alike the percentiles coincide
    if high <= low:
        low, high = scores.aminmax()
    shown: UInt8[Tensor, " t"] = ((scores - low) / (high - low) * 255).round().clamp(0, 255).byte()
    return shown


def segments(tokens: Float[Tensor, "n d"], k: int = SEGMENTS) -> Int64[Tensor, " n"]:
    """Clusters of one picture's patches: [N, C] -> [N], numbered by size, the largest 0.

    k-means on tokens of length one, so by direction, of scikit-learn with a fixed seed and four starts. `k` is the same
    for every picture and model, since silhouette and coherence change with it. The k of the greatest silhouette was
    tried: it is 2 for most pictures, and differs between models. Fewer than k clusters where there are fewer than 2 k
    patches, or fewer different tokens than that.

    >>> segments(torch.tensor([[0.0, 1.0], [3.0, 0.1], [2.0, 0.0], [0.1, 2.0], [0.0, 5.0]]), 2)
    tensor([0, 1, 1, 0, 0])
    """
    from sklearn.cluster import KMeans

    directions = unit(tokens.float()).cpu().numpy()
    k = min(k, max(len(directions) // 2, 1), len(np.unique(directions.round(5), axis=0)))
    clusters = KMeans(k, n_init=4, random_state=0).fit(directions).labels_
    found, first, counts = np.unique(clusters, return_index=True, return_counts=True)
    rank = np.empty(k, np.int64)
    rank[found[np.lexsort((first, -counts))]] = np.arange(len(found))
    return torch.from_numpy(rank[clusters])


def silhouette(tokens: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> float:
    """How well a picture's segments are told apart, in [-1, 1]; 0 for one segment.

    Mean over patches of (b - a) / max(a, b): a the mean distance of a patch's unit token from the others of its
    segment, b from those of the nearest other segment; 0 for a patch that is a segment by itself. Near 1: segments
    are far apart and tight; near 0: the tokens are a continuum that was cut somewhere. It tells how distinct segments
    are and not whether they are objects: untrained encoders pass colours on, which cluster as well in a plain picture.

    Source: Rousseeuw, J. Comput. Appl. Math. 20 (1987), 53-65.

    >>> silhouette(torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]))
    1.0
    """
    directions = unit(tokens.double())
    member = torch.nn.functional.one_hot(labels.to(directions.device)).double()
    counts = member.sum(0)
    if len(counts) < 2:
        return 0.0
    sums = (2 - 2 * directions @ directions.T).clamp_min(0).fill_diagonal_(0).sqrt() @ member
    own_count = counts[labels]
    own = (sums * member).sum(1) / (own_count - 1).clamp_min(1)
    nearest = (sums / counts).masked_fill(member.bool(), torch.inf).amin(1)
    score = (nearest - own) / torch.maximum(nearest, own).clamp_min(1e-12)
    return float(score.where(own_count > 1, 0).mean())


def coherence(labels: Int64[Tensor, " n"], grid: tuple[int, int]) -> float:
    """Whether segments are regions of the picture: at most 1; 0 as if patches were shuffled, or for one segment.

    (s - e) / (1 - e): s the share of pairs of neighbouring patches (above, below, left, right) in one segment, e what
    shuffling the patches gives on average, the sum over segments of n (n - 1) / (N (N - 1)).

    >>> halves = torch.tensor([[0, 0, 1, 1]] * 4).flatten()
    >>> checkerboard = torch.tensor([0, 1, 1, 0])
    >>> round(coherence(halves, (4, 4)), 4), round(coherence(checkerboard, (2, 2)), 4)
    (0.6875, -0.5)
    """
    places = labels.view(grid)
    pairs = torch.cat([(places[1:] == places[:-1]).flatten(), (places[:, 1:] == places[:, :-1]).flatten()])
    counts = labels.bincount().double()
    patches = len(labels)
    if len(counts) < 2:
        return 0.0
    expected = float((counts * (counts - 1)).sum()) / (patches * (patches - 1))
    return (float(pairs.double().mean()) - expected) / (1 - expected)
