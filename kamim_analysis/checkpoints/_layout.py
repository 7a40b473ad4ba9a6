"""What a layout makes of a state dict."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A timm architecture and its weights, ready for a strict load."""

    architecture: str
    model_args: dict[str, Any]
    encoder: State
    announcements: tuple[str, ...] = ()
    """What was guessed or set aside, a line each, to be told to the user."""
    decoder: State = field(default_factory=dict)
    """Head and mask token of a masked image model (`decoder.0.weight`, `decoder.0.bias`, `mask_token`), if any."""


def depth(state: State, prefix: str) -> int:
    """Number of consecutively numbered sub-modules `prefix`0, `prefix`1, ..."""
    numbers = {int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix)}
    return 1 + max(numbers, default=-1)
