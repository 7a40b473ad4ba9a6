"""What each objective's addition costs a step of the training loop, batch in memory: ViT-S/16 at 192 px on photographs.

`python objectives.py [ROUNDS]`. The two sides of a ratio take turns, first one and then the other ahead, and each ratio
is the median over rounds of the round's own, with its 95% percentile bootstrap interval over rounds.
"""

import io
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from loading import jpegs

from kamim_analysis.decode import read_rgb
from kamim_analysis.encoders import create
from kamim_analysis.train import loop
from kamim_analysis.train.progress import Progress
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.settings import parse_recipe
from kamim_analysis.train.views import Augmentation, View

SIZE = (
    "--data.source photographs --encoder.name vit_small --encoder.image_size 192 --optim.epochs 100 "
    "--efficiency.workers 0 --efficiency.precision fp32"
).split()
SIMMIM = "--objective SimMIM --optim.batch_size 8"
# as many patches hidden on both sides, so that only the ranking differs; two local crops for the paper's ten
ATTMASK = (
    "--objective AttMask --objective.mask_ratio_variation 0 --objective.mask_probability 1 --objective.local_crops 2 "
    "--optim.clip_norm 3 --optim.clip_by weight --optim.batch_size 4"
)
LATENT_MIM = "--objective LatentMIM --objective.visible 20 --optim.batch_size 16"
#: what is measured: (name, against what, asked at most)
STEPS = {
    "KAMIM / SimMIM": ("--objective KAMIM --optim.batch_size 8", SIMMIM, "1.03x"),
    "AttMask: attmask_high / random": (
        f"{ATTMASK} --objective.masking attmask_high",
        f"{ATTMASK} --objective.masking random",
        "1.02x",
    ),
    "Latent MIM: gap 4 / no gap": (f"{LATENT_MIM} --objective.gap 4", f"{LATENT_MIM} --objective.gap 0", "1.02x"),
    "SimMIM: attmask_high of an EMA copy / blocks": (f"{SIMMIM} --objective.masking attmask_high", SIMMIM, ""),
    "MAE / SimMIM": ("--objective MAE --optim.batch_size 8", SIMMIM, ""),
}


def recipe_of(options: str) -> Recipe:
    """The objective's defaults at the sizes measured here."""
    return parse_recipe([*SIZE, *options.split()])


def step_of(options: str, out: Path) -> Callable[[], object]:
    """The loop's own optimizer step on one batch that stays in memory."""
    recipe = recipe_of(options)
    run = loop._build(recipe, out, loop.begin(recipe))
    run.batches = itertools.repeat(next(run.batches))  # type: ignore[assignment]
    run.wrapped.train()
    steps = itertools.count()

    def step() -> None:
        # past the first epoch, where AttMask's last layer is frozen
        progress = Progress(next(steps) + run.order.steps_per_epoch, run.order.steps_per_epoch, recipe.optim.epochs)
        run.schedule.set(progress)
        loop._step(run, progress)

    return step


def view_of(options: str, files: list[bytes]) -> Callable[[], object]:
    """A worker's part: decode and view every file."""
    recipe = recipe_of(options)
    view: View = recipe.objective.view(Augmentation.of(recipe.data), create("vit_small", 192))

    def load() -> None:
        torch.manual_seed(0)
        for file in files:
            view(read_rgb(io.BytesIO(file)))

    return load


def seconds(function: Callable[[], object]) -> float:
    """One call's."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(name: str, one: Callable[[], object], other: Callable[[], object], rounds: int, asked: str) -> None:
    """Print the median ratio of `one` to `other` with its interval, and the median times."""
    for function in (one, other, one, other):
        function()
    pairs = []
    for turn in range(rounds):
        if turn % 2:
            first = seconds(one)
            pairs.append((first, seconds(other)))
        else:
            first = seconds(other)
            pairs.append((seconds(one), first))
    times = np.array(pairs)
    ratios = times[:, 0] / times[:, 1]
    drawn = np.random.default_rng(0).choice(ratios, (10_000, rounds))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    mine, theirs = np.median(times, axis=0)
    ratio = f"{np.median(ratios):.3f}x [{low:.3f}, {high:.3f}]"
    print(f"{name:<48} {ratio:<24} {mine:.3f} s to {theirs:.3f} s   {asked and 'asked ' + asked}", flush=True)


def main() -> None:
    """Print one line for each comparison."""
    rounds = int(sys.argv[1]) if sys.argv[1:] else 21
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (one, other, asked)) in enumerate(STEPS.items()):
            out = Path(folder, str(number))
            compare(name, step_of(one, out / "one"), step_of(other, out / "other"), rounds, asked)
    files = jpegs()
    views = [view_of(f"{LATENT_MIM} --objective.gap {gap}", files) for gap in (4, 0)]
    compare("Latent MIM, view in the worker: gap 4 / no gap", views[0], views[1], rounds, "")


if __name__ == "__main__":
    sys.exit(main())
