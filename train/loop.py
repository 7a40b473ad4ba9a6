"""The training loop: samples -> objective -> optimizer step -> log, look, save."""

import logging
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kamim_analysis import processes
from kamim_analysis.data import Unreadable
from kamim_analysis.encoders import anatomy
from kamim_analysis.lock import locked

from . import checkpoint, run_directory
from .auto_temperature import with_temperature
from .batches import Batches
from .checkpoint import Checkpoints
from .finite import Guard
from .interruption import Interruption
from .metrics_log import MetricsLog
from .objective_module import ObjectiveModule
from .parallel import Parallel
from .progress import Progress
from .recipe import Recipe
from .samples import Order, TrainingSamples
from .schedule import Schedule, build_optimizer, clip
from .settings import as_dict
from .split import accumulation
from .start import Start
from .views import Augmentation

log = logging.getLogger(__name__)
Monitor = Callable[[Any, int, MetricsLog], None]
"""Looks at the objective's model beside the training path: monitor(model, step, log)."""
_SKIPPED = "skipped_steps"


@dataclass
class _Run:
    """The parts of a running training."""

    recipe: Recipe
    parallel: Parallel
    objective: ObjectiveModule
    wrapped: Any
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    order: Order
    batches: Batches
    checkpoints: Checkpoints
    guard: Guard
    first_step: int
    last_step: int


@dataclass(frozen=True)
class Trained:
    """Where a training has come to."""

    objective: ObjectiveModule
    model: Any
    """The objective's model with all its weights, in the first process."""
    complete: bool
    """Whether the recipe's whole schedule is done, not only its `max_steps`."""


def begin(recipe: Recipe) -> Start:
    """Pictures and encoder that the recipe starts from, random weights by its seed."""
    torch.manual_seed(recipe.seed)
    return recipe.objective.start(recipe)


def train(
    recipe: Recipe, out: Path, monitor: Monitor | None = None, start: Start | None = None, *, force: bool = False
) -> Trained:
    """Train by a recipe into the run directory `out`; an existing run of the same recipe goes on where it stopped.

    With `force` so does a run of another recipe, by this one. `start` is what `begin` returned, for a caller who needs
    it too. SIGTERM, SIGUSR1 and Ctrl-C are followed after a step that is saved, by SystemExit or KeyboardInterrupt.
    Raises UserError for settings that do not fit, where another process trains in `out`, and after the run when too
    many pictures could not be read.
    """
    run_directory.check(out, recipe, force=force)
    with locked(out) if processes.is_first() else nullcontext():
        run_directory.check(out, recipe, force=force)  # nobody else changes it any more
        return _train(recipe, out, monitor, start)


def _train(recipe: Recipe, out: Path, monitor: Monitor | None, start: Start | None) -> Trained:
    start = start or begin(recipe)
    recipe = with_temperature(recipe, out, start)
    run = _build(recipe, out, start)
    complete = run.first_step >= run.last_step
    if complete:
        log.info("%s is already complete at step %d", out, run.first_step)
    else:
        with (
            MetricsLog(
                out, run.first_step, run.last_step, run.checkpoints.newest, active=run.parallel.is_first
            ) as metrics,
            Interruption(run.parallel) as interruption,
            closing(run.batches),
            run.checkpoints,
        ):
            _steps(run, metrics, monitor, interruption)
    model: Any = run.parallel.whole_model(run.objective)
    # a run killed after its last checkpoint still lacks the encoder
    if run.parallel.is_first and not (complete and (out / checkpoint.ENCODER).is_file()):
        at = max(run.first_step, run.last_step)
        checkpoint.save_encoder(out, run.objective, model.encoder.state_dict(), at, as_dict(recipe))
    run.batches.unreadable.check()
    whole = recipe.optim.epochs * run.order.steps_per_epoch
    return Trained(run.objective, model, max(run.first_step, run.last_step) >= whole)


def _build(recipe: Recipe, out: Path, start: Start) -> _Run:
    """Everything up to the first step. The run directory is made last, so that a refusal leaves nothing behind."""
    pictures = start.pictures
    parallel = Parallel(recipe.efficiency)
    order = Order(
        length=len(pictures),
        batch_size=recipe.optim.batch_size,
        seed=recipe.seed,
        accumulate=accumulation(recipe.efficiency, recipe.optim.batch_size, parallel.processes),
        processes=parallel.processes,
        rank=parallel.rank,
        shards=pictures.shards,
        mixed_shards=recipe.data.mixed_shards,
    )
    objective = recipe.objective.build(start)
    view = recipe.objective.view(Augmentation.of(recipe.data), objective.encoder)
    if recipe.efficiency.compile:
        for encoder in objective.trained_encoders:
            for block in anatomy(encoder).blocks:
                encoder.get_submodule(block.path).compile()
    wrapped = parallel.wrap(objective)
    optimizer = build_optimizer(objective, recipe.optim, objective.rate_scales)
    checkpoints = Checkpoints(out, recipe, objective, optimizer, parallel)
    order = replace(order, first_step=checkpoints.load())
    samples = TrainingSamples(pictures, view, recipe.seed)
    unreadable = Unreadable(len(pictures), recipe.data.max_unreadable)
    total = recipe.optim.epochs * order.steps_per_epoch
    if parallel.is_first:
        run_directory.create(out, recipe, order.first_step)
    return _Run(
        recipe=recipe,
        parallel=parallel,
        objective=objective,
        wrapped=wrapped,
        optimizer=optimizer,
        schedule=Schedule(optimizer, recipe.optim, order.steps_per_epoch),
        order=order,
        batches=Batches(
            samples, order, unreadable, parallel.device, workers=recipe.efficiency.workers, finish=view.finish
        ),
        checkpoints=checkpoints,
        guard=Guard(out, recipe, order, pictures, parallel, checkpoints.newest),
        first_step=order.first_step,
        last_step=min(total, recipe.max_steps or total),
    )


