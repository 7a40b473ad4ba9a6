"""k-NN of 2,000 queries in 20,000 features of 384 channels: against faiss's search alone, and against scikit-learn.

Ours is all that a user waits for: features as they come, normalised, searched once for 200 neighbours, and the votes
of every k (1, 10, 20, 100, 200). faiss's time is that of its search alone, for the same 200 neighbours, in an index
that holds normalised features. scikit-learn is its brute-force KNeighborsClassifier with cosine distance and the same
weights at k = 20 alone, fitted before.
"""

import platform

import faiss
import numpy as np
import torch
from _timing import medians
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.nn.functional import normalize

from kamim_analysis.analyses.knn import KS, TEMPERATURE, knn_predicted

QUERIES, BANK, CHANNELS, CLASSES = 2000, 20000, 384, 100
ROUNDS = 9


def features(count: int, centres: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Features scattered around their classes' centres."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(centres), (count,), generator=draw)
    return centres[labels] + 2 * torch.randn(count, CHANNELS, generator=draw), labels


def weights(distance: np.ndarray) -> np.ndarray:
    """DINO's, of cosine distances."""
    return np.exp((1 - distance) / TEMPERATURE)


def main() -> None:
    """Print medians and ratios, and how often both classifiers agree."""
    centres = torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(0))
    (queries, _), (bank, labels) = features(QUERIES, centres, 1), features(BANK, centres, 2)
    index = faiss.IndexFlatIP(CHANNELS)
    index.add(normalize(bank).numpy())
    normalised = normalize(queries).numpy()
    scikit_learn = KNeighborsClassifier(20, weights=weights, algorithm="brute", metric="cosine")
    scikit_learn.fit(bank.numpy(), labels.numpy())
    seconds = medians(
        {
            "faiss": lambda: index.search(normalised, max(KS)),
            "ours": lambda: knn_predicted(queries, bank, labels, KS),
            "scikit-learn": lambda: scikit_learn.predict(queries.numpy()),
        },
        rounds=ROUNDS,
    )
    agree = (knn_predicted(queries, bank, labels, KS)[20].numpy() == scikit_learn.predict(queries.numpy())).mean()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {ROUNDS} rounds in turn")
    for name, median in seconds.items():
        print(f"{name:14s} {1000 * median:6.0f} ms")
    print(f"ours / faiss's search alone: {seconds['ours'] / seconds['faiss']:.2f}x (asked: at most 1.2x)")
    print(
        f"scikit-learn at k = 20 / ours at every k: {seconds['scikit-learn'] / seconds['ours']:.2f}x (asked: above 1x)"
    )
    print(f"same class at k = 20 as scikit-learn: {agree:.2%}")


if __name__ == "__main__":
    main()
