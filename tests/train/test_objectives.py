"""Every objective found, and KAMIM's identity with SimMIM."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kamim_analysis import plugins
from kamim_analysis.train.objectives._objective import Objective

PACKAGE = "kamim_analysis.train.objectives"


MASKED = ("kamim", "simmim")


def test_every_objective_found_is_tested() -> None:
    # those of classifiers in test_linear_probe.py and test_fine_tuning.py
    assert plugins.names(PACKAGE) == sorted([*MASKED, "fine_tuning", "linear_probe"])


@pytest.mark.parametrize("name", MASKED)
def test_an_objective_trains_every_weight_of_its_model(
    name: str, build: Callable[..., Any], batch_of: Callable[..., Any]
) -> None:
    module = plugins.load(PACKAGE, name, "objective")
    (objective,) = (v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__)
    assert issubclass(objective, Objective)
    trained = build(objective(mask_unit=8))
    loss = trained(batch_of(objective(mask_unit=8)))
    loss.total.backward()
    without = [key for key, weight in trained.named_parameters() if weight.grad is None]
    assert loss.total.shape == ()
    assert without == []


def test_kamim_with_weights_of_one_is_simmim_bit_for_bit(
    build: Callable[..., Any], batch_of: Callable[..., Any]
) -> None:
    kamim = plugins.load(PACKAGE, "kamim", "objective").KAMIM(mask_unit=8, map_style="points")
    simmim = plugins.load(PACKAGE, "simmim", "objective").SimMIM(mask_unit=8)
    batch = batch_of(kamim)
    batch["density"].fill_(0.125)  # the same density everywhere: exp((D - min D) / T) = exp(0) = 1
    losses, gradients = [], []
    for objective in (kamim, simmim):
        module = build(objective)
        loss = module(batch).total
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([weight.grad.flatten() for weight in module.parameters()]))
    assert torch.equal(*losses)
    assert torch.equal(*gradients)


def test_keypoints_raise_the_weight_of_their_pixels(build: Callable[..., Any], batch_of: Callable[..., Any]) -> None:
    kamim = plugins.load(PACKAGE, "kamim", "objective").KAMIM(mask_unit=8)
    batch = batch_of(kamim)
    module = build(kamim)
    parts = module(batch).parts
    assert parts["mean_weight"] > 1
    batch["density"].zero_()
    assert module(batch).parts["mean_weight"] == 1
