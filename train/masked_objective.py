"""SimMIM's and KAMIM's loss as a module: a batch of samples in, a loss out."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from kamim_analysis.density import density_weights
from kamim_analysis.errors import UserError
from kamim_analysis.patches import enlarge
from kamim_analysis.reconstruction import MaskedImageModel, MaskSettings, masked_l1, pixel_mask

from .attention_source import OpenedAttention, attention_scores
from .ema import follow, frozen_copy
from .masks import masks_of
from .objective_module import Loss, ObjectiveModule
from .progress import Progress, cosine

if TYPE_CHECKING:
    from .objectives.simmim import SimMIM


class MaskedObjective(ObjectiveModule):
    """Masked image modelling; with `weight_patch` and `temperature`, weighted by keypoint density.

    Where attention ranks the patches, it is that of `model.attention_encoder`, an EMA copy of the encoder, or of a
    frozen model that is opened and is no part of a checkpoint. Both see the whole crop.
    """

    model: MaskedImageModel

    def __init__(
        self,
        encoder: nn.Module,
        settings: "SimMIM",
        weight_patch: int | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__(MaskedImageModel(encoder))
        self.settings, self.strategy = settings, settings.strategy()
        self.weight_patch, self.temperature = weight_patch, temperature
        self.opened: OpenedAttention | None = None
        self.averaged: tuple[nn.Module, ...] = ()  # in a tuple, so that it is registered in `model` alone
        if self.strategy.scores != "attention":
            if settings.attention_from != "ema":
                raise UserError(
                    f"objective.attention_from has no part in masking {settings.masking!r}; leave it at ema"
                )
        elif settings.attention_from == "ema":
            self.averaged = (frozen_copy(encoder),)
            self.model.add_module("attention_encoder", self.averaged[0])
        else:
            self.opened = OpenedAttention(settings.attention_from, self.model.anatomy)

    def describe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The recipe, how images were masked, and by whose attention."""
        masking = MaskSettings(unit=self.settings.mask_unit, ratio=self.settings.mask_ratio)
        described: dict[str, Any] = {"training": recipe, "masking": asdict(masking)}
        if self.averaged:
            described["beside"] = ["attention_encoder."]
        return described | (self.opened.description if self.opened is not None else {})

    def end_step(self, progress: Progress) -> None:
        """The copy follows the encoder; its momentum goes to 1 by half a cosine over the run."""
        for copy in self.averaged:
            follow(copy, self.encoder, cosine(self.settings.attention_momentum, 1.0, progress.share))

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """The loss of samples `image` (uint8 [B, 3, H, W]), what the masking drew and, when weighted, `density`.

        The mean over pictures, those of which nothing is hidden counted as 0, so that it is the same over
        micro-batches and processes.
        """
        images = self.normalised(batch["image"])
        mask = self._masks(batch, images)
        prediction = self.model(images, mask)
        hidden = pixel_mask(mask, self.model.anatomy.mask_patch)
        even = evening_weights(mask).expand(hidden.shape)
        mean_colour = images.mean((-2, -1), keepdim=True).expand_as(images)
        parts = {"mean_colour_l1": masked_l1(mean_colour, images, hidden, even)}
        if self.weight_patch is None or self.temperature is None:
            return Loss(masked_l1(prediction, images, hidden, even), parts)
        weight = enlarge(density_weights(batch["density"], self.temperature), self.weight_patch)
        parts |= {"masked_l1": masked_l1(prediction.detach(), images, hidden, even), "mean_weight": weight.mean()}
        return Loss(masked_l1(prediction, images, hidden, weight * even), parts)

    def _masks(self, batch: dict[str, Tensor], images: Float[Tensor, "b 3 y x"]) -> Bool[Tensor, "b gy gx"]:
        """Over the patches of `patch_embed`, which in Swin are smaller than those that the strategies choose among."""
        attention = None
        if self.averaged:
            attention = attention_scores(self.averaged[0], images)
        elif self.opened is not None:
            attention = self.opened(batch["image"])
        mask = masks_of(self.strategy, batch, attention)
        body = self.model.anatomy
        return enlarge(mask, body.image_size.height // body.mask_patch // mask.shape[1])


def evening_weights(mask: Bool[Tensor, "b gy gx"]) -> Float[Tensor, "b 1 1"]:
    """What a picture's hidden pixels weigh so that the mean over all is the mean over pictures of each one's mean.

    Hidden in the batch / (pictures x hidden in this one): exactly 1 where all hide equally many. A batch's plain mean
    would depend on which pictures share a micro-batch.
    """
    hidden = mask.sum((1, 2))
    return (hidden.sum() / (len(mask) * hidden.clamp(min=1)))[:, None, None]
