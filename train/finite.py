"""Losses and gradients that are not finite: the weights stay clean, and what was in the batch is told."""

import json
import logging
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kamim_analysis.data import Pictures
from kamim_analysis.errors import UserError, some
from kamim_analysis.output import unwritable

from .metrics_log import drop_after
from .parallel import Parallel
from .recipe import Recipe
from .samples import Order

log = logging.getLogger(__name__)

REPORT = "nonfinite.jsonl"
#: steps that a device is given to be done with a step's numbers before the loop looks at them
_LAG = 2


class _Seen(NamedTuple):
    """What a step met, on its way to the CPU."""

    step: int
    numbers: Float[Tensor, " 3"]
    """Whether the step was skipped (1 or 0), loss, gradient norm."""
    arrived: torch.cuda.Event | None


class Guard:
    """Keeps what is not finite out of the weights, without waiting for the device.

    The norm of all gradients decides: it is the same in all processes, and a loss that is not finite makes it so, even
    where the loss was another process's. `newest` names the last complete checkpoint.
    """

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        order: Order,
        pictures: Pictures,
        parallel: Parallel,
        newest: Callable[[], str],
    ) -> None:
        self.path, self.recipe, self.order, self.pictures = out / REPORT, recipe, order, pictures
        self.parallel, self.newest = parallel, newest
        self.waiting: deque[_Seen] = deque()
        if parallel.is_first:  # told by steps that are now done again
            drop_after(self.path, order.first_step)

    def protect(
        self, optimizer: Any, step: int, loss: Float[Tensor, ""], gradient_norm: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Before the optimizer's step, on all processes: it changes nothing where the norm is not finite.

        1 on the device where that is so, else 0. torch's fused optimizers skip the step that a gradient scaler finds
        infinite, moments and count of steps included, and read that on the device.
        """
        skipped = (~gradient_norm.isfinite()).float()
        optimizer.found_inf = skipped
        numbers = torch.stack([skipped, loss.detach().float(), gradient_norm.float()])
        arrived = torch.cuda.Event() if numbers.is_cuda else None
        # to pinned memory, as torch does when it need not wait
        self.waiting.append(_Seen(step, numbers.to("cpu", non_blocking=True), arrived))
        if arrived is not None:
            arrived.record()
        return skipped

    def check(self, step: int, *, wait: bool) -> None:
        """After a step: write down, and raise where the recipe says stop, what a step before it (or this one) met.

        The same in all processes at the same step. `wait` looks at this step too, as must be done before it is saved.
        """
        while self.waiting and (wait or self.waiting[0].step <= step - _LAG or self.waiting[0].arrived is None):
            seen = self.waiting.popleft()
            if seen.arrived is not None:
                seen.arrived.synchronize()
            skipped, loss, norm = seen.numbers.tolist()
            if skipped:
                self._tell(seen.step, loss, norm)

    def _tell(self, step: int, loss: float, norm: float) -> None:
        """Raises UserError where the recipe says stop."""
        samples = self.order.samples_of(step)
        names = [self.pictures.identity(index) for _epoch, index in samples]
        what = f"step {step}: the gradient's norm is {norm}, the loss {loss}"
        if self.parallel.is_first:
            entry = {
                "step": step,
                # NaN and infinity are no JSON
                "loss": loss if math.isfinite(loss) else str(loss),
                "gradient_norm": str(norm),
                "last_checkpoint": self.newest(),
                "seed": self.recipe.seed,
                "sample_seeds": "numpy.random.SeedSequence([seed, epoch, index])",
                "epoch": samples[0][0],
                "indices": [index for _epoch, index in samples],
                "pictures": names,
            }
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
            except OSError as error:
                raise unwritable(self.path, error) from error
            log.warning("%s; the weights stay as they were; pictures: %s", what, some(names, 3))
        if self.recipe.on_nonfinite == "stop":
            raise UserError(
                f"{what}; its pictures are in {str(self.path)!r}; last checkpoint: {self.newest() or 'none yet'}. "
                "The same command comes to the same step: add --on_nonfinite skip to leave such steps out, or change "
                "settings, such as a lower --optim.learning_rate, and add --force"
            )
