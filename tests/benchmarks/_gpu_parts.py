"""The parts of gpu.py: each measures one thing on a device and yields rows. What a part needs is imported inside it."""

import contextlib
import gc
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Setting:
    """Where and how large; `found` holds what later parts compare with."""

    device: torch.device
    toy: bool
    until: float = 0.0
    """time.monotonic() at which the part is to be over: what is not begun then is left out."""
    found: dict[str, float] = field(default_factory=dict)

    @property
    def late(self) -> bool:
        """Whether the part's time is used up."""
        return time.monotonic() > self.until

    def of(self, real: Any, toy: Any) -> Any:
        """The size for a GPU, or that for a try on a CPU."""
        return toy if self.toy else real


@dataclass(frozen=True)
class Row:
    """One number, with its 95% bootstrap interval over rounds where it has one."""

    what: str
    value: float | str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    asked: str = ""


def seconds(setting: Setting, function: Callable[[], object], rounds: int, warm_up: int = 3) -> np.ndarray:
    """Seconds of each call, on the device's own clock; the host is not made to wait between calls."""
    for _ in range(warm_up):
        function()
    if setting.device.type != "cuda":
        times = [time.perf_counter()]
        for _ in range(rounds):
            function()
            times.append(time.perf_counter())
        return np.diff(times)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    torch.cuda.synchronize()
    return np.array([one.elapsed_time(two) / 1e3 for one, two in itertools.pairwise(events)])


