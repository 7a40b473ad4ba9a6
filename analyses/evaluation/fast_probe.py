"""Linear probes of stored features, of many feature sets and learning rates at once."""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.optim.adamw import adamw

from kamim_analysis.extraction import Rows

Standardise = Literal["channel", "none"]
Key = TypeVar("Key", bound=Hashable)
# beyond, workers would wait for Python's lock: it is held for about a tenth of a step
_WORKERS = 8
_JUDGED = 1024
# of the free memory of a CUDA device, for the features of one batched program
_MEMORY_SHARE = 0.25
# a channel whose deviation is below this share of its size holds rounding only
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every probe is trained."""

    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    """Peaks of the schedule. AdamW moves a weight by about the rate in a step however small the gradient, so few steps
    want high ones: half decades from what suits ImageNet to what suits a few hundred pictures."""
    epochs: int = 20
    batch_size: int = 64
    """Of 508 pictures, 20 epochs of a few large batches end before a probe has learned: DINOv2's last cls had test
    accuracy 0.69 in batches of 512, 0.75 of 128, 0.76 of 64 and 0.77 of 16, where a step costs most."""
    weight_decay: float = 0.05
    """Decoupled, times the learning rate; of the bias too, as torch's AdamW has it for a layer's parameters."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises linearly; then it falls as a cosine to nothing."""
    standardise: Standardise = "channel"
    """Each channel less its mean, over its deviation, both of the pictures learned from; or features as they are. Raw
    features of masked-image models differ by orders of magnitude between layers, and with them the rate they need."""

    def __post_init__(self) -> None:
        assert self.learning_rates
        assert min(self.learning_rates) > 0


BETAS, EPSILON = (0.9, 0.999), 1e-8