def _steps(run: _Run, metrics: MetricsLog, monitor: Monitor | None, interruption: Interruption) -> None:
    """All steps from the first to the last, or to a signal; what they leave is written when this returns."""
    recipe = run.recipe
    sums: dict[str, torch.Tensor] = {}
    logged_at, since = run.first_step, time.monotonic()
    run.wrapped.train()
    for step in range(run.first_step + 1, run.last_step + 1):
        progress = Progress(step - 1, run.order.steps_per_epoch, recipe.optim.epochs)
        run.schedule.set(progress)
        # stochastic depth draws from a state of its own at each step, so there is none to save and restore
        torch.manual_seed(_step_seed(recipe.seed, step, run.parallel.rank))
        for name, value in _step(run, progress).items():
            sums[name] = sums.get(name, 0) + value
        signal = interruption.asked()
        save = step == run.last_step or signal is not None or step % recipe.checkpoint_every == 0
        run.guard.check(step, wait=save)
        if step % recipe.log_every == 0 or step == run.last_step or signal is not None:
            numbers = _means(run, sums, step - logged_at)
            seconds = time.monotonic() - since
            numbers |= {
                "epoch": step / run.order.steps_per_epoch,
                "learning_rate": run.optimizer.param_groups[0]["lr"],
                "images_per_second": (step - logged_at) * recipe.optim.batch_size / seconds,
            }
            metrics.write(step, numbers)
            metrics.show(step, numbers, run.objective.diagnosis(numbers))
            sums, logged_at, since = {}, step, time.monotonic()
        since += _save_and_look(run, step, metrics, monitor, save=save)
        if signal is not None:
            run.checkpoints.close()
            interruption.leave(signal, step)
    run.checkpoints.close()


def _means(run: _Run, sums: dict[str, torch.Tensor], steps: int) -> dict[str, float]:
    """Sums over steps as means over processes and steps, those that were skipped left out but counted."""
    names, skipped = [name for name in sums if name != _SKIPPED], sums[_SKIPPED]
    means = torch.stack([sums[name].float() for name in names]) / (steps - skipped)
    *numbers, left_out = run.parallel.mean(torch.cat([means, skipped[None]])).tolist()
    return dict(zip(names, numbers, strict=True)) | ({_SKIPPED: left_out} if left_out else {})


def _save_and_look(run: _Run, step: int, metrics: MetricsLog, monitor: Monitor | None, *, save: bool) -> float:
    """Checkpoint and monitor where they are due, on the main process; the seconds that training waited for them."""
    recipe, last = run.recipe, step == run.last_step
    watch_every = recipe.monitor.every_epochs * run.order.steps_per_epoch
    look = monitor is not None and watch_every > 0 and (last or step % watch_every == 0)
    if not (save or look):
        return 0.0
    start = time.monotonic()
    if save:
        run.checkpoints.save(step)
    if look:
        assert monitor is not None
        model = run.parallel.whole_model(run.objective)
        if run.parallel.is_first:
            # hooks of whoever looks would be traced and compiled too, anew for each shape
            with torch.compiler.set_stance("force_eager"):
                monitor(model, step, metrics)
        run.parallel.wait()
    return time.monotonic() - start


def _step_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _step(run: _Run, progress: Progress) -> dict[str, torch.Tensor]:
    """One optimizer step over all its micro-batches; the mean of their numbers, still on the device."""
    sums: dict[str, torch.Tensor] = {}
    parts = run.order.accumulate
    run.objective.begin_step(progress)
    for i in range(parts):
        batch = next(run.batches)
        with run.parallel.passes(run.wrapped, last=i == parts - 1):
            with run.parallel.autocast():
                loss = run.wrapped(batch)
            run.parallel.backward(loss.total / parts)
        for name, value in ({"loss": loss.total} | loss.parts).items():
            sums[name] = sums.get(name, 0) + value.detach() / parts
    optim = run.recipe.optim
    sums["gradient_norm"] = clip(run.objective.parameters(), optim.clip_norm, each=optim.clip_by == "weight")
    run.objective.adjust_gradients(progress)
    skipped = run.guard.protect(run.optimizer, progress.step + 1, sums["loss"], sums["gradient_norm"])
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.objective.end_step(progress)
    return {name: torch.where(skipped > 0, 0, value) for name, value in sums.items()} | {_SKIPPED: skipped}
