"""How heads on frozen tokens are trained and their learning rate is chosen (selective aggregation)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from kamim_analysis.splits import stratified

from ..cls_attention import attention_entropy
from .aggregation_heads import Head, Inputs, Scale, TrainedHeads, batch_logits, in_batches, scale_of, settled
from .fast_probe import BETAS, rate_share


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The same for every pooling."""

    learning_rates: tuple[float, ...] = (3e-4, 3e-3, 3e-2, 3e-1)
    """Peaks of the schedule to choose from, for pooling and classifier alike.

    Up to where the mean of a small masked-image model wants them: with 1e-2 for the highest, AbMILP seemed to gain five
    points over a mean that was not trained out. Decades, as accuracy is flat within one and each rate costs time.
    """
    epochs: int = 100
    warmup: float = 0.1
    """Share of the steps in which the rate rises linearly; then it falls as a cosine to nothing."""
    batch_size: int = 128
    """At most: an epoch's batches are of one size, give or take a picture."""
    weight_decay: float = 0.05
    """As the probes of SimMIM and KAMIM have it."""
    held_out: float = 0.2
    """Share of the training pictures on which the learning rate is chosen, of each class."""


class Judged(NamedTuple):
    """What heads make of pictures."""

    right: Bool[Tensor, "head i"]
    loss: Float[Tensor, "head i"]
    """Cross-entropy in nats."""
    entropy: Float[Tensor, "head i"] | None
    """Of the weights of patches as a fraction of uniform's, mean over queries; None where features were pooled."""
    entropy_of_average: Float[Tensor, "head i"] | None
    """Of the weights' average over several queries: higher where they look at different patches."""


@dataclass(frozen=True)
class Pictures:
    """Those to learn from, or those to judge: frozen features, all labels, and which of them are meant."""

    inputs: Inputs
    labels: Int64[Tensor, " i"]
    positions: Int64[Tensor, " m"]


def batches(positions: Int64[Tensor, " i"], recipe: Recipe, seed: int) -> Iterator[Int64[Tensor, " b"]]:
    """The pictures of each step: every epoch all of them, in an order that `seed` draws."""
    draw = torch.Generator().manual_seed(seed)
    count = -(-len(positions) // recipe.batch_size)
    for _ in range(recipe.epochs):
        yield from positions[torch.randperm(len(positions), generator=draw)].tensor_split(count)


def train(
    heads: Sequence[Head],
    rates: Sequence[float],
    pictures: Pictures,
    learned_from: Bool[Tensor, "head i"],
    scale: Scale,
    recipe: Recipe,
    seed: int,
) -> TrainedHeads:
    """Train each head with its own learning rate on its own part of `pictures`: AdamW, cross-entropy.

    The heads are independent, as the gradient of the sum of their losses is each one's own; they share the order of the
    pictures, which `seed` draws.
    """
    groups = [{"params": list(head.parameters()), "lr": rate} for head, rate in zip(heads, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(pictures.positions) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, steps, recipe.warmup))
    counts = learned_from.to(scale.mean)
    labels = pictures.labels.to(scale.mean.device)
    for some in batches(pictures.positions, recipe, seed):
        of_batch = counts[:, some]
        logits = batch_logits(heads, pictures.inputs(some), scale, of_batch)
        target = labels[some].expand(len(heads), -1)
        losses = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(of_batch)
        optimizer.zero_grad()
        ((losses * of_batch).sum(1) / of_batch.sum(1).clamp(min=1)).sum().backward()
        optimizer.step()
        schedule.step()
    return settled(heads, pictures.inputs, pictures.positions, scale, counts)


@torch.no_grad()
def judged(trained: TrainedHeads, pictures: Pictures) -> Judged:
    """Whether the largest logit is a picture's class, and how evenly its patches were weighted."""
    right, loss, entropy, of_average = [], [], [], []
    for some, batch in in_batches(pictures.inputs, pictures.positions):
        known, weights = trained.judge(batch)
        target = pictures.labels[some].to(known.device)
        right.append((known.argmax(-1) == target).cpu())
        loss.append(-known.gather(2, target.expand(len(known), -1)[..., None])[..., 0].cpu())
        if weights is not None:
            entropy.append(attention_entropy(weights).mean(-1).T.cpu())
            if weights.shape[2] > 1:
                of_average.append(attention_entropy(weights.mean(2, keepdim=True))[..., 0].T.cpu())
    evenness = (torch.cat(parts, 1) if parts else None for parts in (entropy, of_average))
    return Judged(torch.cat(right, 1), torch.cat(loss, 1), *evenness)


@dataclass(frozen=True)
class Outcome:
    """How well one pooling does."""

    rate: float
    """The learning rate that was chosen."""
    held_out: Mapping[float, float]
    """Accuracy on the held-out pictures by learning rate, mean over seeds."""
    learned_from: int
    """Pictures that a seed learns from, less those held out."""
    judged: Judged
    """Of the test pictures, a row for each seed."""


def evaluate(
    make_head: Callable[[], Head], learn: Pictures, test: Pictures, recipe: Recipe, seeds: Sequence[int]
) -> Outcome:
    """Learn from most of `learn` with every learning rate, choose one on what is held out of it, judge `test` with it.

    Each seed draws a start and a held-out part of its own; the rate is the one of the highest accuracy on the held-out
    pictures of all seeds, among equals that of the lowest cross-entropy there. `test` is not looked at before. All
    rates and seeds are trained side by side.
    """
    rates = recipe.learning_rates
    parts = torch.stack([_learned_from(learn, recipe, seed) for seed in seeds])
    by_head = parts.repeat_interleave(len(rates), 0)
    heads = [_started(make_head, seed) for seed in seeds for _ in rates]
    scale = scale_of(learn.inputs, learn.positions)
    trained = train(heads, rates * len(seeds), learn, by_head, scale, recipe, seeds[0])
    tried = judged(trained, learn)
    held = ~by_head[:, learn.positions]
    accuracy, loss = (
        ((values * held).sum(1) / held.sum(1)).view(len(seeds), -1).mean(0).tolist()
        for values in (tried.right.double(), tried.loss.double())
    )
    best = max(range(len(rates)), key=lambda i: (accuracy[i], -loss[i]))
    chosen = trained.only(range(best, len(heads), len(rates)))
    held_out = dict(zip(rates, accuracy, strict=True))
    return Outcome(rates[best], held_out, int(parts[0].sum()), judged(chosen, test))


def _learned_from(learn: Pictures, recipe: Recipe, seed: int) -> Bool[Tensor, " i"]:
    """Those of all pictures that a seed learns from."""
    shares = (1 - recipe.held_out, recipe.held_out)
    part, _ = stratified(learn.labels[learn.positions], shares, seed)
    chosen = torch.zeros(len(learn.labels), dtype=torch.bool)
    chosen[learn.positions[part]] = True
    return chosen


def _started(make_head: Callable[[], Head], seed: int) -> Head:
    """The same start for every learning rate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_head()