def rate_share(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step, from 0: linear over the first `warmup` of the steps, then a cosine.

    >>> [round(rate_share(step, 6, 1 / 3), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


@dataclass(frozen=True)
class Probes:
    """Trained probes of one feature set, one for each learning rate."""

    mean: Float[Tensor, " d"]
    deviation: Float[Tensor, " d"]
    """Infinite for a channel that is constant, which then counts for nothing."""
    weight: Float[Tensor, "rate d classes"]
    bias: Float[Tensor, "rate classes"]

    def logits(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "rate b classes"]:
        """The log of each class's probability, up to a constant."""
        return ((features.to(self.mean) - self.mean) / self.deviation) @ self.weight + self.bias[:, None]

    def judged(
        self, features: Float[Tensor, "i d"], labels: Int64[Tensor, " i"]
    ) -> tuple[Bool[Tensor, "rate i"], Float[Tensor, "rate i"]]:
        """Whether the largest logit is the picture's class, and the cross-entropy in nats, of each rate.

        A class of -1 is one that the probes have not learned: never right, of infinite cross-entropy.
        """
        right, loss = [], []
        for part, of_part in zip(features.split(_JUDGED), labels.split(_JUDGED), strict=True):
            known = self.logits(part).log_softmax(-1)
            of_part = of_part.to(known.device)
            right.append((known.argmax(-1) == of_part).cpu())
            at = of_part.clamp(min=0).expand(len(known), -1)[..., None]
            loss.append((-known.gather(2, at)[..., 0]).masked_fill(of_part < 0, torch.inf).cpu())
        return torch.cat(right, 1), torch.cat(loss, 1)


def train_probes(
    features: Sequence[Float[Tensor, "m d"]],
    labels: Int64[Tensor, " m"],
    classes: int,
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
) -> list[Probes]:
    """Softmax regression of feature sets of one width by AdamW, each with every learning rate: all at once.

    Minimises the mean cross-entropy -log softmax(x W + b)[y] over batches; its gradient is x^T (p - onehot(y)) / batch
    in closed form. W and b begin at zero: the problem is convex, and a start at random would only add noise. Every
    probe sees the pictures in the same order, another in each epoch, which `seed` draws; the last batch of an epoch may
    be smaller. So each result equals, but for rounding, that of torch's AdamW with that learning rate on that feature
    set alone.

    All learning rates of a set are the columns of one matrix [C, rates x classes]. Sets go through one batched matrix
    product; on a CPU give one set a call, so that its weights stay in the cache.
    """
    training = _Training([one.to(device) for one in features], labels.to(device), classes, recipe)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(recipe.epochs):
        training.epoch(torch.randperm(len(labels), generator=draw).to(device))
    return training.probes()


def probes_of(
    features: Mapping[Key, Rows],
    learned: Int64[Tensor, " m"],
    labels: Int64[Tensor, " m"],
    classes: int,
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Key, Probes]]:
    """`train_probes` of every feature set, whose widths may differ, on the pictures at the positions `learned`.

    Sets are read when their turn comes. On a CPU each core trains a set of its own: a step is too short to be divided
    among cores. On CUDA sets of one width are trained as one batched program.
    """
    if torch.device(device).type == "cuda":
        for some in _groups(features, len(learned), torch.device(device)):
            sets = [features[key][learned] for key in some]
            yield from zip(some, train_probes(sets, labels, classes, recipe, seed, device), strict=True)
        return
    with _cores() as pool:
        done = [pool.submit(_train_one, features[k], learned, labels, classes, recipe, seed) for k in features]
        yield from ((key, one.result()) for key, one in zip(features, done, strict=True))


def _train_one(features: Rows, learned: Tensor, labels: Tensor, classes: int, recipe: Recipe, seed: int) -> Probes:
    return train_probes([features[learned]], labels, classes, recipe, seed)[0]


@contextmanager
def _cores() -> Iterator[ThreadPoolExecutor]:
    """Workers that compute with their share of torch's threads each."""
    threads = torch.get_num_threads()
    workers = min(threads, _WORKERS)
    # the number of threads is each thread's own, but for new threads and for MKL, which the last line restores
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _groups(features: Mapping[Key, Rows], pictures: int, device: torch.device) -> Iterator[list[Key]]:
    """Keys of sets that are trained together: of one width, and no more than fit into part of the free memory."""
    free, _ = torch.cuda.mem_get_info(device)
    by_width: dict[int, list[Key]] = {}
    for key in features:
        by_width.setdefault(features[key].shape[1], []).append(key)
    for width, keys in by_width.items():
        # float32, as they came, standardised and shuffled
        most = max(1, int(_MEMORY_SHARE * free / (3 * 4 * pictures * width)))
        yield from (keys[i : i + most] for i in range(0, len(keys), most))


class _Training:
    """Weights u = W / rate, so that one fused AdamW step, with the schedule's share for its rate, serves all rates.

    AdamW moves W by rate x share x m / (sqrt(v) + eps), and so u by share x m / (sqrt(v) + eps); m and v are of the
    gradient of W. Only the decay, 1 - share x rate x decay, differs between rates: it is a product before the step.
    """

    def __init__(self, features: list[Tensor], labels: Tensor, classes: int, recipe: Recipe) -> None:
        self.recipe, self.labels, self.done = recipe, labels, 0
        self.scaling = [_scaling(one, recipe.standardise) for one in features]
        sets, (pictures, width), like = len(features), features[0].shape, features[0]
        self.batches = -(-pictures // recipe.batch_size)
        # the last channel is 1 and its weight the bias
        self.known = like.new_ones(sets, pictures, width + 1)
        for place, one, (mean, deviation) in zip(self.known, features, self.scaling, strict=True):
            torch.sub(one, mean, out=place[:, :-1]).div_(deviation)
        self.shuffled = torch.empty_like(self.known)
        rates = like.new_tensor(recipe.learning_rates)
        self.rates = rates.repeat_interleave(classes)
        self.shape = (len(rates), classes)
        self.weight, self.unit, self.gradient, self.first_moment, self.second_moment = (
            like.new_zeros(sets, width + 1, len(self.rates)) for _ in range(5)
        )
        self.logits = like.new_empty(sets, min(recipe.batch_size, pictures), *self.shape)
        self.probabilities = torch.empty_like(self.logits)
        self.target = like.new_full((*self.logits.shape[:3], 1), -1)
        self.counted = like.new_zeros(())

    @torch.no_grad()
    def epoch(self, order: Int64[Tensor, " m"]) -> None:
        """One pass over the pictures."""
        torch.index_select(self.known, 1, order, out=self.shuffled)
        size, labels = self.recipe.batch_size, self.labels[order]
        for first in range(0, len(order), size):
            self._step(self.shuffled[:, first : first + size], labels[first : first + size])

    def _step(self, known: Float[Tensor, "s b d1"], labels: Int64[Tensor, " b"]) -> None:
        logits, probabilities = self.logits[:, : len(labels)], self.probabilities[:, : len(labels)]
        torch.bmm(known, self.weight, out=logits.flatten(2))
        torch.softmax(logits, -1, out=probabilities)
        at = labels[:, None, None].expand(*logits.shape[:3], 1)
        error = probabilities.scatter_add_(-1, at, self.target[:, : len(labels)]).flatten(2)
        of_batch = 1 / len(labels)
        torch.baddbmm(self.gradient, known.transpose(1, 2), error, beta=0, alpha=of_batch, out=self.gradient)
        share = rate_share(self.done, self.recipe.epochs * self.batches, self.recipe.warmup)
        self.unit.mul_(1 - share * self.recipe.weight_decay * self.rates)
        self._adam(share)
        torch.mul(self.unit, self.rates, out=self.weight)
        self.done += 1

    def _adam(self, rate: float) -> None:
        # the function behind torch.optim.AdamW, whose class takes longer to call than the step itself
        adamw(
            [self.unit], [self.gradient], [self.first_moment], [self.second_moment], [], [self.counted],
            fused=True, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=rate, weight_decay=0.0, eps=EPSILON,
            maximize=False,
        )  # fmt: skip

    def probes(self) -> list[Probes]:
        """What was learned, of each feature set."""
        found = self.weight.unflatten(2, self.shape).transpose(1, 2).contiguous()
        return [
            Probes(mean, deviation, weight[:, :-1], weight[:, -1])
            for (mean, deviation), weight in zip(self.scaling, found, strict=True)
        ]


def _scaling(
    features: Float[Tensor, "m d"], standardise: Standardise
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """What features are lessened and divided by."""
    if standardise == "none":
        return features.new_zeros(features.shape[1]), features.new_ones(features.shape[1])
    variance, mean = torch.var_mean(features, 0, correction=0)
    deviation = variance.sqrt()
    return mean, deviation.masked_fill(deviation <= _ROUNDING * mean.abs(), torch.inf)
