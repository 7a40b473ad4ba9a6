"""What makes fine-tuning gentler: learning rates that fall towards the input, and stochastic depth."""

import torch
from timm.layers import DropPath
from timm.models import group_parameters
from torch import nn

from kamim_analysis.encoders import anatomy
from kamim_analysis.errors import UserError


def layer_decay_scales(encoder: nn.Module, decay: float) -> dict[str, float]:
    """What each parameter's learning rate is multiplied by, by its name in the encoder.

    decay^(depth + 1 - layer) for block `layer` of `depth`, decay^(depth + 1) for the embedding, 1 for the final norm
    (and the head): layer-wise decay as in the code of BEiT (arXiv 2106.08254) and MAE. The layers are those of timm,
    which counts Swin's merging of patches to the block behind it; timm has the final norm with the last block.
    """
    matcher = getattr(encoder, "group_matcher", None)
    if matcher is None:
        raise UserError(f"timm does not tell the layers of {type(encoder).__name__}; take --objective.layer_decay 1")
    layers: dict[str, int] = group_parameters(encoder, matcher(coarse=False), reverse=True)
    depth = len(anatomy(encoder).blocks)
    final = ("norm.", "fc_norm.")
    return {name: 1.0 if name.startswith(final) else decay ** (depth + 1 - layer) for name, layer in layers.items()}


def set_drop_path(encoder: nn.Module, rate: float) -> None:
    """Stochastic depth: the chance that a sample skips a branch of a block rises from 0 in the first to `rate`.

    As timm builds an encoder with `drop_path_rate`, whatever rate this one was built with.
    """
    blocks = anatomy(encoder).blocks
    for block, chance in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        module = encoder.get_submodule(block.path)
        names = [name for name, _child in module.named_children() if name.startswith("drop_path")]
        if rate and not names:
            raise UserError(f"{type(encoder).__name__} has no stochastic depth; take --encoder.drop_path 0")
        for name in names:
            setattr(module, name, DropPath(chance) if chance else nn.Identity())
