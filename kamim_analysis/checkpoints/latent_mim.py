"""Latent MIM (yibingwei-1/LatentMIM, arXiv 2407.15837).

Fixed sin-cos positions; patches are embedded by a linear layer over (row, column, colour).
"""

import math

from ..errors import UserError
from ._layout import SET_ASIDE, Hints, Recognised, Rules, State, head_count, shape_of
from .timm_vit import BLOCK_RULES, HEADS, WIDE_HEADS, arguments

BRANCHES = (("encoder", "encoder."), ("target_encoder", "target_encoder."))
REQUIRED = ("embed.proj.weight", "pos_embed.pos_embeds", "cls_token", "blocks.0.attn.qkv.weight")
RULES: Rules = (
    (r"(cls_token)", r"\1"),
    (r"embed\.(proj\.(?:weight|bias))", r"patch_embed.\1"),
    (r"pos_embed\.pos_embeds", "pos_embed"),
    (r"(norm\.(?:weight|bias))", r"\1"),
    *BLOCK_RULES,
    # the projector, which its own evaluation takes off, and the cross-attention decoder
    (r"(?:head|decoder)\..+", SET_ASIDE),
)


def convert(state: State, hints: Hints) -> Recognised:
    """As timm's ViT: the linear patch embedding becomes the convolution that it is."""
    width, values = shape_of(state, "patch_embed.proj.weight", 2)
    patch = math.isqrt(values // 3)
    if 3 * patch**2 != values:
        raise UserError(f"embed.proj.weight takes {values} values, which are no square patch of three colours")
    linear = state["patch_embed.proj.weight"].unflatten(1, (patch, patch, 3))
    convolution = linear.permute(0, 3, 1, 2).contiguous()
    state = state | {"patch_embed.proj.weight": convolution, "pos_embed": state["pos_embed"][None]}
    heads, guess = head_count(width, hints, HEADS | WIDE_HEADS)
    return Recognised(
        architecture="vit_base_patch16_224",
        model_args=arguments(state, heads),
        encoder=state,
        announcements=guess,
    )
