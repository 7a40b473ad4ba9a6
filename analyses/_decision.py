"""What a k-NN and a linear probe decide for a picture, as differentiable functions of its image-level feature."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ._directions import unit
from .knn import TEMPERATURE

#: DINO's best k on ImageNet (arXiv 2104.14294, section 4.1)
NEIGHBOURS = 20
_FOLDS = 5
# pictures a probe is fitted to at most: beyond, it takes minutes and hardly changes
_FITTED = 4096


@runtime_checkable
class Decision(Protocol):
    """The class that a classifier of features chose for one picture, and how firmly it holds to it."""

    @property
    def predicted(self) -> int:
        """The class chosen for the unperturbed picture."""
        ...

    def log_odds(self, features: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """How much speaks for that class, in nats: smooth in the features, so that gradients tell of it."""
        ...

    def probability(self, features: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """What the classifier gives that class, in [0, 1]."""
        ...


def vote_shares(
    features: Float[Tensor, "b d"],
    bank: Float[Tensor, "m d"],
    bank_labels: Int64[Tensor, " m"],
    k: int,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, "b classes"]:
    """Each class's share of the vote of the k nearest neighbours: [B, C] and [M, C] -> [B, classes], rows sum to one.

    Neighbours vote for their class with weight exp(cosine similarity / temperature), as in `knn.knn_correct`, whose
    winner has the largest share. Source: Caron et al., arXiv 2104.14294, section 4.1.

    >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> vote_shares(torch.tensor([[1.0, 1.0]]), bank, torch.tensor([0, 1, 1]), k=2)
    tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    similarity = _cosines(features, bank)
    nearest = similarity.topk(k, dim=1)
    weights = (nearest.values / temperature).softmax(1)
    shares = weights.new_zeros(len(features), int(bank_labels.max()) + 1)
    return shares.scatter_add(1, bank_labels[nearest.indices], weights)


def _cosines(features: Float[Tensor, "b d"], bank: Float[Tensor, "m d"]) -> Float[Tensor, "b m"]:
    # float64: differences of the score over a path are small against the score
    return unit(features.double()) @ unit(bank.double()).T


