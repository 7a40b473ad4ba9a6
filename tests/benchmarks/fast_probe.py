"""The fast probe against training the same probes one after another: ratios, in one run.

12 layers x 3 poolings x 8 learning rates = 288 probes of 10,000 images, 100 classes and width 192, 20 epochs. The
sequential loop is what one writes without this: torch.nn.Linear, cross_entropy, backward, torch.optim.AdamW, on tensors
in memory; it is timed with one thread and with all, and the faster one counts. Every --sample-th of its probes is
trained, and its time scaled to 288; --full trains them all.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable

import torch

from kamim_analysis.analyses.evaluation.fast_probe import Recipe, probes_of, rate_share, train_probes

LAYERS, POOLINGS, IMAGES, CLASSES, WIDTH = 12, 3, 10_000, 100, 192


def plain(features: torch.Tensor, labels: torch.Tensor, recipe: Recipe, rate: float) -> torch.nn.Linear:
    """One probe, as one would write it."""
    known = (features - features.mean(0)) / features.std(0, correction=0)
    layer = torch.nn.Linear(WIDTH, CLASSES)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    adam = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=recipe.weight_decay)
    draw, steps = torch.Generator().manual_seed(0), itertools.count()
    total = recipe.epochs * -(-IMAGES // recipe.batch_size)
    for _ in range(recipe.epochs):
        for batch in torch.randperm(IMAGES, generator=draw).split(recipe.batch_size):
            adam.param_groups[0]["lr"] = rate * rate_share(next(steps), total, recipe.warmup)
            adam.zero_grad()
            torch.nn.functional.cross_entropy(layer(known[batch]), labels[batch]).backward()
            adam.step()
    return layer


def seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def one_by_one(sets: dict[int, torch.Tensor], labels: torch.Tensor, recipe: Recipe, every: int) -> dict[str, float]:
    """Seconds for all probes one after another, scaled from every `every`-th: plain with one thread and all, ours."""
    jobs = list(itertools.product(sets, recipe.learning_rates))[::every]
    scale = len(sets) * len(recipe.learning_rates) / len(jobs)
    threads, found = (
        torch.get_num_threads(),
        {"plain, 1 thread": 0.0, "plain, all threads": 0.0, "ours, one probe": 0.0},
    )
    for key, rate in jobs:
        alone = Recipe(learning_rates=(rate,), epochs=recipe.epochs, batch_size=recipe.batch_size)
        for name in ("plain, 1 thread", "plain, all threads"):
            torch.set_num_threads(1 if "1" in name else threads)
            found[name] += scale * seconds(lambda key=key, rate=rate: plain(sets[key], labels, recipe, rate))
        torch.set_num_threads(threads)
        found["ours, one probe"] += scale * seconds(
            lambda key=key, alone=alone: train_probes([sets[key]], labels, CLASSES, alone, 0)
        )
    return found


def main() -> None:
    """Print seconds and ratios for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="train every probe of the sequential loops")
    parser.add_argument("--sample", type=int, default=32, help="else every so many-th (default: 32)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    chosen = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (IMAGES,), generator=draw)
    centres = torch.randn(CLASSES, WIDTH, generator=draw)
    sets = {i: 0.2 * centres[labels] + torch.randn(IMAGES, WIDTH, generator=draw) for i in range(LAYERS * POOLINGS)}
    # torch loads parts of itself at the first step
    train_probes([sets[0]], labels, CLASSES, Recipe(epochs=1), 0)
    plain(sets[0], labels, Recipe(epochs=1), 0.1)
    every = 1 if chosen.full else chosen.sample
    print(f"{torch.get_num_threads()} threads; sequential: every {every}. of the probes" * (every > 1) or "all probes")
    for size in chosen.batch_sizes:
        recipe = Recipe(batch_size=size)
        batched = seconds(lambda recipe=recipe: list(probes_of(sets, torch.arange(IMAGES), labels, CLASSES, recipe, 0)))
        times = one_by_one(sets, labels, recipe, every)
        fastest = min(times["plain, 1 thread"], times["plain, all threads"])
        told = ", ".join(f"{name} {one:.0f} s ({one / batched:.1f}x)" for name, one in times.items())
        print(f"batch {size}: batched {batched:.1f} s; {told}; faster plain loop / batched = {fastest / batched:.1f}")


if __name__ == "__main__":
    sys.exit(main())
