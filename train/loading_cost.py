"""What loading a training sample costs by stage: reading, decoding, augmentation, masks, keypoints, collation.

The loading path itself carries no clocks: for as long as it is measured, what a stage calls is replaced by the same
with a clock around it.
"""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from kamim_analysis.bootstrap import mean_interval
from kamim_analysis.data import Pictures, Unreadable
from kamim_analysis.decode import read_rgb
from kamim_analysis.runtime import one_thread
from kamim_analysis.shards import decode_packed
from kamim_analysis.worker_processes import WorkerProcesses

from . import samples as training_samples
from .masks import MaskDraws
from .recipe import Recipe
from .samples import Order, TrainingSamples, load_samples
from .start import Start
from .views import Augmentation, View

#: pictures that are timed together; intervals are over such batches
BATCH = 10
WHOLE = "whole"
WAITING = "waiting"


@dataclass(frozen=True)
class Cost:
    """Mean seconds for a picture, with the 95% percentile bootstrap interval over batches."""

    stage: str
    seconds: float
    low: float
    high: float


class _Stopwatch:
    """Processor time of this thread, by stage; a stage within another one is not counted to that."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.running: list[str] = []
        self.since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._charge()
        self.running.append(name)
        try:
            yield
        finally:
            self._charge()
            self.running.pop()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, a stage of its own."""

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **options)

        return timed

    def _charge(self) -> None:
        now = time.thread_time()
        if self.running:
            self.spent[self.running[-1]] = self.spent.get(self.running[-1], 0.0) + now - self.since
        self.since = now


def stage_costs(recipe: Recipe, start: Start, images: int) -> list[Cost]:
    """The cost of each stage in processor time of one core, of the `whole`, and of what was spent `waiting`.

    The first so many samples of a run by the recipe, in batches of ten. `waiting` is the time in which the processor
    did something else: a disk that is not fast enough, or other programs. Seeds are the random state that is set for
    each sample, beside looking it up. Raises UserError where too many pictures cannot be read.
    """
    watch, pictures = _Stopwatch(), start.pictures
    view: View = recipe.objective.view(Augmentation.of(recipe.data), start.encoder)
    cropping = "squeeze" if recipe.data.device_augment else "crop, flip"
    clocked = TrainingSamples(_clocked(pictures, watch), _ClockedView(view, watch, cropping), recipe.seed)
    unreadable = Unreadable(min(images, len(pictures)), recipe.data.max_unreadable)
    batches = iter(_order(pictures, recipe.seed))
    rows: list[dict[str, float]] = []
    with one_thread(), _clocks_inside(recipe, watch):
        for _ in range(1 + -(-images // BATCH)):
            watch.spent, since = {}, time.perf_counter()
            indices = next(batches)
            with watch.stage("seeds"):
                items = [clocked[at] for at in indices]
            with watch.stage("collate"):
                _batch, failed = training_samples._collate(view, items)
            wall, spent = time.perf_counter() - since, sum(watch.spent.values())
            rows.append(watch.spent | {WHOLE: spent, WAITING: max(wall - spent, 0.0)})
            unreadable.add(failed)
    unreadable.check()
    return _costs(rows[1:], len(indices))  # what is called for the first time loads parts of itself


def rate_of_workers(recipe: Recipe, start: Start, images: int, workers: int) -> Cost:
    """Seconds for a picture that so many processes need together, by the clock on the wall, once they run.

    `images` are taken of each. An interval is over as many batches in turn as there are workers.
    """
    view: View = recipe.objective.view(Augmentation.of(recipe.data), start.encoder)
    order = _order(start.pictures, recipe.seed)
    samples = TrainingSamples(start.pictures, view, recipe.seed)
    loaded = load_samples(samples, order, workers=workers, pin=False)
    assert isinstance(loaded, WorkerProcesses)
    for _ in range(6 * workers):  # what was prepared while they started is used up
        next(loaded)
    arrived = [time.perf_counter()]
    for _ in range(max(-(-images // BATCH), 2)):
        for _ in range(workers):
            next(loaded)
        arrived.append(time.perf_counter())
    loaded.end()
    seconds = np.diff(arrived) / (workers * order.batch_size)
    mean, low, high = mean_interval(seconds)
    return Cost(f"{workers} workers", float(mean), float(low), float(high))


def _order(pictures: Pictures, seed: int) -> Order:
    return Order(length=len(pictures), batch_size=min(BATCH, len(pictures)), seed=seed)


def _clocked(pictures: Pictures, watch: _Stopwatch) -> Pictures:
    """The pictures, reading and decoding timed: apart where they are files, together where not."""
    if pictures.opener is None or pictures.labels is None:
        return replace(pictures, reader=watch.around("read, decode", pictures.reader))
    opened, labels = watch.around("read", pictures.opener), pictures.labels
    packed = pictures.shards is not None  # which have a decoder of their own

    def decode(encoded: bytes, index: int) -> Any:
        return decode_packed(encoded) if packed else read_rgb(io.BytesIO(encoded), pictures.identity(index))

    timed = watch.around("decode", decode)

    def read(index: int) -> tuple[Any, int]:
        return timed(opened(index), index), int(labels[index])

    return replace(pictures, reader=read, opener=opened)


class _ClockedView(View):
    """A view, timed as a stage of its own: all that it does beside drawing masks and detecting keypoints."""

    def __init__(self, view: View, watch: _Stopwatch, stage: str) -> None:
        self.timed, self.join, self.takes_files = watch.around(stage, view), view.join, view.takes_files  # type: ignore[method-assign]

    def __call__(self, picture: Any) -> dict[str, Any]:
        """The view's sample."""
        sample: dict[str, Any] = self.timed(picture)
        return sample


@contextmanager
def _clocks_inside(recipe: Recipe, watch: _Stopwatch) -> Iterator[None]:
    """Clocks in the classes that a view calls."""
    targets: list[tuple[str, Any, str]] = [("masks", MaskDraws, "__call__")]
    detector = getattr(recipe.objective, "detector", None)
    if detector is not None:
        targets.append(("keypoints", type(detector), "density"))
    inherited = [(owner, name, owner.__dict__.get(name)) for _stage, owner, name in targets]
    for stage, owner, name in targets:
        setattr(owner, name, watch.around(stage, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, own in inherited:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


def _costs(rows: list[dict[str, float]], batch_size: int) -> list[Cost]:
    stages = sorted(rows[0], key=_STAGES.index)
    values: Float[ndarray, "batches stages"] = np.array([[row[stage] for stage in stages] for row in rows])
    mean, low, high = mean_interval(values / batch_size)
    return [Cost(*one) for one in zip(stages, mean.tolist(), low.tolist(), high.tolist(), strict=True)]


_STAGES = ["read", "decode", "read, decode", "crop, flip", "squeeze", "masks", "keypoints", "seeds", "collate"]
_STAGES += [WHOLE, WAITING]
