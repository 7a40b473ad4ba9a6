"""SimMIM's and KAMIM's loss as a module: a batch of samples in, a loss out."""

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kamim_analysis.density import density_weights
from kamim_analysis.patches import enlarge
from kamim_analysis.reconstruction import (
    MEAN,
    STD,
    MaskedImageModel,
    MaskSettings,
    masked_l1,
    mean_colour_l1,
    pixel_mask,
)


class Loss(NamedTuple):
    """What a step minimises, and detached numbers to log beside it."""

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]


class MaskedObjective(nn.Module):
    """Masked image modelling; with `weight_patch` and `temperature`, weighted by keypoint density."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        mask_unit: int,
        mask_ratio: float,
        weight_patch: int | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.model = MaskedImageModel(encoder)
        self.masking = MaskSettings(unit=mask_unit, ratio=mask_ratio)
        self.weight_patch, self.temperature = weight_patch, temperature
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None], persistent=False)

    @property
    def encoder(self) -> Any:
        """The timm model."""
        return self.model.encoder

    @property
    def description(self) -> dict[str, Any]:
        """What a checkpoint must say beside its weights."""
        return {"masking": asdict(self.masking)}

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """The loss of samples `image` (uint8 [B, 3, H, W]), `mask` and, when weighted, `density`."""
        images = (batch["image"].float() - self.mean) / self.std
        mask = pixel_mask(batch["mask"], self.model.anatomy.mask_patch)
        prediction = self.model(images, batch["mask"])
        parts = {"mean_colour_l1": mean_colour_l1(images, mask)}
        if self.weight_patch is None or self.temperature is None:
            return Loss(masked_l1(prediction, images, mask), parts)
        weight = enlarge(density_weights(batch["density"], self.temperature), self.weight_patch)
        parts |= {"masked_l1": masked_l1(prediction.detach(), images, mask), "mean_weight": weight.mean()}
        return Loss(masked_l1(prediction, images, mask, weight), parts)
