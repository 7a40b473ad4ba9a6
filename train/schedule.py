"""Optimizer, learning rate, weight decay and clipping."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .dtensors import local, norms
from .progress import Progress, cosine
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
    # fused: as nothing else, it can leave a step out without the CPU knowing
    return torch.optim.AdamW(described, lr=optim.learning_rate, betas=optim.betas, fused=True)


class Schedule:
    """Learning rate (timm's cosine with linear warm-up) and weight decay of each optimizer step.

    The whole run, warm-up included, takes epochs x steps_per_epoch steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, optim: Optim, steps_per_epoch: int) -> None:
        from timm.scheduler.cosine_lr import CosineLRScheduler

        self.optimizer, self.optim = optimizer, optim
        warmup = round(optim.warmup_epochs * steps_per_epoch)
        self.rate: Any = CosineLRScheduler(
            optimizer,
            t_initial=optim.epochs * steps_per_epoch - warmup,
            lr_min=optim.min_learning_rate,
            warmup_t=warmup,
            warmup_lr_init=optim.warmup_learning_rate,
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def set(self, progress: Progress) -> None:
        """Rate and decay of this step; groups that do not decay stay so."""
        self.rate.step_update(progress.step)
        if self.optim.weight_decay_end is not None:
            decay = cosine(self.optim.weight_decay, self.optim.weight_decay_end, progress.share)
            for group in self.optimizer.param_groups:
                group["weight_decay"] = decay if group["weight_decay"] else 0.0


def clip(weights: Iterable[nn.Parameter], norm: float, *, each: bool) -> Float[Tensor, ""]:
    """Scale all gradients down together so that their norm is `norm` at most; their norm before that, on the device.

    With `each`, each weight's gradient by its own norm, as DINO's code does. Gradients may lie in parts.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    own = norms(gradients)
    total: Tensor = torch.linalg.vector_norm(own)
    scales = (norm / ((own if each else total) + 1e-6)).clamp(max=1)
    # a list scales each by its own, a tensor all alike
    torch._foreach_mul_(local(gradients), list(scales.unbind()) if each else scales)  # type: ignore[call-overload]
    return total
