"""Which probe is reported: chosen on held-out training pictures, judged on test pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from rich.progress import track
from torch import Tensor

from kamim_analysis import processes
from kamim_analysis.extraction import Features, Key, Norm
from kamim_analysis.frozen_features import SplitFeatures
from kamim_analysis.runtime import best_device, progress_console
from kamim_analysis.splits import stratified

from .fast_probe import Recipe, probes_of


@dataclass(frozen=True, kw_only=True)
class FastProbeSettings:
    """What `kamim fast_probe` was asked for."""

    layers: Sequence[int] | Literal["all"] = "all"
    poolings: tuple[str, ...] = ()
    """Empty: those that the encoder offers without looking at attention."""
    norm: Norm = "last"
    recipe: Recipe = field(default_factory=Recipe)
    held_out_share: float = 0.2
    """Of the training pictures of each class, to choose on."""
    test_share: float = 0.2
    """Of the pictures of each class, to judge, where the data have one split."""
    seeds: int = 1
    image_size: int | None = None
    seed: int = 0
    stores: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Trial:
    """What the probes of one feature set did, over seeds and learning rates."""

    held_out: Float[Tensor, "seed rate"]
    """Accuracy on the held-out pictures."""
    held_out_loss: Float[Tensor, "seed rate"]
    """Cross-entropy there, nats."""
    test_right: Bool[Tensor, "seed rate i"]

    @property
    def chosen(self) -> int:
        """The rate whose accuracy on held-out pictures is highest, mean over seeds; of equal ones the least loss."""
        merits = list(zip(self.held_out.mean(0).tolist(), (-self.held_out_loss.mean(0)).tolist(), strict=True))
        return merits.index(max(merits))

    @property
    def beats_neighbours(self) -> bool:
        """Whether the rates beside the chosen one, if there are any, are less accurate, and not just of higher loss."""
        accuracy = self.held_out.mean(0)
        beside = [rate for rate in (self.chosen - 1, self.chosen + 1) if 0 <= rate < len(accuracy)]
        return bool(beside) and all(bool(accuracy[rate] < accuracy[self.chosen]) for rate in beside)

    @property
    def merit(self) -> tuple[float, float]:
        """What feature sets are chosen by: accuracy and negative loss on held-out pictures at the chosen rate."""
        at = self.chosen
        return float(self.held_out[:, at].mean()), -float(self.held_out_loss[:, at].mean())


def best_of(trials: Mapping[Key, Trial]) -> Key:
    """The layer and pooling to report: that of the highest accuracy on held-out pictures."""
    return max(trials, key=lambda key: trials[key].merit)


@dataclass(frozen=True)
class Parts:
    """Which pictures are learned from and chosen on, for each seed, and which are judged, the same for all."""

    known: Features
    judged: Features
    test: Int64[Tensor, " t"]
    """Positions in `judged`."""
    splits: list[list[Int64[Tensor, " _"]]]
    """For each seed positions in `known`, to learn from and to choose on."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Pictures learned from, chosen on and judged."""
        return len(self.splits[0][0]), len(self.splits[0][1]), len(self.test)

    @property
    def majority_right(self) -> Bool[Tensor, " t"]:
        """Whether a test picture is of the class that most training pictures have: what knowing nothing gives."""
        return self.judged.labels[self.test] == self.known.labels[torch.cat(self.splits[0])].mode().values


def parts_of(features: SplitFeatures, settings: FastProbeSettings, names: Sequence[str]) -> Parts:
    """The training split is learned from and chosen on; data of one split lend part of it to be judged.

    Seeds draw other pictures to choose on, never others to judge: else what is judged with one seed would be chosen on
    with another.

    Raises UserError for a class with too few pictures.
    """
    labels = (features.bank or features.test).labels
    known, test = outer_split(labels, settings, names, single=features.bank is None)
    drawn = [
        [known[part] for part in held_out_split(labels[known], settings, settings.seed + i, names)]
        for i in range(settings.seeds)
    ]
    if features.bank is None:
        return Parts(features.test, features.test, test, drawn)
    return Parts(features.bank, features.test, torch.arange(len(features.test)), drawn)


def outer_split(
    labels: Int64[Tensor, " i"], settings: FastProbeSettings, names: Sequence[str], *, single: bool
) -> list[Int64[Tensor, " part"]]:
    """Positions of pictures to learn from and choose on, and of those to judge: none where these lie elsewhere."""
    if not single:
        return [torch.arange(len(labels)), torch.arange(0)]
    # the parts that follow are three, of which this split sees two: said here with the number that it takes
    stratified(labels, (0.6, 0.2, 0.2), settings.seed, names)
    return stratified(labels, (1 - settings.test_share, settings.test_share), settings.seed, names)


def held_out_split(
    labels: Int64[Tensor, " i"], settings: FastProbeSettings, seed: int, names: Sequence[str]
) -> list[Int64[Tensor, " part"]]:
    """Positions of pictures to learn from, and of those to choose on."""
    return stratified(labels, (1 - settings.held_out_share, settings.held_out_share), seed, names)


def trials_of(parts: Parts, recipe: Recipe, seed: int, label: str = "") -> dict[Key, Trial]:
    """Train and judge the probes of every layer, pooling and learning rate, seed after seed."""
    classes = parts.known.labels.unique()
    place = {number: i for i, number in enumerate(classes.tolist())}
    labels = torch.tensor([place[number] for number in parts.known.labels.tolist()])
    # a class that was not learned is never right
    test_labels = torch.tensor([place.get(number, -1) for number in parts.judged.labels[parts.test].tolist()])
    rows = {key: parts.known.rows(key) for key in parts.known.by_key}
    found: dict[Key, list[tuple[Tensor, Tensor, Tensor]]] = {key: [] for key in rows}
    quiet = not (label and processes.is_first())
    for i, (learned, held_out) in enumerate(parts.splits):
        trained = probes_of(rows, learned, labels[learned], len(classes), recipe, seed + i, best_device())
        name = f"{label}: probes, seed {seed + i}"
        for key, probes in track(trained, name, len(rows), console=progress_console(), disable=quiet):
            right, loss = probes.judged(rows[key][held_out], labels[held_out])
            test_right, _ = probes.judged(parts.judged.rows(key)[parts.test], test_labels)
            found[key].append((right.float().mean(1), loss.mean(1), test_right))
    return {key: Trial(*map(torch.stack, zip(*seeds, strict=True))) for key, seeds in found.items()}