def median_of(values: np.ndarray) -> tuple[float, float, float]:
    """Median, and the 95% percentile bootstrap interval of it."""
    drawn = np.median(np.random.default_rng(0).choice(values, (2000, len(values))), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def rate_row(what: str, amount: float, times: np.ndarray, unit: str, asked: str = "") -> Row:
    """An amount a second."""
    middle, low, high = median_of(times)
    return Row(what, amount / middle, unit, amount / high, amount / low, asked)


def ratio_row(
    setting: Setting, what: str, one: Callable[[], object], other: Callable[[], object], rounds: int, asked: str
) -> Row:
    """The time of `one` over that of `other`, which take turns; the interval is over pairs."""
    times = np.array([[seconds(setting, function, 2, 1).mean() for function in (one, other)] for _ in range(rounds)])
    middle, low, high = median_of(times[:, 0] / times[:, 1])
    return Row(what, middle, "x", low, high, asked)


def release(setting: Setting) -> None:
    """Give memory back, and forget what was compiled for other sizes."""
    gc.collect()
    torch._dynamo.reset()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def recipe_of(setting: Setting, objective: Any, batch: int, *, compiled: bool, workers: int = 0, **data: Any) -> Any:
    """ViT-B/16 at 192 px, or next to nothing."""
    from kamim_analysis.train.recipe import Data, Efficiency, Encoder, Monitor, Optim, Recipe

    small = Encoder(name="vit_tiny", image_size=64, width=24, depth=2, heads=2)
    return Recipe(
        objective=objective,
        data=Data(**data),
        encoder=setting.of(Encoder(), small),
        optim=Optim(batch_size=batch),
        efficiency=Efficiency(compile=compiled, workers=workers),
        monitor=Monitor(every_epochs=0),
    )


@contextlib.contextmanager
def training(setting: Setting, recipe: Any) -> Iterator[tuple[Any, Callable[[], object]]]:
    """The loop's own run, and one optimizer step of it with the guard's look at the steps before."""
    from kamim_analysis.train import loop
    from kamim_analysis.train.progress import Progress

    with tempfile.TemporaryDirectory() as folder:
        run = loop._build(recipe, Path(folder, "run"), loop.begin(recipe))
        run.wrapped.train()
        loaded, steps = run.batches, itertools.count()

        def step() -> None:
            progress = Progress(next(steps), run.order.steps_per_epoch, recipe.optim.epochs)
            run.schedule.set(progress)
            loop._step(run, progress)
            run.guard.check(progress.step + 1, wait=False)

        try:
            yield run, step
        finally:
            loaded.close()
            run.checkpoints.close()
    release(setting)


def stay_on_device(run: Any) -> None:
    """One batch for ever, finished."""
    batch, _failed = run.batches._on_device()
    if run.batches.stream is not None:
        run.batches.stream.synchronize()
    run.batches = itertools.repeat(batch)


class Finishing:
    """The same samples for ever, on the device, finished anew each time."""

    def __init__(self, batches: Any) -> None:
        samples, _failed = batches._next()
        self.finish = batches.finish
        self.samples = {
            name: value.to(batches.device) if isinstance(value, torch.Tensor) else value
            for name, value in samples.items()
        }

    def __next__(self) -> dict[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = self.finish(dict(self.samples))
        return made


def matrix(setting: Setting) -> Iterator[Row]:
    """The rate of bf16 matrix products, on random data: zeros run faster."""
    side = setting.of(8192, 256)
    left, right = (torch.randn(side, side, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    times = seconds(setting, lambda: left @ right, setting.of(40, 5), setting.of(10, 1))
    row = rate_row(f"bf16 matrix product of {side}", 2 * side**3 / 1e12, times, "TFLOP/s")
    setting.found["matrix"] = float(row.value)
    yield row


def simmim(setting: Setting) -> Iterator[Row]:
    """SimMIM's step, batch on the device: images/s, and its operations as a share of the matrix rate."""
    from kamim_analysis.train.cost import flops_of_picture
    from kamim_analysis.train.objectives.simmim import SimMIM

    flops = flops_of_picture(recipe_of(setting, SimMIM(), 8, compiled=False))
    yield Row("SimMIM: operations of a picture, forward and backward", flops / 1e9, "GFLOP")
    variants = [(512, False), (512, True), (1024, True), (256, True)]
    for batch, compiled in setting.of(variants, [(8, False), (8, True)]):
        if setting.late:
            yield Row(f"SimMIM, batch {batch}{', compiled blocks' * compiled}", "skipped: no time left")
            continue
        yield from simmim_step(setting, batch, compiled, flops)


def simmim_step(setting: Setting, batch: int, compiled: bool, flops: float) -> Iterator[Row]:
    """One batch size, eager or compiled."""
    from kamim_analysis.train.objectives.simmim import SimMIM

    name = f"SimMIM, batch {batch}{', compiled blocks' * compiled}"
    with training(setting, recipe_of(setting, SimMIM(), batch, compiled=compiled)) as (run, step):
        stay_on_device(run)
        times = seconds(setting, step, setting.of(20, 3), setting.of(5, 1))
        row = rate_row(name, batch, times, "images/s")
        yield row
        setting.found["step"] = max(setting.found.get("step", 0.0), float(row.value))
        if "matrix" in setting.found:
            share, low, high = (
                flops * one / 1e12 / setting.found["matrix"] for one in (row.value, row.low or 0.0, row.high or 0.0)
            )
            yield Row(f"{name}: share of the matrix rate", 100 * share, "%", 100 * low, 100 * high, ">= 45, aim 60")
        if setting.device.type == "cuda":
            yield Row(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
            yield Row(f"{name}: what a step waits for the device for", first_wait(step), asked="nothing")


def first_wait(step: Callable[[], object]) -> str:
    """What the first synchronisation within some steps is, if there is one."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    except RuntimeError as error:
        at = error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        where = f"{Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}" if at is not None else "?"
        return f"{str(error).splitlines()[0]} ({where})"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "nothing"


def kamim(setting: Setting) -> Iterator[Row]:
    """KAMIM's step against SimMIM's, crops and keypoints made on the device in both."""
    from kamim_analysis.train.objectives.kamim import KAMIM
    from kamim_analysis.train.objectives.simmim import SimMIM

    batch = setting.of(512, 8)
    weighted, plain = (
        recipe_of(setting, objective, batch, compiled=not setting.toy, source="photographs", device_augment=True)
        for objective in (KAMIM(), SimMIM())
    )
    with training(setting, weighted) as (run, step), training(setting, plain) as (plain_run, plain_step):
        run.batches, plain_run.batches = Finishing(run.batches), Finishing(plain_run.batches)
        for one in (step, plain_step):
            seconds(setting, one, 1, setting.of(5, 1))
        rounds = setting.of(15, 3)
        yield ratio_row(setting, "KAMIM / SimMIM, device keypoints", step, plain_step, rounds, "<= 1.02")
        times = seconds(setting, lambda: next(run.batches), rounds)
        yield rate_row("KAMIM: crop, flip and keypoints of a batch alone", batch, times, "images/s")


def fast(setting: Setting) -> Iterator[Row]:
    """FAST in batches: its rate, and whether it is OpenCV's."""
    import device_fast

    for compiled in setting.of([True, False], [False]):
        name = f"batched FAST, 192 px, {'compiled' if compiled else 'eager'}"
        rate = device_fast.rate(setting.device, compiled, setting.of(512, 4))
        yield Row(name, rate, "images/s", asked=">= 200,000" * compiled)
        yield Row(f"{name}: pixels unlike OpenCV's", device_fast.identical(setting.device, compiled), "", asked="0")


def end_to_end(setting: Setting) -> Iterator[Row]:
    """SimMIM and KAMIM from packed shards on this disk, with all cores."""
    from kamim_analysis.train import loop
    from kamim_analysis.train.loading_cost import rate_of_workers
    from kamim_analysis.train.objectives.kamim import KAMIM

    cores = len(os.sched_getaffinity(0))
    batch, workers = setting.of(512, 8), setting.of(cores, 1)
    with tempfile.TemporaryDirectory() as folder:
        source = packed(Path(folder), setting.of(1024, 16), workers)
        for device_augment in (True, False):
            name = f"KAMIM from shards, {'device_augment' if device_augment else 'all augmentation in workers'}"
            data = {"source": source, "device_augment": device_augment}
            recipe = recipe_of(setting, KAMIM(), batch, compiled=not setting.toy, workers=workers, **data)
            with training(setting, recipe) as (_run, step):
                times = seconds(setting, step, setting.of(30, 2), setting.of(10, 1))
            # batches come in bursts, so the mean counts
            reached = batch / float(times.mean())
            yield Row(f"{name}, {workers} workers", reached, "images/s")
            if "step" in setting.found:
                share = 100 * reached / setting.found["step"]
                yield Row(f"{name}: share of SimMIM's best step on device data", share, "%", asked=">= 90")
            fed = rate_of_workers(recipe, loop.begin(recipe), setting.of(500, 20), workers)
            yield Row(f"{name}: loading alone", 1 / fed.seconds, "images/s", 1 / fed.high, 1 / fed.low)
            if "step" in setting.found:
                needed = 0.9 * setting.found["step"] * fed.seconds * workers
                yield Row(f"{name}: cores that feed 90% of that step", needed, "cores")
            if setting.late:
                return


def packed(folder: Path, count: int, workers: int) -> str:
    """JPEGs of the size of ImageNet's, packed at 256 px."""
    from PIL import Image

    from kamim_analysis import photographs
    from kamim_analysis.commands import pack

    tree = folder / "tree" / "all"
    tree.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(photographs.crop(i, "train", 0)[0]).resize((341, 256)).save(tree / f"{i}.jpg", quality=92)
    with contextlib.redirect_stdout(None):
        pack.run([str(tree.parent), "--out", str(folder / "shards"), "--workers", str(workers)])
    return str(folder / "shards")


def checkpoints(setting: Setting) -> Iterator[Row]:
    """How long training waits for a checkpoint."""
    from kamim_analysis.train.objectives.simmim import SimMIM

    with training(setting, recipe_of(setting, SimMIM(), setting.of(256, 8), compiled=False)) as (run, step):
        stay_on_device(run)
        usual = float(np.median(seconds(setting, step, 5)))
        stalls, writing = [], []
        for number in range(1, setting.of(5, 3)):
            synchronize(setting)
            since = time.perf_counter()
            run.checkpoints.save(number)
            stalls.append(time.perf_counter() - since)
            run.checkpoints.close()
            writing.append(time.perf_counter() - since)
            step()
    middle, low, high = median_of(np.array(stalls[1:] or stalls))  # the first makes its buffers
    yield Row("checkpoint: save() until training goes on", 1e3 * middle, "ms", 1e3 * low, 1e3 * high)
    yield Row("checkpoint: save() until it is written and flushed", float(np.median(writing)), "s")
    yield Row("checkpoint: stall as a share of 200 steps", 100 * middle / (200 * usual), "%", asked="< 2")


def synchronize(setting: Setting) -> None:
    """Wait for the device."""
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
