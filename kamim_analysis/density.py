"""From a keypoint map to KAMIM's weights (arXiv 2407.13873, section 3.2)."""

import math

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from .errors import UserError
from .patches import block_mean, divide, enlarge
from .shapes import Size

_LARGEST_WEIGHT = 2.0**50
_LEAST_TEMPERATURE = 1e-30


def density_weights(density: Float[Tensor, "b gy gx"], temperature: float) -> Float[Tensor, "b gy gx"]:
    """KAMIM's weight of each weight patch from its keypoint density; the least in each image is exactly 1.

    W = exp(D / T) / min over the image of exp(D / T)   (equation 2), computed as exp((D - min D) / T).

    No weight exceeds 2^50: beyond, the loss and the norm of its gradient would overflow float32, and a picture's
    densest patches alone count long before. Densities are at most 1, so this takes T < 0.029. Densities of half
    precision give weights in float32.

    >>> density_weights(torch.tensor([[[0.0, 0.25], [0.5, 0.0]]]), temperature=0.25)
    tensor([[[1.0000, 2.7183],
             [7.3891, 1.0000]]])
    """
    if not temperature > 0:
        raise UserError(f"temperature {temperature} is not positive; KAMIM's default is 0.25")
    # not in half precision, which has no room for 2^50; and no temperature that float32 takes for 0
    density = density.to(torch.promote_types(density.dtype, torch.float32))
    excess = density - density.amin((-2, -1), keepdim=True)
    return (excess / max(temperature, _LEAST_TEMPERATURE)).exp().clamp(max=_LARGEST_WEIGHT)


def patch_weights(
    maps: Shaped[Tensor, "b y x"], patch_size: int = 8, temperature: float = 0.25
) -> Float[Tensor, "b gy gx"]:
    """KAMIM's weights of a batch of keypoint maps [B, H, W] (0 or 1), one for each weight patch: [B, H/p, W/p].

    The density of a weight patch is the share of its pixels that the map sets. An image without keypoints has
    weights of exactly 1, which makes KAMIM's loss SimMIM's. Source: arXiv 2407.13873, equations 1 and 2.

    Raises UserError when `patch_size` does not divide the map or the temperature is not positive.

    >>> maps = torch.zeros(1, 16, 16, dtype=torch.uint8)
    >>> patch_weights(maps, patch_size=8, temperature=0.25)
    tensor([[[1., 1.],
             [1., 1.]]])
    """
    return density_weights(block_mean(maps, patch_size), temperature)


def temperature_for(density: Float[Tensor, "*b gy gx"], quantile: float, target: float) -> float:
    """The temperature at which this quantile of all weights of these densities is `target`, a number above 1.

    W = exp((D - min D) / T) grows with D - min D, so T = q / ln(target) with q the quantile of D - min D, the minimum
    that of each image: the least of all values that so large a share of the values do not exceed. Exact, since growing
    functions leave such a quantile where it is.

    Raises UserError where q is 0, so that no temperature would do.

    >>> temperature_for(torch.tensor([[0.0, 0.25], [0.5, 1.0]]), quantile=0.75, target=math.e)
    0.5
    """
    density = density.double()
    excess = density - density.amin((-2, -1), keepdim=True)
    reached = float(np.quantile(excess.numpy(), quantile, method="inverted_cdf"))
    if reached == 0:
        raise UserError(
            f"the density of {quantile:.0%} of the patches is the least of their picture, so that no temperature gives "
            f"them a weight of {target:g}; set a temperature, or choose a detector or map style that marks more pixels"
        )
    return reached / math.log(target)


def weights_of_patches(
    weights: Float[Tensor, "b wy wx"], weight_patch: int, patch_size: int
) -> Float[Tensor, "b gy gx"]:
    """Weights of weight patches as weights of the encoder's patches, for losses that are one number a patch.

    The mean over the weight patches within a patch (w_ps 8, patches of 16: of four), or the weight of the one that the
    patch lies in. Raises UserError where neither divides the other.
    """
    if weight_patch > patch_size:
        within = divide(Size(weight_patch, weight_patch), patch_size, what="patch size")
        return enlarge(weights, Size(*within))
    within = divide(Size(patch_size, patch_size), weight_patch, what="weight patch size")
    return block_mean(weights, within.height)
