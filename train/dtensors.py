"""Weights and gradients that lie in parts on several processes (FSDP2's DTensors), beside ordinary tensors."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What of each tensor lies on this process, sharing its memory: all of an ordinary one."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """A tensor's parts together, on every process. All processes call this, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has whole, on the device of `like` and in parts where that lies in parts."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    # None: each process takes its part of what it has, and nothing is sent
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def norms(tensors: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """The Euclidean norm of each tensor over all its parts, by one exchange for all of them."""
    own = torch.stack(list(torch._foreach_norm(local(tensors))))
    if not isinstance(tensors[0], DTensor):
        return own
    squares = own.square()
    dist.all_reduce(squares, group=tensors[0].device_mesh.get_group())
    return squares.sqrt()
