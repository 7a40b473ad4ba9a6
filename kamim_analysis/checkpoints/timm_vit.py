"""timm's `VisionTransformer`, whose names the encoders of MAE, I-JEPA, DINO and iBOT share.

With or without cls, registers, layer scale, qk-norm, final norm and classifier. The public files of MAE (`model`),
I-JEPA (`target_encoder`, `encoder`) and iBOT (`state_dict`) hold these very keys.
"""

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
    square_side,
)

REQUIRED = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed")
BLOCK_RULES: Rules = (
    (r"(blocks\.\d+\.(?:norm[12]|attn\.(?:qkv|proj|norm|q_norm|k_norm)|mlp\.(?:fc[12]|norm))\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.ls[12]\.gamma)", r"\1"),
)
RULES: Rules = (
    (r"(cls_token|reg_token|pos_embed)", r"\1"),
    (r"((?:patch_embed\.proj|norm_pre|norm|fc_norm)\.(?:weight|bias))", r"\1"),
    *BLOCK_RULES,
    # a classifier, and the token that iBOT's student sees instead of a masked patch
    (r"head\..+|masked_embed", SET_ASIDE),
)
#: ViT-T, S, B and L, of which every head has 64 channels
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
#: of the widths whose heads are not of 64 channels: ViT-H/14 and ViT-g of MAE and I-JEPA, timm's ViT-G
WIDE_HEADS = {1280: 16, 1408: 16, 1664: 16}


def convert(state: State, hints: Hints) -> Recognised:
    """Read the architecture off the shapes. The origin of such a file is unknown: any head count is a guess."""
    width, _patch = patch_embedding(state)
    if "blocks.0.attn.q_norm.weight" in state:
        hints = Hints(heads=width // state["blocks.0.attn.q_norm.weight"].shape[0])
    heads, guess = head_count(width, hints, {})
    if guess and width in WIDE_HEADS:
        heads, _ = head_count(width, hints, WIDE_HEADS)
        guess = (f"head count is not in the weights: taken as {heads}, as in the published models of width {width}",)
    return Recognised(
        architecture="vit_base_patch16_224",
        model_args=arguments(state, heads),
        encoder=state,
        announcements=guess,
    )


def arguments(state: State, heads: int) -> dict[str, object]:
    """Arguments of timm's `VisionTransformer` for a state dict in its names."""
    width, patch = patch_embedding(state)
    cls, registers = "cls_token" in state, shape_of(state, "reg_token", 3)[1] if "reg_token" in state else 0
    side, embeds_prefix = _positions(shape_of(state, "pos_embed", 3)[1], int(cls), registers)
    return {
        "img_size": side * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth(state, "blocks."),
        "num_heads": heads,
        "mlp_ratio": mlp_ratio(shape_of(state, "blocks.0.mlp.fc1.weight", 2)[0], width),
        "class_token": cls,
        "reg_tokens": registers,
        "no_embed_class": not embeds_prefix,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "pre_norm": "norm_pre.weight" in state,
        "final_norm": any(key.startswith(("norm.", "fc_norm.")) for key in state),
        "global_pool": "token" if cls else "avg",
        "fc_norm": "fc_norm.weight" in state,
    }


def _positions(embedded: int, cls: int, registers: int) -> tuple[int, bool]:
    """Side of the grid among the embedded positions, and whether the prefix tokens have positions of their own."""
    for prefix, embeds_prefix in ((cls + registers, True), (0, False)):
        side = square_side(embedded - prefix)
        if side is not None:
            return side, embeds_prefix
    raise UserError(f"pos_embed has {embedded} positions, which is no square grid of patches, with or without prefix")
