"""Whether latents have collapsed: how alike they are within an image and between images, and what room they fill.

Latents are [B, N, D]: of each image of a batch, N patches.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

# enough rows for a participation ratio of some hundred dimensions; all patches of a large batch would cost percents of
# the step
_ROWS = 1024


def cosine_within(latents: Float[Tensor, "b n d"]) -> Float[Tensor, " b"]:
    """How alike the patches of each image are: mean cosine over all pairs, each patch with itself included.

    |mean over patches of z / |z||^2. From 0, unit vectors that cancel, to 1, all patches alike (the trivial solution);
    1/N for orthogonal ones. Source: Latent MIM's similarity constraint and its public code (arXiv 2407.15837).

    >>> cosine_within(torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [3.0, 3.0]]]))
    tensor([0.5000, 1.0000])
    """
    return F.normalize(latents, dim=-1).mean(1).square().sum(-1)


def cosine_between(latents: Float[Tensor, "b n d"], *, everywhere: bool = False) -> Float[Tensor, ""]:
    """How alike images are: mean cosine over all pairs of patches of two different images of the batch.

    (|sum of m|^2 - sum of |m|^2) / (B (B - 1)), m an image's mean of z / |z|. From -1 to 1, 1 when every patch of every
    image has one latent (collapse); NaN for a batch of one image. With `everywhere`, which all processes then call, of
    the images of all of them.

    >>> cosine_between(torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 1.0]]]))        # one pair of three
    tensor(0.3333)
    """
    means = F.normalize(latents, dim=-1).mean(1)
    processes = _place()[1] if everywhere else 1
    sums = _summed(torch.cat([means.sum(0), means.square().sum()[None]]), processes)
    images = len(means) * processes
    return (sums[:-1].square().sum() - sums[-1]) / (images * (images - 1))


def participation_ratio(latents: Float[Tensor, "b n d"], *, everywhere: bool = False) -> Float[Tensor, ""]:
    """Number of directions that the latents fill, an effective rank without a decomposition.

    (sum of l)^2 / sum of l^2, l the eigenvalues of the second moments of z / |z| about the origin, over images and
    patches; equally 1 / mean over all pairs of cosine^2. From 1, all latents on a line through the origin, to
    min(latents, D), spread evenly. It is not centred: about the one point of latents that have collapsed there
    is noise of many directions. At most 1,024 latents are looked at, evenly spaced; with `everywhere`, which all
    processes then call, among those of all of them, the first process's first. Source: Gao et al., bioRxiv 214262,
    equation 5.

    >>> participation_ratio(torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 3.0], [1.0, 0.0]]]))
    tensor(2.)
    """
    units = F.normalize(latents.flatten(0, 1), dim=-1)
    rank, processes = _place() if everywhere else (0, 1)
    step = -(-len(units) * processes // _ROWS)
    rows = -(-len(units) * processes // step)
    units = units[-rank * len(units) % step :: step]
    gram = units @ units.T if rows < units.shape[1] and processes == 1 else _summed(units.T @ units, processes)
    return rows**2 / gram.square().sum()


def _place() -> tuple[int, int]:
    """Number of this process among those that train together, and how many they are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _summed(values: Tensor, processes: int) -> Tensor:
    if processes > 1:
        dist.all_reduce(values)
    return values


#: a cosine that no healthy run has come near; see `diagnosis`
ALIKE = 0.95


def diagnosis(between: float, within: float) -> str:
    """What mean cosines of target latents, between and within images, tell of a run; empty where nothing is wrong.

    Collapsed: whatever the picture, the targets are one latent, and predicting it is no task (the paper's first
    challenge). Trivial: each image's patches are alike, so that its mean would do (its second).
    """
    if between > ALIKE:
        return f"collapsed: the targets of all images are alike (mean cosine {between:.2f})"
    if within > ALIKE:
        return f"trivial: the targets of each image's patches are alike (mean cosine {within:.2f})"
    return ""


def diagnostics(name: str, latents: Float[Tensor, "b n d"]) -> dict[str, Float[Tensor, ""]]:
    """The three as numbers to log, without gradient. Those over pairs of images are of the images at hand: of one
    micro-batch of all processes, which all call this."""
    latents = latents.detach()
    ratio = participation_ratio(latents, everywhere=True)
    numbers = {"cosine_within": cosine_within(latents).mean(), "participation_ratio": ratio}
    if len(latents) * _place()[1] > 1:
        numbers["cosine_between"] = cosine_between(latents, everywhere=True)
    return {f"{name}_{key}": value for key, value in numbers.items()}
