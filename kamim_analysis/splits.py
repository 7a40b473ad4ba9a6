"""Parts of labelled pictures to learn from, to choose on and to judge: by class, drawn once for a seed."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from .errors import UserError


def stratified(
    labels: Int64[Tensor, " i"], shares: Sequence[float], seed: int, names: Sequence[str] = ()
) -> list[Int64[Tensor, " part"]]:
    """Positions of the pictures of each part, ascending; parts are disjoint and together hold every picture.

    Each part has of each class its share of the pictures, rounded, and at least one. Which pictures these are depends
    on the seed, not on the classes' numbers. `names`: of the classes, for the error.

    Raises UserError for a class with fewer pictures than there are parts, and for a single class.

    >>> [part.tolist() for part in stratified(torch.tensor([0, 0, 0, 0, 1, 1]), (0.75, 0.25), seed=1)]
    [[0, 1, 2, 5], [3, 4]]
    """
    classes = labels.unique().tolist()
    if len(classes) < 2:
        raise UserError("the pictures have a single class, and to tell classes apart takes two")
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in classes:
        of_class = drawn[labels[drawn] == label]
        if len(of_class) < len(shares):
            name, plural = names[label] if names else label, "s" * (len(of_class) != 1)
            raise UserError(
                f"class {name!r} has {len(of_class)} picture{plural}, "
                f"and a split into {len(shares)} parts takes at least {len(shares)} of each class"
            )
        for part, some in zip(parts, of_class.split(_counts(len(of_class), shares)), strict=True):
            part.append(some)
    return [torch.cat(part).sort().values for part in parts]


def _counts(pictures: int, shares: Sequence[float]) -> list[int]:
    """Pictures of a class for each part: one for each, the others where the share is missed by most.

    >>> _counts(10, (0.64, 0.16, 0.2)), _counts(3, (0.9, 0.05, 0.05))
    ([6, 2, 2], [1, 1, 1])
    """
    counts = [1] * len(shares)
    for _ in range(pictures - len(shares)):
        missing = [share * pictures - count for share, count in zip(shares, counts, strict=True)]
        counts[missing.index(max(missing))] += 1
    return counts
