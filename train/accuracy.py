"""Accuracy of a classifier on pictures that it did not learn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from kamim_analysis.data import Pictures, Unreadable
from kamim_analysis.encoders import evaluating
from kamim_analysis.evaluation_set import image_batches
from kamim_analysis.sampling import choose

from .metrics_log import MetricsLog
from .recipe import Recipe
from .start import LabelledStart, evaluation_transform

# top-5 of fewer classes says little, of five nothing
_KS = (1, 5)
_BATCH = 128


@dataclass(frozen=True)
class Judged:
    """Which pictures were told right."""

    indices: list[int]
    """Numbers of the pictures in their data, those that could not be read left out."""
    correct: dict[int, Float[Tensor, " i"]]
    """By K: 1 where the class is among the K most likely, else 0."""


def among_best(
    logits: Float[Tensor, "b classes"], labels: Int64[Tensor, " b"], ks: Sequence[int]
) -> Float[Tensor, "b k"]:
    """1 where an image's class is among the K most likely, for each K; else 0.

    >>> among_best(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([2]), [1, 2])
    tensor([[0., 1.]])
    """
    best = logits.topk(max(ks), dim=1).indices == labels[:, None]
    return torch.stack([best[:, :k].any(1) for k in ks], dim=1).float()


def judge(
    model: nn.Module,
    encoder: Any,
    pictures: Pictures,
    indices: Sequence[int],
    unreadable: Unreadable,
    *,
    classes: int,
    workers: int,
) -> Judged:
    """Show a classifier the pictures at `indices`, through timm's evaluation transform, in single precision."""
    ks = [k for k in _KS if k == 1 or k < classes]
    device = next(model.parameters()).device
    transform = evaluation_transform(encoder, normalize=True)
    seen: list[int] = []
    parts = []
    with evaluating(model):
        for batch in image_batches(pictures, indices, transform, unreadable, batch_size=_BATCH, workers=workers):
            logits = model(batch.images.to(device, non_blocking=True))
            parts.append(among_best(logits, batch.labels.to(device), ks).cpu())
            seen += batch.indices.tolist()
    correct = torch.cat(parts) if parts else torch.zeros(0, len(ks))
    return Judged(seen, {k: correct[:, i] for i, k in enumerate(ks)})


class AccuracyMonitor:
    """Called by the training loop with the model, the step and the log; changes neither weights nor random state."""

    def __init__(self, recipe: Recipe, start: LabelledStart) -> None:
        self.start, self.workers = start, recipe.efficiency.workers
        self.indices = choose(start.data.test, recipe.monitor.images, recipe.seed)

    def __call__(self, model: Any, step: int, log: MetricsLog) -> None:
        """Write top-1 (and top-5) of the same test pictures each time."""
        test = self.start.data.test
        judged = judge(
            model,
            model.encoder,
            test,
            self.indices,
            Unreadable(len(test), 1.0),
            classes=self.start.data.classes,
            workers=self.workers,
        )
        log.write(step, {f"monitor/top{k}": float(right.mean()) for k, right in judged.correct.items()})
