"""What the loop trains: a module that turns a batch of samples into a loss, and what it offers beside."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kamim_analysis.reconstruction import MEAN, STD

from .progress import Progress


class Loss(NamedTuple):
    """What a step minimises, and detached numbers to log beside it."""

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]


class ObjectiveModule(nn.Module):
    """A model with its loss: `module(batch) -> Loss`.

    A checkpoint holds `model`, whose `encoder` is the timm model that is evaluated and exported; whatever a step
    changes must be a weight or a persistent buffer of it. Between batches the loop calls, in this order, `begin_step`,
    the forward and backward passes of all micro-batches, `adjust_gradients`, the optimizer, `end_step`. Numbers over
    the whole batch of several processes or micro-batches are collected in `forward` and exchanged in `end_step`.
    """

    mean: Tensor
    std: Tensor
    rate_scales: Mapping[str, float] = {}
    """By parameter's name, what its learning rate is multiplied by; 1 for those that are not named."""

    def __init__(self, model: nn.Module, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", 255 * torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std)[:, None, None], persistent=False)

    @property
    def encoder(self) -> Any:
        """The timm model."""
        return self.model.encoder

    def normalised(self, images: UInt8[Tensor, "b 3 y x"]) -> Float[Tensor, "b 3 y x"]:
        """Pixels as the encoder is given them."""
        return (images.float() - self.mean) / self.std

    @property
    def trained_encoders(self) -> tuple[Any, ...]:
        """The timm models that get gradients, which may be compiled."""
        return (self.encoder,)

    def begin_step(self, progress: Progress) -> None:
        """What changes before the passes of an optimizer step."""

    def adjust_gradients(self, progress: Progress) -> None:
        """Gradients are clipped; the optimizer has not used them yet."""

    def end_step(self, progress: Progress) -> None:
        """What follows the optimizer's change of the weights."""

    def diagnosis(self, numbers: Mapping[str, float]) -> str:
        """What is wrong with a run that logs these numbers (means since the last line), as "word: why"; else empty."""
        return ""

    @abstractmethod
    def describe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint must say beside its weights, of a run by this recipe (plain data).

        `training` is the recipe. Where `model` is no `MaskedImageModel`: `head` is "mae" with its `head_args`, or None
        where no pixels are predicted; `beside`, the prefixes of weights that belong to training alone; `branches`, by
        name the prefix of every encoder that RUN@NAME opens, that of `encoder.` first.
        """

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """The loss of a batch of samples."""
