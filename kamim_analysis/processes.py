"""One process, or several that torchrun started: whose pictures are whose, and how what they found comes together.

    torchrun --nproc_per_node 4 -m kamim_analysis analyze MODEL --data DATA --out OUT

Each process takes a contiguous run of whole batches, so that batches are those of a single process, and what is
concatenated in the order of processes is in the order of the data.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch import distributed as dist

from .errors import UserError
from .output import written_whole

# the first process draws t-SNE and figures of a model while the others wait with the next one
_PATIENCE = timedelta(hours=6)


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes, prints and shows progress."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """With the other processes of torchrun, if there are any: tensors on CPU and CUDA can be exchanged within."""
    if count() == 1 or dist.is_initialized():
        yield
        return
    if not is_first():
        logging.getLogger("kamim_analysis").setLevel(logging.WARNING)
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend += ",cuda:nccl"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def written_by_first(out: Path, *, overwrite: bool) -> Iterator[Path | None]:
    """`output.written_whole` in the first process; None in the others, which write nothing."""
    if is_first():
        with written_whole(out, overwrite=overwrite) as aside:
            yield aside
    else:
        yield None


def own(indices: Sequence[int], batch_size: int) -> Sequence[int]:
    """This process's part: whole batches, in order, as evenly as batches divide.

    Raises UserError where that leaves a process without any.
    """
    if count() == 1:
        return indices
    batches = -(-len(indices) // batch_size)
    if batches < count():
        raise UserError(
            f"{len(indices)} images in batches of {batch_size} are too few for {count()} processes; "
            f"take a --batch_size of {max(len(indices) // count(), 1)} or fewer processes"
        )
    start, stop = (batches * part // count() * batch_size for part in (rank(), rank() + 1))
    return indices[start:stop]


def gathered(values: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "i ..."]:
    """All processes' parts, in their order."""
    if not dist.is_initialized():
        return values
    from torchmetrics.utilities.distributed import gather_all_tensors

    return torch.cat(gather_all_tensors(values))


def united(names: set[str]) -> set[str]:
    """What any process has."""
    if not dist.is_initialized():
        return names
    found: list[set[str]] = [set() for _ in range(count())]
    dist.all_gather_object(found, names)
    return set().union(*found)
