"""What training on a picture costs: the floating-point operations of its passes."""

from dataclasses import replace
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from kamim_analysis.encoders import compute_buffers

from .recipe import Recipe
from .samples import TrainingSamples, first_samples
from .start import Start
from .views import Augmentation

# masks of unequal size make pictures cost unequally; with AttMask's a fiftieth of the whole
_PICTURES = 4


def flops_of_picture(recipe: Recipe) -> float:
    """Floating-point operations of one picture's forward and backward passes, augmentation and optimizer left out.

    Those of all matrix products and convolutions of the objective's own module, teacher and decoder included, each
    counted once, however attention is computed; a multiplication and its addition are two. Mean over a few of the
    bundled photographs, whatever the recipe's data. Nothing is multiplied, so it takes a second.
    """
    recipe = replace(recipe, data=replace(recipe.data, source="photographs", root=None, per_class=None))
    with torch.random.fork_rng(devices=[]):
        with init_empty_weights():
            start = recipe.objective.start(recipe)
            module = recipe.objective.build(start)
        _allocate(module)
        compute_buffers(module)
        batch = _batch(recipe, start, module.encoder)
        # the counter is asked first and hands on to the one that does not compute; fused attention, which computes some
        # products twice and is not counted in torch 2.8, is taken apart
        with sdpa_kernel(SDPBackend.MATH), _Uncomputed(), FlopCounterMode(display=False) as counter:
            module(batch).total.backward()
    return float(counter.get_total_flops()) / _PICTURES


def _allocate(module: nn.Module) -> None:
    """Zeros for weights that take no memory yet; the system makes room for them when they are first written to."""
    for owner in module.modules():
        for name, weight in owner.named_parameters(recurse=False):
            if weight.is_meta:
                owner.register_parameter(name, nn.Parameter(torch.zeros(weight.shape), weight.requires_grad))


def _batch(recipe: Recipe, start: Start, encoder: Any) -> dict[str, Tensor]:
    """The first samples of a run."""
    view = recipe.objective.view(Augmentation.of(recipe.data), encoder)
    samples = TrainingSamples(start.pictures, view, recipe.seed)
    return samples.batch(first_samples(start.pictures, _PICTURES, recipe.seed))


class _Uncomputed(TorchDispatchMode):
    """Inside `with`, what the counter counts gives zeros of the right shape; all else, masks among it, is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's result."""
        if func._overloadpacket not in flop_registry:
            return func(*args, **(kwargs or {}))
        inputs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs or {}))
        return tree_map_only(Tensor, lambda shape: torch.zeros_like(shape, device="cpu"), func(*inputs[0], **inputs[1]))
