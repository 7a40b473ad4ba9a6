"""What a checkpoint every 200 steps costs a training on this machine.

`python checkpoints.py [ROUNDS]`. Two recipes: `simmim_photographs`, and SimMIM with ViT-S/16 at 192 px, a batch of 8 in
memory (larger ones make the share smaller). Four times are taken, each the median over rounds:

* step: an optimizer step while nothing is written;
* save: `Checkpoints.save`, for which training waits while weights and moments are copied;
* write: from there until the checkpoint is complete (write, hash, flush, rename), while training goes on;
* slowed: how much longer than as many plain steps the steps took that overlap with that.

The share is (save + slowed) / (200 steps), with its 95% percentile bootstrap interval over rounds. `load` is the time
to verify and restore a checkpoint, `hash` the part of it that verifying takes.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kamim_analysis.train import checkpoint_files, loop
from kamim_analysis.train.progress import Progress
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.settings import parse_recipe, recipe_path

PLAIN = "--efficiency.workers 0 --efficiency.precision fp32 --keep_checkpoints 1".split()
VIT_S = (
    "--objective SimMIM --data.source photographs --encoder.name vit_small --encoder.image_size 192 "
    "--optim.batch_size 8 --optim.epochs 100"
).split()
RECIPES = {
    "simmim_photographs": parse_recipe(["--config", str(recipe_path("simmim_photographs")), *PLAIN]),
    "SimMIM ViT-S/16 192 px, batch of 8": parse_recipe([*VIT_S, *PLAIN]),
}
EVERY = 200


def steps_of(run: loop._Run) -> Callable[[], None]:
    """The loop's own optimizer step on one batch that stays in memory."""
    run.batches = itertools.repeat(next(run.batches))  # type: ignore[assignment]
    run.wrapped.train()
    progress = Progress(run.order.steps_per_epoch, run.order.steps_per_epoch, run.recipe.optim.epochs)

    def step() -> None:
        run.schedule.set(progress)
        loop._step(run, progress)

    return step


def one_round(run: loop._Run, step: Callable[[], None], number: int) -> tuple[float, float, float, float]:
    """Seconds of a plain step, of a save, of the write behind it, and by how much the steps beside that were slowed."""
    start = time.perf_counter()
    step()
    plain = time.perf_counter() - start
    start = time.perf_counter()
    run.checkpoints.save(number)
    saved = time.perf_counter()
    writing = run.checkpoints.writing
    assert writing is not None
    ended: list[float] = []
    writing.add_done_callback(lambda _: ended.append(time.perf_counter()))
    beside = 0
    while not writing.done() or not beside:
        step()
        beside += 1
    stepped = time.perf_counter()
    run.checkpoints.close()
    start_of_next = time.perf_counter()
    step()  # plain steps on both sides, as the machine drifts
    plain = (plain + time.perf_counter() - start_of_next) / 2
    return plain, saved - start, ended[0] - saved, stepped - saved - beside * plain


def measure(recipe: Recipe, out: Path, rounds: int) -> str:
    """A line of results."""
    run = loop._build(recipe, out, loop.begin(recipe))
    step = steps_of(run)
    for number in (1, 2):  # memory is mapped by the first
        one_round(run, step, number)
    times = np.array([one_round(run, step, number) for number in range(3, rounds + 3)])
    plain, save, write, slowed = np.median(times, axis=0)
    shares = 100 * (times[:, 1] + times[:, 3]) / (EVERY * times[:, 0])
    drawn = np.random.default_rng(0).choice(shares, (10_000, rounds))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    folder = checkpoint_files.newest_first(out)[0]
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    start = time.perf_counter()
    checkpoint_files.verify(folder)
    hashed = time.perf_counter() - start
    start = time.perf_counter()
    run.checkpoints.load()
    load = time.perf_counter() - start
    return (
        f"{megabytes:.0f} MB: step {plain:.3f} s, save {save:.4f} s, write {write:.3f} s, slowed {slowed:.3f} s; share "
        f"of {EVERY} steps {np.median(shares):.2f}% [{low:.2f}, {high:.2f}], asked 2%; load {load:.3f} s, of it hash "
        f"{hashed:.3f} s"
    )


def main() -> None:
    """Print one line for each recipe."""
    rounds = int(sys.argv[1]) if sys.argv[1:] else 15
    print(f"{torch.get_num_threads()} threads", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, recipe) in enumerate(RECIPES.items()):
            print(f"{name}: {measure(recipe, Path(folder, str(number)), rounds)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
