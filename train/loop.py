"""The training loop: samples -> objective -> optimizer step -> log, look, save."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kamim_analysis.data import Unreadable
from kamim_analysis.encoders import anatomy

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
from .schedule import Schedule, build_optimizer, clip_each
from .settings import as_dict
from .start import Start
from .views import Augmentation

log = logging.getLogger(__name__)
Monitor = Callable[[Any, int, MetricsLog], None]
"""Looks at the objective's model beside the training path: monitor(model, step, log)."""


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
    complete: bool
    """Whether the recipe's whole schedule is done, not only its `max_steps`."""


def begin(recipe: Recipe) -> Start:
    """Pictures and encoder that the recipe starts from, random weights by its seed."""
    torch.manual_seed(recipe.seed)
    return recipe.objective.start(recipe)


def train(recipe: Recipe, out: Path, monitor: Monitor | None = None, start: Start | None = None) -> Trained:
    """Train by a recipe into the run directory `out`; an existing run of the same recipe goes on where it stopped.

    `start` is what `begin` returned, for a caller who needs it too. Raises UserError for settings that do not fit, and
    after the run when too many pictures could not be read.
    """
    run_directory.check(out, recipe)
    start = start or begin(recipe)
    recipe = with_temperature(recipe, out, start)
    run = _build(recipe, out, start)
    complete = run.first_step >= run.last_step
    if complete:
        log.info("%s is already complete at step %d", out, run.first_step)
    else:
        with (
            MetricsLog(out, run.first_step, run.last_step, active=run.parallel.is_first) as metrics,
            Interruption(run.parallel) as interruption,
        ):
            _steps(run, metrics, monitor, interruption)
    # a run killed after its last checkpoint still lacks the encoder
    if not (complete and (out / checkpoint.ENCODER).is_file()):
        model: Any = run.parallel.whole_model(run.objective)
        if run.parallel.is_first:
            at = max(run.first_step, run.last_step)
            checkpoint.save_encoder(out, run.objective, model.encoder.state_dict(), at, as_dict(recipe))
    run.batches.unreadable.check()
    whole = recipe.optim.epochs * run.order.steps_per_epoch
    return Trained(run.objective, max(run.first_step, run.last_step) >= whole)


def _build(recipe: Recipe, out: Path, start: Start) -> _Run:
    """Everything up to the first step. The run directory is made last, so that a refusal leaves nothing behind."""
    pictures = start.pictures
    parallel = Parallel(recipe.efficiency)
    order = Order(
        length=len(pictures),
        batch_size=recipe.optim.batch_size,
        seed=recipe.seed,
        accumulate=recipe.efficiency.accumulate,
        processes=parallel.processes,
        rank=parallel.rank,
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
        run_directory.create(out, recipe)
    return _Run(
        recipe=recipe,
        parallel=parallel,
        objective=objective,
        wrapped=wrapped,
        optimizer=optimizer,
        schedule=Schedule(optimizer, recipe.optim, order.steps_per_epoch),
        order=order,
        batches=Batches(samples, order, unreadable, parallel.device, workers=recipe.efficiency.workers),
        checkpoints=checkpoints,
        guard=Guard(out, recipe, order, pictures, parallel),
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
        run.guard.check(step)
        signal = interruption.asked()
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
        since += _save_and_look(run, step, metrics, monitor, leaving=signal is not None)
        if signal is not None:
            run.checkpoints.close()
            interruption.leave(signal, step)
    run.checkpoints.close()


def _means(run: _Run, sums: dict[str, torch.Tensor], steps: int) -> dict[str, float]:
    """Sums over steps as means over steps and processes."""
    means = run.parallel.mean(torch.stack([value.float() for value in sums.values()]) / steps)
    return dict(zip(sums, means.tolist(), strict=True))


def _save_and_look(run: _Run, step: int, metrics: MetricsLog, monitor: Monitor | None, *, leaving: bool) -> float:
    """Checkpoint and monitor where they are due, on the main process; the seconds that training waited for them."""
    recipe, last = run.recipe, step == run.last_step
    watch_every = recipe.monitor.every_epochs * run.order.steps_per_epoch
    save = last or leaving or step % recipe.checkpoint_every == 0
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
            loss = run.wrapped(batch)
            run.parallel.backward(loss.total / parts)
        for name, value in ({"loss": loss.total} | loss.parts).items():
            sums[name] = sums.get(name, 0) + value.detach() / parts
    sums["gradient_norm"] = _clip(run).detach()
    run.objective.adjust_gradients(progress)
    run.guard.protect(run.optimizer, progress.step + 1, sums["loss"], sums["gradient_norm"])
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.objective.end_step(progress)
    return sums


def _clip(run: _Run) -> torch.Tensor:
    """Clip the gradients by the recipe; their norm before that."""
    optim = run.recipe.optim
    if optim.clip_by == "weight":
        return clip_each(run.objective.parameters(), optim.clip_norm)
    return run.parallel.clip(run.wrapped, optim.clip_norm)
