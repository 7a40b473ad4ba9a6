"""Losses between predicted and target latents of hidden patches (Latent MIM, arXiv 2407.15837, section 3)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LatentLoss = Literal["patch_discrimination", "l1", "l2", "smooth_l1", "cosine"]


def patch_discrimination(
    predictions: Float[Tensor, "b n d"], targets: Float[Tensor, "b n d"], temperature: float = 0.2
) -> Float[Tensor, "b n"]:
    """Of each patch, how badly its target is told from the targets of the image's other patches by the prediction.

    Predictions are standardised over the patches of their image, channel by channel (unbiased deviation + 1e-4, as in
    the public code), scores are cosines / temperature, and the loss is -log softmax of the own target's score, times
    2 x temperature, in nats. 2 x temperature x log N where all predictions are alike, near 0 where each finds its own.
    Source: Latent MIM, "patch discrimination".
    """
    deviation, mean = torch.std_mean(predictions, dim=1, keepdim=True)
    predicted = F.normalize((predictions - mean) / (deviation + 1e-4), dim=-1)
    scores = predicted @ F.normalize(targets, dim=-1).transpose(1, 2) / temperature
    own = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[:2])
    return 2 * temperature * F.cross_entropy(scores.transpose(1, 2), own, reduction="none")


def direct(
    predictions: Float[Tensor, "b n d"], targets: Float[Tensor, "b n d"], loss: LatentLoss
) -> Float[Tensor, "b n"]:
    """Of each patch, the error of its predicted latent: mean over channels, or 1 - cosine.

    The target is standardised over its channels (unbiased variance + 1e-6), as in the public code's `norm_l2`. These
    are the direct reconstructions that lead to trivial solutions, the paper's second challenge; `smooth_l1` changes
    from square to linear at an error of 1.
    """
    variance, mean = torch.var_mean(targets, dim=-1, keepdim=True)
    targets = (targets - mean) / (variance + 1e-6).sqrt()
    if loss == "cosine":
        return 1 - F.cosine_similarity(predictions, targets, dim=-1)
    error = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[loss]
    return error(predictions, targets, reduction="none").mean(-1)


def latent_errors(
    predictions: Float[Tensor, "b n d"], targets: Float[Tensor, "b n d"], loss: LatentLoss, temperature: float
) -> Float[Tensor, "b n"]:
    """The named loss of each patch."""
    if loss == "patch_discrimination":
        return patch_discrimination(predictions, targets, temperature)
    return direct(predictions, targets, loss)
