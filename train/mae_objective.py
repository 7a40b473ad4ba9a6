"""MAE's loss as a module: a batch of samples in, a loss out."""

from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from kamim_analysis.density import density_weights, weights_of_patches
from kamim_analysis.masked_autoencoder import MaskedAutoencoder, patch_mean_and_std, patchify

from .masks import count_hidden, masks_of
from .objective_module import Loss, ObjectiveModule

if TYPE_CHECKING:
    from .objectives.mae import MAE


def hidden_mean(
    error: Float[Tensor, "b n"], hidden: Bool[Tensor, "b n"], weight: Float[Tensor, "b n"] | None = None
) -> Float[Tensor, ""]:
    """Mean of the patches' errors over the hidden ones, each multiplied by its weight.

    Of squared errors, MAE's loss (arXiv 2111.06377, section 3). Weights are not normalised, as KAMIM's are not; weights
    of one give the plain mean bit for bit.

    >>> hidden_mean(torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[False, True, True]]))
    tensor(4.)
    """
    if weight is not None:
        error = error * weight
    return (error * hidden).sum() / hidden.sum()


class MAEObjective(ObjectiveModule):
    """A masked autoencoder and its mean squared error over hidden patches."""

    model: MaskedAutoencoder

    def __init__(self, encoder: nn.Module, settings: "MAE") -> None:
        names = ("decoder_width", "decoder_depth", "decoder_heads", "normalised_patches")
        self.head_args: dict[str, Any] = {name: getattr(settings, name) for name in names}
        super().__init__(MaskedAutoencoder(encoder, **self.head_args))
        self.settings, self.strategy = settings, settings.strategy()
        body = self.model.anatomy
        self.hidden = count_hidden(self.strategy, body.blocks[-1].grid, body.stride, settings.amount())

    def describe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The recipe, how images were masked, and the decoder."""
        blocks = self.settings.masking == "random_blocks"
        unit = self.settings.mask_unit if blocks else self.model.anatomy.stride  # all else hides single patches
        made = {"positions": "sincos", "head": "mae", "head_args": self.head_args}
        return {"training": recipe, "masking": {"unit": unit, "ratio": self.settings.mask_ratio}} | made

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """The loss of samples `image` (uint8 [B, 3, H, W]), what masks them and, when weighted, `density`.

        `constant_mse` is the loss of the best guess that needs no network: each picture's mean colour or, where patches
        are normalised, zero, which is each patch's own mean.
        """
        settings, patch_size = self.settings, self.model.anatomy.stride
        images, mask = self.normalised(batch["image"]), masks_of(self.strategy, batch)
        prediction, hidden = self.model.predict_patches(images, mask, self.hidden).float(), mask.flatten(1)
        target, constant = patchify(images, patch_size), images.mean((-2, -1)).repeat(1, patch_size**2)[:, None]
        if settings.normalised_patches:
            mean, std = patch_mean_and_std(target)
            target, constant = (target - mean) / std, constant * 0
        error = (prediction - target).square().mean(2)
        parts = {"constant_mse": hidden_mean((constant - target).square().mean(2), hidden)}
        if not settings.keypoint_weights:
            return Loss(hidden_mean(error, hidden), parts)
        weights = density_weights(batch["density"], settings.weight_temperature)
        weight = weights_of_patches(weights, settings.weight_patch, patch_size).flatten(1)
        parts |= {"masked_mse": hidden_mean(error.detach(), hidden), "mean_weight": weight.mean()}
        return Loss(hidden_mean(error, hidden, weight), parts)
