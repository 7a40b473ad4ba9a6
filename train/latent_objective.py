"""Latent MIM's loss as a module: a batch of samples in, a loss out."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from kamim_analysis.density import density_weights, weights_of_patches
from kamim_analysis.encoders import anatomy
from kamim_analysis.masked_autoencoder import visible_and_hidden

from . import collapse
from .latent_loss import latent_errors
from .latent_model import LatentDecoder, LatentModel, projector
from .masks import count_hidden, masks_of
from .objective_module import Loss, ObjectiveModule
from .progress import Progress, cosine

if TYPE_CHECKING:
    from .objectives.latent_mim import LatentMIM


class LatentObjective(ObjectiveModule):
    """Latent MIM: hidden patches' latents predicted from visible ones (arXiv 2407.15837).

    Losses are means over images and patches and do not depend on how a batch is divided, but for the similarity
    constraint: it squares a mean over the images of all processes, and so over those of one micro-batch.
    """

    model: LatentModel

    def __init__(self, encoder: nn.Module, settings: "LatentMIM") -> None:
        body = anatomy(encoder)
        grid, patch_size = body.blocks[0].grid, body.mask_patch
        projects = projector(body.width, settings.projector_width, settings.projector_layers)
        decoder = LatentDecoder(
            body.width,
            grid,
            width=settings.decoder_width,
            depth=settings.decoder_depth,
            heads=settings.decoder_heads,
            self_attention=settings.decoder_self_attention,
            cue=settings.visual_cue,
        )
        super().__init__(LatentModel(encoder, projects, decoder, momentum_target=settings.target == "momentum"))
        self.settings, self.strategy, self.patch_size = settings, settings.strategy(), patch_size
        self.hidden = count_hidden(self.strategy, grid, patch_size, settings.amount_of(grid))
        self.similarity_target = settings.similarity_start

    def describe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The recipe, and the encoders that a run holds."""
        names = ["encoder", "target_encoder"] if self.settings.target == "momentum" else ["encoder"]
        branches = {name: f"{name}." for name in names}
        return {"training": recipe, "positions": "sincos", "head": None, "branches": branches}

    def begin_step(self, progress: Progress) -> None:
        """The target follows before the passes, as in the public code; it begins as the online weights themselves."""
        settings, share = self.settings, progress.share
        self.model.follow(cosine(settings.momentum, 1.0, share))
        self.similarity_target = cosine(settings.similarity_start, settings.similarity_end, share)

    def diagnosis(self, numbers: Mapping[str, float]) -> str:
        """Whether the targets have collapsed."""
        return collapse.diagnosis(numbers.get("target_cosine_between", 0.0), numbers["target_cosine_within"])

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """The loss of samples `image` (uint8 [B, 3, H, W]), what masks them and, when weighted, `density`."""
        settings, images = self.settings, self.normalised(batch["image"])
        visible, hidden = visible_and_hidden(masks_of(self.strategy, batch).flatten(1), self.hidden)
        seen = self.model.visible_latents(images, visible)
        targets = self.model.target_latents(
            images, hidden, sees_all=settings.target_sees == "all", gradient=settings.target == "joint"
        )
        predictions = self.model.decoder(seen, visible, hidden)
        with torch.autocast(images.device.type, enabled=False):  # scores of half precision would lose the near ones
            latents = {
                "target": targets.float(),
                "prediction": predictions.float(),
                "visible": seen[:, self.model.prefix_tokens :].float(),
            }
            return self._loss(latents, self._weights(batch, hidden))

    def _weights(self, batch: dict[str, Tensor], hidden: Tensor) -> Float[Tensor, "b m"] | None:
        """KAMIM's weights of the hidden patches, where keypoints weight the loss."""
        settings = self.settings
        if not settings.keypoint_weights:
            return None
        weights = density_weights(batch["density"], settings.weight_temperature)
        return weights_of_patches(weights, settings.weight_patch, self.patch_size).flatten(1).gather(1, hidden)

    def _loss(self, latents: dict[str, Float[Tensor, "b _ d"]], weight: Float[Tensor, "b m"] | None) -> Loss:
        """The loss of latents of the targets, the predictions and the visible patches, and what they tell of a
        collapse."""
        settings = self.settings
        errors = latent_errors(latents["prediction"], latents["target"], settings.loss, settings.score_temperature)
        parts: dict[str, Tensor] = {settings.loss: errors.detach().mean()}
        if weight is not None:
            errors = errors * weight
            parts["mean_weight"] = weight.mean()
        total = errors.mean()
        if settings.similarity_weight:
            constraint = self._excess(latents["prediction"]) + self._excess(latents["visible"])
            parts["similarity_constraint"] = constraint.detach()
            total = total + settings.similarity_weight * constraint
        for name, values in latents.items():
            parts |= collapse.diagnostics(name, values)
        return Loss(total, parts)

    def _excess(self, latents: Float[Tensor, "b n d"]) -> Float[Tensor, ""]:
        """(Mean cosine within an image, mean over the images of all processes, - its target)^2."""
        return (_over_processes(collapse.cosine_within(latents).mean()) - self.similarity_target).square()


def _over_processes(mean: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The mean over all processes, with the gradient of this one's share (which DistributedDataParallel averages)."""
    if not dist.is_initialized():
        return mean
    total = mean.detach().clone()
    dist.all_reduce(total)
    return mean + (total / dist.get_world_size() - mean.detach())
