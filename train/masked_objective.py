"""SimMIM's and KAMIM's loss as a module: a batch of samples in, a loss out."""

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from kamim_analysis.density import density_weights
from kamim_analysis.patches import enlarge
from kamim_analysis.reconstruction import MaskedImageModel, MaskSettings, masked_l1, mean_colour_l1, pixel_mask

from .objective_module import Loss, ObjectiveModule


class MaskedObjective(ObjectiveModule):
    """Masked image modelling; with `weight_patch` and `temperature`, weighted by keypoint density."""

    model: MaskedImageModel

    def __init__(
        self,
        encoder: nn.Module,
        mask_unit: int,
        mask_ratio: float,
        weight_patch: int | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__(MaskedImageModel(encoder))
        self.masking = MaskSettings(unit=mask_unit, ratio=mask_ratio)
        self.weight_patch, self.temperature = weight_patch, temperature

    def describe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The recipe, and how images were masked."""
        return {"training": recipe, "masking": asdict(self.masking)}

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """The loss of samples `image` (uint8 [B, 3, H, W]), `mask` and, when weighted, `density`."""
        images = self.normalised(batch["image"])
        mask = pixel_mask(batch["mask"], self.model.anatomy.mask_patch)
        prediction = self.model(images, batch["mask"])
        parts = {"mean_colour_l1": mean_colour_l1(images, mask)}
        if self.weight_patch is None or self.temperature is None:
            return Loss(masked_l1(prediction, images, mask), parts)
        weight = enlarge(density_weights(batch["density"], self.temperature), self.weight_patch)
        parts |= {"masked_l1": masked_l1(prediction.detach(), images, mask), "mean_weight": weight.mean()}
        return Loss(masked_l1(prediction, images, mask, weight), parts)
