"""A copy of a module that follows it slowly: the teacher, target or momentum encoder."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from .dtensors import local

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """The same weights, none of which gets a gradient."""
    return deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(copy: nn.Module, module: nn.Module, momentum: float) -> None:
    """copy <- momentum x copy + (1 - momentum) x module, over all parameters.

    Weights that lie in parts (FSDP) lie alike in both. Buffers (of Swin's masks and the like) are constants and left
    alone.
    """
    averaged, current = (local(weight.detach() for weight in one.parameters()) for one in (copy, module))
    torch._foreach_lerp_(averaged, current, 1 - momentum)
