"""DINOv3's ViTs (facebookresearch/dinov3), and timm's `Eva` in which timm holds them."""

import torch

from ..errors import UserError
from ._layout import (
    SET_ASIDE,
    Hints,
    Recognised,
    Rules,
    State,
    depth,
    head_count,
    mlp_ratio,
    patch_embedding,
    shape_of,
)

BRANCHES = (("teacher", "teacher.backbone."), ("student", "student.backbone."), ("", "backbone."), ("", ""))
REQUIRED = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "storage_tokens or reg_token",
            "blocks.0.ls1.gamma or blocks.0.gamma_1")  # fmt: skip
RULES: Rules = (
    (r"(cls_token|reg_token)", r"\1"),
    (r"storage_tokens", "reg_token"),
    (r"rope_embed\.periods", "periods"),
    (r"((?:patch_embed\.proj|norm)\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.(?:norm1|norm2|attn\.proj|mlp\.(?:fc1|fc2|fc1_g|fc1_x))\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.attn\.(?:qkv\.(?:weight|bias|bias_mask)|q_bias|v_bias))", r"\1"),
    (r"(blocks\.\d+\.)(?:ls([12])\.gamma|gamma_([12]))", r"\1gamma_\2\3"),
    (r"(blocks\.\d+\.mlp\.)w1\.(weight|bias)", r"\1fc1_g.\2"),
    (r"(blocks\.\d+\.mlp\.)w2\.(weight|bias)", r"\1fc1_x.\2"),
    (r"(blocks\.\d+\.mlp\.)w3\.(weight|bias)", r"\1fc2.\2"),
    # the norm of cls in small crops, which are for training only; a `cls_norm` would be for all, and is not published
    (r"mask_token|local_cls_norm\..+", SET_ASIDE),
    (r"(?:(?:student|teacher)\.)?(?:dino|ibot)_head\..+|(?:dino|ibot)_(?:patch_)?loss\..+", SET_ASIDE),
)
#: the published models
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32}
_IMAGE_SIZE = 224
_TEMPERATURE = 100.0


def convert(state: State, hints: Hints) -> Recognised:
    """Split the bias of query, key and value: DINOv3 keeps that of the keys at zero, and timm has none."""
    state = dict(state)
    periods = state.pop("periods", None)
    for key in [key for key in state if key.endswith("attn.qkv.bias")]:
        query, of_keys, value = (state.pop(key) * state.pop(f"{key}_mask", 1)).chunk(3)
        if of_keys.any():
            raise UserError(f"{key} has a bias of the keys, which DINOv3's published models mask and timm cannot hold")
        state[key.replace("qkv.bias", "q_bias")], state[key.replace("qkv.bias", "v_bias")] = query, value
    return recognised(state, hints, periods)


def recognised(state: State, hints: Hints, periods: torch.Tensor | None) -> Recognised:
    """The timm model of DINOv3's weights in timm's names."""
    width, patch = patch_embedding(state)
    heads, guess = head_count(width, hints, HEADS)
    _check_periods(periods, width // heads)
    gated = "blocks.0.mlp.fc1_g.weight" in state
    hidden, _ = shape_of(state, "blocks.0.mlp.fc1_g.weight" if gated else "blocks.0.mlp.fc1.weight", 2)
    registers = shape_of(state, "reg_token", 3)[1]
    size = hints.config.get("image_size")
    if not isinstance(size, int):
        size = _IMAGE_SIZE
        guess += (f"image size is not in the weights, which suit any: taken as {size}",)
    return Recognised(
        architecture="vit_small_patch16_dinov3",
        model_args={
            "img_size": size,
            "patch_size": patch,
            "embed_dim": width,
            "depth": depth(state, "blocks."),
            "num_heads": heads,
            "mlp_ratio": mlp_ratio(hidden, width),
            "qkv_bias": "blocks.0.attn.q_bias" in state,
            "swiglu_mlp": gated,
            # of one: the width of the gated MLP as it is, and timm's unpacked kind
            "swiglu_align_to": 1 if gated else 0,
            "num_reg_tokens": registers,
            "global_pool": "token",
        },
        encoder={key: value for key, value in state.items() if registers or key != "reg_token"},
        # rounded to bfloat16 in the published files, which makes attention differ in the fourth digit
        buffers={} if periods is None else {"rope.periods": periods.float()},
        layer_norm_eps=float(hints.config.get("layer_norm_eps", 1e-5)),
        announcements=guess,
    )


def _check_periods(periods: torch.Tensor | None, channels: int) -> None:
    """Raise UserError for rotary periods other than DINOv3's, exact or rounded to bfloat16."""
    if periods is None:
        return
    expected = _TEMPERATURE ** (torch.arange(channels // 4) / (channels // 4))
    if periods.shape != expected.shape or not torch.allclose(periods.float(), expected, rtol=1e-2):
        raise UserError(
            f"the rotary periods in the file are not DINOv3's published ones for heads of {channels} channels; "
            "give the head count with --heads, or its own code is needed"
        )