@dataclass(frozen=True)
class NeighbourVote:
    """The vote of the nearest neighbours of one picture; `bank` must not hold the picture itself.

    `probability` is the share of DINO's vote, the neighbours searched anew for every feature, as a k-NN would. A share
    is of no use to gradients: it jumps where a neighbour is exchanged for another, and it is 1, and flat, wherever the
    neighbours are unanimous, which for good features they often are. `log_odds` therefore takes for the class the very
    votes that the picture's own neighbours give it, and against it the votes of all pictures of other classes, near or
    not: log sum over its neighbours of exp(cosine / temperature) less the same over the others. Only the neighbours in
    favour are fixed, any picture may come to oppose, and unanimous neighbours still have someone to be nearer than.
    """

    feature: Float[Tensor, " d"]
    """Of the unperturbed picture."""
    bank: Float[Tensor, "m d"]
    bank_labels: Int64[Tensor, " m"]
    k: int

    @cached_property
    def predicted(self) -> int:
        """The class with the largest share; of equal ones the smallest number."""
        return int(vote_shares(self.feature[None], self.bank, self.bank_labels, self.k).argmax())

    @cached_property
    def _neighbours(self) -> Int64[Tensor, " k"]:
        """Of the picture's k nearest neighbours those of the predicted class."""
        nearest = _cosines(self.feature[None], self.bank)[0].topk(self.k).indices
        return nearest[self.bank_labels[nearest] == self.predicted]

    def log_odds(self, features: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Log of the votes for the predicted class less that of all votes that other classes could cast."""
        votes = _cosines(features, self.bank) / TEMPERATURE
        return votes[:, self._neighbours].logsumexp(1) - votes[:, self.bank_labels != self.predicted].logsumexp(1)

    def probability(self, features: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """The predicted class's share of the vote, neighbours searched anew."""
        return vote_shares(features, self.bank, self.bank_labels, self.k)[:, self.predicted]


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression of frozen features, as weights that take the features as they are."""

    weight: Float[Tensor, "classes d"]
    bias: Float[Tensor, " classes"]
    classes: Int64[Tensor, " classes"]
    """The class of each logit."""

    def logits(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """The log of each class's probability, up to a constant."""
        return features.double() @ self.weight.T + self.bias


def fit_probe(features: Float[Tensor, "m d"], labels: Int64[Tensor, " m"]) -> LinearProbe:
    """scikit-learn's logistic regression (C = 1) of standardised features, the standardisation folded into the weights.

    Two classes have one logit in scikit-learn, of the second class; the first's is then 0.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    standardised = scaler.fit_transform(features.double().cpu().numpy())
    # a tight tolerance, so that rounding in the features cannot move the weights
    model = LogisticRegression(tol=1e-5, max_iter=10_000).fit(standardised, labels.cpu().numpy())
    weight = torch.from_numpy(model.coef_ / scaler.scale_)
    bias = torch.from_numpy(model.intercept_) - weight @ torch.from_numpy(scaler.mean_)
    if len(weight) == 1:
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    device = features.device
    return LinearProbe(weight.to(device), bias.to(device), torch.from_numpy(model.classes_).to(device))


@dataclass(frozen=True)
class ProbeDecision:
    """What a linear probe decides for one picture, which must not be among those it was fitted to."""

    feature: Float[Tensor, " d"]
    """Of the unperturbed picture."""
    probe: LinearProbe

    @cached_property
    def _row(self) -> int:
        return int(self.probe.logits(self.feature[None]).argmax())

    @property
    def predicted(self) -> int:
        """The class with the largest logit."""
        return int(self.probe.classes[self._row])

    def log_odds(self, features: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """log p / (1 - p): the logit of the predicted class less log sum exp of the others."""
        logits = self.probe.logits(features)
        others = torch.arange(logits.shape[1], device=logits.device) != self._row
        return logits[:, self._row] - logits[:, others].logsumexp(1)

    def probability(self, features: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """The softmax probability of the predicted class."""
        return self.log_odds(features).sigmoid()


@dataclass(frozen=True)
class Known:
    """Pictures with known classes that classifiers learn from: a bank, or the analysed pictures themselves."""

    features: Float[Tensor, "m d"]
    labels: Int64[Tensor, " m"]
    is_bank: bool

    def neighbour_votes(self, features: Float[Tensor, "b d"]) -> list[NeighbourVote]:
        """A vote for each of the first analysed pictures, itself left out; empty where all others are of one class."""
        votes = []
        for i, feature in enumerate(features):
            kept = self._but(i, len(self.labels))
            bank, labels = self.features[kept], self.labels[kept]
            if len(labels.unique()) < 2:
                return []
            votes.append(NeighbourVote(feature, bank, labels, min(NEIGHBOURS, len(labels))))
        return votes

    def probe_decisions(self, features: Float[Tensor, "b d"]) -> list[ProbeDecision]:
        """A probe's decision for each of the first analysed pictures, by a probe that was not fitted to it.

        With a bank there is one probe; else the analysed pictures are dealt into five folds, and each picture has the
        probe of the four other folds. Empty where a probe would see a single class.
        """
        folds = 1 if self.is_bank else min(_FOLDS, len(self.labels))
        probes = []
        for fold in range(min(folds, len(features))):
            kept = self._but(fold, folds)
            if len(self.labels[kept].unique()) < 2:
                return []
            probes.append(fit_probe(self.features[kept][:_FITTED], self.labels[kept][:_FITTED]))
        return [ProbeDecision(feature, probes[i % folds]) for i, feature in enumerate(features)]

    def _but(self, fold: int, folds: int) -> Int64[Tensor, " kept"]:
        """All pictures of a bank; of the analysed ones those of other folds."""
        numbers = torch.arange(len(self.labels), device=self.labels.device)
        return numbers if self.is_bank else numbers[numbers % folds != fold]
