"""A plain timm `VisionTransformer` state dict: with or without cls, registers, layer scale, qk-norm and classifier."""

import math

from ..errors import UserError
from ._layout import Recognised, State, depth

_HEAD_WIDTH = 64


def matches(state: State) -> bool:
    """Whether these are the keys of timm's VisionTransformer."""
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed"} <= state.keys()


def convert(state: State, heads: int | None = None) -> Recognised:
    """Read the architecture off the shapes; the head count, which they do not tell, gives each head 64 channels."""
    width, _colours, patch, _ = state["patch_embed.proj.weight"].shape
    blocks = depth(state, "blocks.")
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    cls = "cls_token" in state
    positions, embeds_prefix = _positions(state["pos_embed"].shape[1], int(cls), registers)
    side = math.isqrt(positions)
    announcements = []
    if "blocks.0.attn.q_norm.weight" in state:
        heads = heads or width // state["blocks.0.attn.q_norm.weight"].shape[0]
    if heads is None:
        heads = width // _HEAD_WIDTH
        announcements.append(f"head count is not in the weights: taken as {heads} ({_HEAD_WIDTH} channels each)")
    classifier = {key for key in state if key.startswith("head.")}
    if classifier:
        announcements.append(f"classifier left out: {', '.join(sorted(classifier))}")
    return Recognised(
        architecture="vit_base_patch16_224",
        model_args={
            "img_size": side * patch,
            "patch_size": patch,
            "embed_dim": width,
            "depth": blocks,
            "num_heads": heads,
            # timm takes int(width * ratio): half a unit more keeps rounding from losing one
            "mlp_ratio": (state["blocks.0.mlp.fc1.weight"].shape[0] + 0.5) / width,
            "class_token": cls,
            "reg_tokens": registers,
            "no_embed_class": not embeds_prefix,
            "init_values": 1e-5 if "blocks.0.ls1.gamma" in state else None,
            "qkv_bias": "blocks.0.attn.qkv.bias" in state,
            "qk_norm": "blocks.0.attn.q_norm.weight" in state,
            "pre_norm": "norm_pre.weight" in state,
            "global_pool": "token" if cls else "avg",
            "fc_norm": "fc_norm.weight" in state,
        },
        encoder={key: value for key, value in state.items() if key not in classifier},
        announcements=tuple(announcements),
    )


def _positions(embedded: int, cls: int, registers: int) -> tuple[int, bool]:
    """Patches among the embedded positions, and whether the prefix tokens have positions of their own."""
    for prefix, embeds_prefix in ((cls + registers, True), (0, False)):
        if math.isqrt(embedded - prefix) ** 2 == embedded - prefix:
            return embedded - prefix, embeds_prefix
    raise UserError(f"pos_embed has {embedded} positions, which is no square grid of patches, with or without prefix")
