"""The training loop: samples -> objective -> optimizer step -> log, look, save."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from kamim_analysis.data import Unreadable
from kamim_analysis.encoders import anatomy
from kamim_analysis.runtime import resolve_precision

from . import checkpoint, run_directory
from .auto_temperature import with_temperature
from .metrics_log import MetricsLog
from .objective_module import ObjectiveModule
from .progress import Progress
from .recipe import Recipe
from .samples import Order, TrainingSamples, load_samples
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
    out: Path
    accelerator: Accelerator
    objective: ObjectiveModule
    wrapped: Any
    optimizer: Any
    schedule: Schedule
    order: Order
    batches: Iterator[Any]
    unreadable: Unreadable
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
        with MetricsLog(out, run.first_step, run.last_step, active=run.accelerator.is_main_process) as metrics:
            _steps(run, metrics, monitor)
    # a run killed after its last checkpoint still lacks the encoder
    if run.accelerator.is_main_process and not (complete and (out / checkpoint.ENCODER).is_file()):
        checkpoint.save_encoder(out, run.objective, max(run.first_step, run.last_step), as_dict(recipe))
    run.unreadable.check()
    whole = recipe.optim.epochs * run.order.steps_per_epoch
    return Trained(run.objective, max(run.first_step, run.last_step) >= whole)


def _build(recipe: Recipe, out: Path, start: Start) -> _Run:
    """Everything up to the first step. The run directory is made last, so that a refusal leaves nothing behind."""
    pictures = start.pictures
    accelerator = _accelerator(recipe)
    order = Order(
        length=len(pictures),
        batch_size=recipe.optim.batch_size,
        seed=recipe.seed,
        accumulate=recipe.efficiency.accumulate,
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    objective = recipe.objective.build(start)
    view = recipe.objective.view(Augmentation.of(recipe.data), objective.encoder)
    if recipe.efficiency.compile:
        for encoder in objective.trained_encoders:
            for block in anatomy(encoder).blocks:
                encoder.get_submodule(block.path).compile()
    objective.to(accelerator.device)
    optimizer = build_optimizer(objective, recipe.optim, objective.rate_scales)
    first_step = checkpoint.load(out, objective, optimizer)
    schedule = Schedule(optimizer, recipe.optim, order.steps_per_epoch)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    samples = TrainingSamples(pictures, view, recipe.seed)
    order = replace(order, first_step=first_step)
    batches = load_samples(samples, order, workers=recipe.efficiency.workers, pin=accelerator.device.type == "cuda")
    if accelerator.is_main_process:
        run_directory.create(out, recipe)
    total = recipe.optim.epochs * order.steps_per_epoch
    last_step = min(total, recipe.max_steps or total)
    unreadable = Unreadable(len(pictures), recipe.data.max_unreadable)
    return _Run(
        recipe,
        out,
        accelerator,
        objective,
        wrapped,
        optimizer,
        schedule,
        order,
        batches,
        unreadable,
        first_step,
        last_step,
    )


def _accelerator(recipe: Recipe) -> Accelerator:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(recipe.efficiency.precision, device)
    return Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        gradient_accumulation_steps=recipe.efficiency.accumulate,
        cpu=device.type == "cpu",
    )


def _steps(run: _Run, metrics: MetricsLog, monitor: Monitor | None) -> None:
    """All steps from the first to the last."""
    recipe = run.recipe
    sums: dict[str, torch.Tensor] = {}
    logged_at, since = run.first_step, time.monotonic()
    run.wrapped.train()
    for step in range(run.first_step + 1, run.last_step + 1):
        progress = Progress(step - 1, run.order.steps_per_epoch, recipe.optim.epochs)
        run.schedule.set(progress)
        # stochastic depth draws from a state of its own at each step, so there is none to save and restore
        torch.manual_seed(_step_seed(recipe.seed, step, run.accelerator.process_index))
        for name, value in _step(run, progress).items():
            sums[name] = sums.get(name, 0) + value
        if step % recipe.log_every == 0 or step == run.last_step:
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
        since += _save_and_look(run, step, metrics, monitor)


def _means(run: _Run, sums: dict[str, torch.Tensor], steps: int) -> dict[str, float]:
    """Sums over steps as means over steps and processes."""
    means = run.accelerator.reduce(torch.stack([value.float() for value in sums.values()]) / steps, reduction="mean")
    return dict(zip(sums, means.tolist(), strict=True))


def _save_and_look(run: _Run, step: int, metrics: MetricsLog, monitor: Monitor | None) -> float:
    """Checkpoint and monitor where they are due, on the main process; the seconds that training waited for them."""
    recipe, last = run.recipe, step == run.last_step
    watch_every = recipe.monitor.every_epochs * run.order.steps_per_epoch
    save = last or step % recipe.checkpoint_every == 0
    look = monitor is not None and watch_every > 0 and (last or step % watch_every == 0)
    if not (save or look):
        return 0.0
    start = time.monotonic()
    if save and run.accelerator.is_main_process:
        checkpoint.save(
            run.out, run.objective, run.optimizer, step, recipe=as_dict(recipe), keep=recipe.keep_checkpoints
        )
    if look and run.accelerator.is_main_process:
        assert monitor is not None
        monitor(run.objective.model, step, metrics)
    run.accelerator.wait_for_everyone()
    return time.monotonic() - start


def _step_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _step(run: _Run, progress: Progress) -> dict[str, torch.Tensor]:
    """One optimizer step over all its micro-batches; the mean of their numbers, still on the device."""
    sums: dict[str, torch.Tensor] = {}
    run.objective.begin_step(progress)
    for _micro in range(run.recipe.efficiency.accumulate):
        batch, failed = next(run.batches)
        run.unreadable.add(failed)
        batch = {name: tensor.to(run.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
        with run.accelerator.accumulate(run.wrapped):
            loss = run.wrapped(batch)
            run.accelerator.backward(loss.total)
            if run.accelerator.sync_gradients:
                sums["gradient_norm"] = _clip(run).detach()
                run.objective.adjust_gradients(progress)
            run.optimizer.step()
            run.optimizer.zero_grad()
        for name, value in ({"loss": loss.total} | loss.parts).items():
            sums[name] = sums.get(name, 0) + value.detach() / run.recipe.efficiency.accumulate
    run.objective.end_step(progress)
    return sums


def _clip(run: _Run) -> torch.Tensor:
    """Clip the gradients by the recipe; their norm before that."""
    optim = run.recipe.optim
    if optim.clip_by == "weight":
        return clip_each(run.objective.parameters(), optim.clip_norm)
    norm: torch.Tensor = run.accelerator.clip_grad_norm_(run.wrapped.parameters(), optim.clip_norm)
    return norm
