"""What the loop trains: a module that turns a batch of samples into a loss, and what it offers beside."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kamim_analysis.reconstruction import MEAN, STD


class Loss(NamedTuple):
    """What a step minimises, and detached numbers to log beside it."""

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]


class ObjectiveModule(nn.Module):
    """A model with its loss: `module(batch) -> Loss`. A checkpoint holds `model`, whose `encoder` is the timm model."""

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

    @abstractmethod
    def describe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint must say beside its weights, of a run by this recipe (plain data)."""

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """The loss of a batch of samples."""
