"""Optimizer and learning rate."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from .recipe import Optim


def build_optimizer(
    model: nn.Module, optim: Optim, rate_scales: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.AdamW:
    """AdamW over the weights that require a gradient; with `decay_biases_and_norms` false, one-dimensional ones do not
    decay.

    `rate_scales` multiplies the learning rate of the parameters that it names, at every step of the schedule. The first
    group has the schedule's own rate, if any has.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            decay = optim.weight_decay if optim.decay_biases_and_norms or weight.ndim > 1 else 0.0
            groups.setdefault((decay, rate_scales.get(name, 1.0)), []).append(weight)
    described: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": decay, "lr_scale": scale}  # timm's schedulers know `lr_scale`
        for (decay, scale), weights in sorted(groups.items(), reverse=True, key=lambda item: item[0])
    ]
    fused = described[0]["params"][0].is_cuda
    return torch.optim.AdamW(described, lr=optim.learning_rate, betas=optim.betas, fused=fused)


def build_schedule(optimizer: torch.optim.Optimizer, optim: Optim, steps_per_epoch: int) -> Any:
    """timm's cosine with linear warm-up; `schedule.step_update(step)` sets the rate of optimizer step `step` (0-based).

    The whole run, warm-up included, takes epochs x steps_per_epoch steps.
    """
    from timm.scheduler.cosine_lr import CosineLRScheduler

    warmup = round(optim.warmup_epochs * steps_per_epoch)
    return CosineLRScheduler(
        optimizer,
        t_initial=optim.epochs * steps_per_epoch - warmup,
        lr_min=optim.min_learning_rate,
        warmup_t=warmup,
        warmup_lr_init=optim.warmup_learning_rate,
        warmup_prefix=True,
        t_in_epochs=False,
    )
