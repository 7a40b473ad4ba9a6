"""Selective aggregation: linear probes of every pooling of the same frozen tokens (Beyond [cls], arXiv 2412.03215).

What the paper does between pooling and classifier is told by its public code, not by its abstract: features
standardised over the batch, then one linear layer, trained by LARS (0.1 x batch / 256, no weight decay, 90 epochs) on
random crops, the best test accuracy of all epochs reported. Here: AdamW on features of whole pictures, the learning
rate chosen for each pooling on held-out training pictures, the test pictures judged once.

Tokens are standardised for each channel before a learned pooling: its scores are linear in them, and the raw features
of masked-image models differ in scale by orders of magnitude between models and layers, so that one learning rate would
mean another sharpness in each. The other poolings are the same with and without.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from kamim_analysis import plugins
from kamim_analysis.bootstrap import crossed_interval
from kamim_analysis.extraction import CLS_WEIGHTS, PATCHES, POOLINGS, Features, Rows, pooling_class
from kamim_analysis.poolings._pooling import LayerTokens, Pooling, QueryPooling
from kamim_analysis.results import Row, Samples
from kamim_analysis.runtime import best_device
from kamim_analysis.shapes import Grid

from ..cls_attention import attention_entropy
from .aggregation_heads import Head
from .aggregation_training import Outcome, Pictures, Recipe, evaluate

ANALYSIS = "aggregation"
#: what the gains are over
BASELINES = ("mean", "cls")
_AT_ONCE = 128


def pooling_names() -> list[str]:
    """All poolings: the two baselines, the others that learn nothing, those that learn."""
    names = plugins.names(POOLINGS)
    return sorted(names, key=lambda name: (pooling_class(name).LEARNED, name not in BASELINES, name != "mean", name))


@dataclass(frozen=True)
class Part:
    """Pictures to learn from or to judge: frozen features of one layer, and the positions of those that are meant."""

    features: Features
    positions: Int64[Tensor, " m"]
    layer: int
    grid: Grid

    @property
    def labels(self) -> Int64[Tensor, " m"]:
        """Classes of the pictures that are meant."""
        return self.features.labels[self.positions]

    def offers(self, name: str) -> bool:
        """Whether the layer's tokens can be pooled so."""
        pooling = pooling_class(name)
        return (self._holds("cls") or not pooling.NEEDS_CLS) and (
            self._holds(CLS_WEIGHTS) or not pooling.NEEDS_ATTENTION
        )

    def pictures(self) -> Pictures:
        """As a learned pooling is given them."""
        return Pictures(self.patches, self.features.labels, self.positions)

    def rows(self, key: str) -> Rows:
        """What is kept of the layer under a name."""
        return self.features.rows((self.layer, key))

    def tokens(self, positions: Int64[Tensor, " b"]) -> LayerTokens:
        """The tokens of a few pictures, on the device."""
        cls, attention = (
            self.rows(key)[positions].to(best_device()) if self._holds(key) else None for key in ("cls", CLS_WEIGHTS)
        )
        return LayerTokens(self.patches(positions), self.grid, cls, attention)

    def patches(self, positions: Int64[Tensor, " b"]) -> Float[Tensor, "b n d"]:
        """The patch tokens of a few pictures, on the device."""
        return self.rows(PATCHES)[positions].to(best_device())

    def _holds(self, key: str) -> bool:
        return (self.layer, key) in self.features.by_key


def pool_all(
    part: Part, names: Sequence[str]
) -> tuple[dict[str, Float[Tensor, "m d"]], dict[str, Float[Tensor, "1 m"]]]:
    """Features by ways of pooling that learn nothing, and by those that weight patches the entropy of the weights.

    Each batch of tokens is read once.
    """
    poolings: dict[str, Pooling] = {name: pooling_class(name)(part.rows(PATCHES).shape[-1]) for name in names}
    features: dict[str, list[Tensor]] = {name: [] for name in names}
    entropies: dict[str, list[Tensor]] = {}
    for some in part.positions.split(_AT_ONCE):
        tokens = part.tokens(some)
        for name, pooling in poolings.items():
            features[name].append(pooling(tokens))
            weights = pooling.weights(tokens)
            if weights is not None:
                entropies.setdefault(name, []).append(attention_entropy(weights[:, None])[..., 0].T.cpu())
    return (
        {name: torch.cat(parts) for name, parts in features.items()},
        {name: torch.cat(parts, 1) for name, parts in entropies.items()},
    )


