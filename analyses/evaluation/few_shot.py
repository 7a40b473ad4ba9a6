"""k-NN that learns from v pictures of each class alone, drawn anew for each of several seeds (AttMask's table)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from kamim_analysis.bootstrap import crossed_interval
from kamim_analysis.errors import UserError
from kamim_analysis.results import Row
from kamim_analysis.sampling import ChosenPictures

from ..knn import KS, TEMPERATURE, knn_correct


def shots(labels: Int64[Tensor, " i"], most: int, seed: int) -> Int64[Tensor, "classes v"]:
    """Positions of `most` pictures of each class in the order in which they are drawn: the first v are the draw of v.

    So a seed's pictures of a smaller v are among those of a larger one. What is drawn depends on the labels and the
    seed alone: every model, layer and pooling learns from the same pictures. (AttMask's public instructions take five
    stretches of each class in the order of file names instead, and k = 1 for v = 1, else k = 20.)

    >>> shots(torch.tensor([0, 1, 0, 1, 0]), 2, seed=0).shape
    torch.Size([2, 2])
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    return torch.stack([order[labels[order] == label][:most] for label in labels.unique()])


def few_shot_correct(
    queries: Float[Tensor, "q d"],
    query_labels: Int64[Tensor, " q"],
    bank: tuple[Float[Tensor, "m d"], Int64[Tensor, " m"]] | None,
    drawn: Int64[Tensor, "classes v"],
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
) -> Float[ndarray, "q k"]:
    """Whether weighted k-NN among the drawn pictures classifies each query rightly (1 or 0), a column for each k.

    `drawn`: positions in the bank; without a bank in the queries themselves, of which those drawn are not judged: NaN.
    With v = 1 each neighbour votes for a class of its own, so that every k elects the nearest.
    """
    chosen = drawn.flatten()
    judged = torch.ones(len(queries), dtype=torch.bool)
    if bank is None:
        judged[chosen] = False
        bank = queries, query_labels
    correct = knn_correct(queries[judged], query_labels[judged], bank[0][chosen], bank[1][chosen], ks, temperature)
    right = np.full((len(queries), len(ks)), np.nan)
    right[judged.numpy()] = torch.stack([correct[k] for k in ks], dim=1).cpu().numpy()
    return right


def fitting_ks(ks: Sequence[int], bank: int) -> list[int]:
    """Those that were asked for, else those of the usual ones that a bank allows.

    Raises UserError for one that was asked for and exceeds the bank.
    """
    if ks and max(ks) > bank:
        raise UserError(f"k = {max(ks)} exceeds the {bank} images that can be neighbours; choose a smaller k")
    return sorted(ks) or [k for k in KS if k <= bank]


def few_shot_rows(
    right: Float[ndarray, "seeds q k"], names: Sequence[str], layer: int, protocol: str
) -> tuple[list[Row], dict[str, Float[ndarray, " judged"]]]:
    """Rows of one v and, for the comparison of models, each picture's share of seeds in which it was right.

    `top1_{name}`: mean over seeds and pictures with the interval over both (`crossed_interval`), in [0, 1];
    `seed_deviation_{name}`: standard deviation of the seeds' accuracies (n - 1), none for a single seed. `names`: of
    the last axis.
    """
    # a picture that was drawn in every seed was never judged
    judged = ~np.isnan(right).all(axis=(0, 2))
    # of a single seed a picture is right or wrong
    mean, low, high = crossed_interval(right[:, judged] > 0 if len(right) == 1 else right)
    by_seed = np.nanmean(right, axis=1)
    deviation = by_seed.std(0, ddof=1) if len(right) > 1 else np.full(len(names), np.nan)
    rows, samples = [], {}
    for i, name in enumerate(names):
        of_name = (float(mean[i]), float(low[i]), float(high[i]), int(judged.sum()), protocol)
        rows.append(Row("few_shot", layer, None, f"top1_{name}", *of_name))
        spread = (float(deviation[i]), np.nan, np.nan, int(judged.sum()), protocol)
        rows.append(Row("few_shot", layer, None, f"seed_deviation_{name}", *spread))
        samples[f"top1_{name}"] = np.nanmean(right[:, judged, i], axis=0)
    return rows, samples


def check_shots(data: ChosenPictures, shots_of_class: Sequence[int], ks: Sequence[int]) -> None:
    """`check_labels` of data whose labels are known before they are read."""
    pictures, indices = (data.test, data.test_indices) if data.bank is None else (data.bank, data.bank_indices)
    if shots_of_class and pictures.labels is not None:
        labels = torch.from_numpy(np.asarray(pictures.labels)[indices])
        check_labels(labels, pictures.classes, shots_of_class, ks, left=data.bank is None)


def check_labels(
    labels: Int64[Tensor, " i"], names: Sequence[str], shots_of_class: Sequence[int], ks: Sequence[int], *, left: bool
) -> None:
    """Raise UserError unless every class has as many pictures as the largest v, and every bank as many as the ks.

    `left`: one more of each class must be left to be judged. `names`: of the classes.
    """
    most = max(shots_of_class)
    counts: Mapping[int, int] = dict(zip(*(part.tolist() for part in labels.unique(return_counts=True)), strict=True))
    label, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < most + left:
        name = names[label] if names else label
        held = f"class {name!r} has {fewest} pictures"
        raise UserError(
            f"{held}, fewer than the v = {most} of --few_shot; choose smaller numbers"
            if fewest < most
            else f"{held}: v = {most} of --few_shot would leave none to be judged; choose smaller numbers"
        )
    fitting_ks(ks, min(shots_of_class) * len(counts))
