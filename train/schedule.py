"""Optimizer and learning rate."""

from typing import Any

import torch
from torch import nn

from .recipe import Optim


def build_optimizer(model: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW; with `decay_biases_and_norms` false, one-dimensional weights form a group of their own without decay."""
    weights = [p for p in model.parameters() if p.requires_grad]
    if optim.decay_biases_and_norms:
        groups: list[dict[str, Any]] = [{"params": weights}]
    else:
        groups = [
            {"params": [p for p in weights if p.ndim > 1]},
            {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        ]
    fused = weights[0].is_cuda
    return torch.optim.AdamW(
        groups, lr=optim.learning_rate, betas=optim.betas, weight_decay=optim.weight_decay, fused=fused
    )


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
