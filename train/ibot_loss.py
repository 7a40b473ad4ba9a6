"""iBOT's loss as functions of scores (arXiv 2111.07832, equations 2 and 3, and its public code).

Scores are the head's outputs, one for each of K prototypes. The teacher's are centred and sharpened into a distribution
that the student's distribution is to match.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def teacher_distribution(
    scores: Float[Tensor, "*b outputs"], centre: Float[Tensor, " outputs"], temperature: float
) -> Float[Tensor, "*b outputs"]:
    """softmax((scores - centre) / temperature): centring keeps one prototype from taking all, sharpening the uniform
    distribution.

    >>> teacher_distribution(torch.tensor([0.5, 0.1]), torch.tensor([0.4, 0.0]), temperature=0.04)
    tensor([0.5000, 0.5000])
    """
    return ((scores.float() - centre) / temperature).softmax(-1)


def cls_loss(
    student: Float[Tensor, "b views outputs"], teacher: Float[Tensor, "b globals outputs"], temperature: float
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over pictures and over pairs of a teacher's global crop and another crop.

    Mean over pictures and over q, v with v != q of -sum_k teacher_qk log softmax(student_v / temperature)_k.
    `student` holds scores, the global crops first and in the teacher's order, then the local ones; `teacher`
    distributions. Two global and n local crops make 2 (n + 1) pairs.
    """
    predicted = (student.float() / temperature).log_softmax(-1)
    with torch.autocast(student.device.type, enabled=False):
        cross_entropy = -teacher @ predicted.mT
    others = ~torch.eye(teacher.shape[1], student.shape[1], dtype=torch.bool, device=student.device)
    return (cross_entropy * others).sum() / (others.sum() * len(student))


def patch_loss(
    student: Float[Tensor, "hidden outputs"],
    teacher: Float[Tensor, "hidden outputs"],
    mask: Bool[Tensor, "b n"],
    places: Int[Tensor, " hidden"],
    temperature: float,
    weight: Float[Tensor, "b n"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy in nats of hidden patches: mean over those of an image, then over images.

    `student` holds the scores and `teacher` the distributions of the patches that `mask` hides, at the indices `places`
    of the flattened mask. An image that hides none counts as zero. Each patch's cross-entropy is multiplied by its
    `weight`; the weights are not normalised, so they raise the loss, as KAMIM's do; weights of one give the unweighted
    loss bit for bit.
    """
    cross_entropy = -(teacher * (student.float() / temperature).log_softmax(-1)).sum(-1)
    if weight is not None:
        cross_entropy = cross_entropy * weight.flatten()[places]
    share = 1 / mask.sum(1, keepdim=True).clamp(min=1)
    return (cross_entropy * share.expand_as(mask).flatten()[places]).sum() / len(mask)


def entropy_share(distribution: Float[Tensor, "*b outputs"]) -> Float[Tensor, "*b"]:
    """Entropy over log K: 0 where one prototype has all, 1 where all have alike.

    >>> entropy_share(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    tensor([0.5000, -0.0000])
    """
    nats: Tensor = -torch.special.xlogy(distribution, distribution).sum(-1)
    return nats / math.log(distribution.shape[-1])


def teacher_temperature(ends: tuple[float, float], epochs: int, epoch: int) -> float:
    """The teacher's temperature in an epoch: from the first to the second of `ends` in `epochs` equal steps.

    Epoch 0 has the first and epoch `epochs` - 1 the second, as in the public code; all later ones too.

    >>> [round(teacher_temperature((0.04, 0.07), 4, epoch), 3) for epoch in range(6)]
    [0.04, 0.05, 0.06, 0.07, 0.07, 0.07]
    """
    first, last = ends
    return last if epoch >= epochs else first + (last - first) * epoch / max(epochs - 1, 1)
