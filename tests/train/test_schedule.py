"""Optimizer groups and learning rate."""

import math

import pytest
import torch
from torch import nn

from kamim_analysis.train.recipe import Optim
from kamim_analysis.train.schedule import build_optimizer, build_schedule


def rate(step: int, optim: Optim, steps_per_epoch: int) -> float:
    """The schedule in closed form: a line up, then half a cosine down."""
    warmup = optim.warmup_epochs * steps_per_epoch
    total = optim.epochs * steps_per_epoch
    if step < warmup:
        return optim.warmup_learning_rate + (optim.learning_rate - optim.warmup_learning_rate) * step / warmup
    share = (step - warmup) / (total - warmup)
    span = optim.learning_rate - optim.min_learning_rate
    return optim.min_learning_rate + span * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize("step", [0, 1, 49, 50, 51, 275, 499])
def test_cosine_with_warm_up(step: int) -> None:
    optim = Optim(epochs=50, warmup_epochs=5.0)
    optimizer = build_optimizer(nn.Linear(2, 2), optim)
    build_schedule(optimizer, optim, steps_per_epoch=10).step_update(step)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate(step, optim, 10), rel=1e-9)


def test_every_weight_decays_as_in_the_paper_unless_told_otherwise() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    (group,) = build_optimizer(model, Optim()).param_groups
    assert len(group["params"]) == 4
    assert group["weight_decay"] == 0.05
    decayed, spared = build_optimizer(model, Optim(decay_biases_and_norms=False)).param_groups
    assert [p.ndim for p in decayed["params"]] == [2]
    assert [p.ndim for p in spared["params"]] == [1, 1, 1]
    assert spared["weight_decay"] == 0
    assert torch.equal(decayed["params"][0], model[0].weight)
