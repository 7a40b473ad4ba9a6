"""Optimizer groups and learning rate."""

import math

import pytest
import torch
from torch import nn

from kamim_analysis.train.ema import follow, frozen_copy
from kamim_analysis.train.progress import Progress
from kamim_analysis.train.recipe import Optim
from kamim_analysis.train.schedule import Schedule, build_optimizer, clip


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
    Schedule(optimizer, optim, steps_per_epoch=10).set(Progress(step, 10, optim.epochs))
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


@pytest.mark.parametrize("step", [0, 250, 499])
def test_weight_decay_follows_half_a_cosine_and_spares_what_does_not_decay(step: int) -> None:
    optim = Optim(epochs=50, weight_decay=0.04, weight_decay_end=0.4, decay_biases_and_norms=False)
    optimizer = build_optimizer(nn.Linear(2, 2), optim)
    Schedule(optimizer, optim, steps_per_epoch=10).set(Progress(step, 10, 50))
    expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / 500))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(expected), 0.0]


def test_each_gradient_is_clipped_by_its_own_norm() -> None:
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 4.0, 0.0]), torch.full((2, 2), 0.5)
    total = clip(weights, 2.0, each=True)
    assert total.item() == pytest.approx(26**0.5)
    torch.testing.assert_close(weights[0].grad, torch.tensor([1.2, 1.6, 0.0]))
    assert torch.equal(weights[1].grad, torch.full((2, 2), 0.5))


def test_a_copy_follows_by_the_momentum_and_gets_no_gradient() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    copy = frozen_copy(module)
    before = [weight.double() for weight in copy.parameters()]
    for weight in module.parameters():
        weight.data += torch.randn_like(weight)
    follow(copy, module, 0.9)
    for old, new, target in zip(before, copy.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(new.double(), 0.9 * old + 0.1 * target.double(), rtol=1e-6, atol=1e-7)
        assert not new.requires_grad
        assert target.requires_grad