def aggregate(
    learn: Part, test: Part, recipe: Recipe, seeds: Sequence[int], queries: int | None = None
) -> dict[str, Outcome]:
    """Probe every pooling that a layer offers, by name.

    `queries`: of attentive pooling; None: 8, or the most below that divide the channels.
    """
    offered = [name for name in pooling_names() if test.offers(name)]
    classes = int(torch.cat([part.labels for part in (learn, test)]).max()) + 1
    width = test.rows(PATCHES).shape[-1]
    free = [name for name in offered if not pooling_class(name).LEARNED]
    (features, _), (test_features, entropies) = pool_all(learn, free), pool_all(test, free)
    found = {}
    for name in offered:
        if name in free:
            pooling = None
            pictures = _pooled(learn, features[name]), _pooled(test, test_features[name])
        else:
            pooling = partial(pooling_class(name), width, **({"queries": queries} if name == "attentive" else {}))
            pictures = learn.pictures(), test.pictures()
        outcome = evaluate(partial(_head, width, classes, pooling), *pictures, recipe, seeds)
        judged = outcome.judged._replace(entropy=entropies.get(name, outcome.judged.entropy))
        found[name] = replace(outcome, judged=judged)
    return found


def _pooled(part: Part, features: Float[Tensor, "m d"]) -> Pictures:
    return Pictures(features.__getitem__, part.labels, torch.arange(len(features)))


def _head(width: int, classes: int, make_pooling: Callable[[], Pooling] | None) -> Head:
    pooling = make_pooling() if make_pooling else None
    assert pooling is None or isinstance(pooling, QueryPooling)  # as all that learn
    return Head(width, classes, pooling).to(best_device())


def outcome_rows(
    outcomes: Mapping[str, Outcome], layer: int, protocols: Mapping[str, str]
) -> tuple[list[Row], Samples]:
    """Numbers of one layer's poolings, with intervals over pictures and seeds (`crossed_interval`).

    - `top1_{pooling}`: share of test pictures that are classified rightly, in [0, 1]
    - `gain_over_mean_{pooling}`, `gain_over_cls_{pooling}`: that less the same of average pooling, or of the cls
      token, paired by picture and seed; shares, in [-1, 1]
    - `entropy_{pooling}`: of the weights of patches, as a fraction of uniform's, in [0, 1]: 1 is average pooling, 0 a
      single patch. Of several queries the mean over queries, and `entropy_of_average_{pooling}` that of the queries'
      average: the higher above it, the more the queries differ. Of cls_attention: of attention averaged over heads,
      which is no lower than the mean over heads of each head's own (`cls_entropy` of the analysis cls_attention).

    Samples: each picture's mean over seeds, less those of `entropy` that no picture changes (mean, central).
    """
    right = {name: outcome.judged.right.numpy() for name, outcome in outcomes.items()}
    columns: dict[str, tuple[NDArray[np.floating] | NDArray[np.bool_], str]]
    columns = {f"top1_{name}": (values, name) for name, values in right.items()}
    for base in BASELINES:
        if base in right:
            gains = {name: values - 1.0 * right[base] for name, values in right.items() if name != base}
            columns |= {f"gain_over_{base}_{name}": (gain, difference(name, base)) for name, gain in gains.items()}
    for name, outcome in outcomes.items():
        evenness = outcome.judged.entropy, outcome.judged.entropy_of_average
        for statistic, entropy in zip(("entropy", "entropy_of_average"), evenness, strict=True):
            if entropy is not None:
                columns[f"{statistic}_{name}"] = entropy.double().numpy(), name
    rows: list[Row] = []
    samples: Samples = {}
    for statistic, (values, protocol_of) in columns.items():
        mean, low, high = map(float, crossed_interval(values))
        rows.append(Row(ANALYSIS, layer, None, statistic, mean, low, high, values.shape[1], protocols[protocol_of]))
        if not (statistic.startswith("entropy") and _weights_are_fixed(protocol_of)):
            samples[ANALYSIS, statistic, layer] = values.mean(0).astype(np.float32)
    return rows, samples


def _weights_are_fixed(name: str) -> bool:
    return not (pooling_class(name).LEARNED or pooling_class(name).NEEDS_ATTENTION)


def difference(name: str, base: str) -> str:
    """What the protocol of a gain calls its pooling."""
    return f"{name} less {base}"
