"""BEiT and BEiT v2, whose names timm's `Beit` and SimMIM's ViT share.

Relative positions, biases of query and value only.
"""

import math

from ..errors import UserError
from ._layout import (
    COMPUTED,
    SET_ASIDE,
    Hints,
    Recognised,
    Rules,
    State,
    depth,
    mlp_ratio,
    patch_embedding,
    shape_of,
    square_side,
)
from ._layout import head_count as count_heads
from .timm_vit import HEADS

REQUIRED = (
    "patch_embed.proj.weight",
    "cls_token",
    "blocks.0.attn.qkv.weight",
    "blocks.0.attn.q_bias or blocks.0.attn.relative_position_bias_table or rel_pos_bias.relative_position_bias_table",
)
RULES: Rules = (
    (r"(cls_token|pos_embed)", r"\1"),
    (r"((?:patch_embed\.proj|norm|fc_norm)\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.(?:norm1|norm2|attn\.proj|mlp\.(?:fc1|fc2))\.(?:weight|bias))", r"\1"),
    (r"(blocks\.\d+\.(?:attn\.(?:qkv\.weight|q_bias|v_bias)|gamma_[12]))", r"\1"),
    (r"((?:rel_pos_bias|blocks\.\d+\.attn)\.relative_position_bias_table)", r"\1"),
    (r"(?:rel_pos_bias|blocks\.\d+\.attn)\.relative_position_index", COMPUTED),
    (r"mask_token|(?:lm_head|head|cls_pt_layers)\..+", SET_ASIDE),
)
# distances of cls to tokens, of tokens to cls and of cls to itself, behind those within the grid
_CLS_DISTANCES = 3


def convert(state: State, hints: Hints) -> Recognised:
    """Read the architecture off the shapes; a relative position bias tells the head count too."""
    width, patch = patch_embedding(state)
    heads, guess = _heads(state, width, hints)
    whole = any(key.startswith("norm.") for key in state)
    return Recognised(
        architecture="beit_base_patch16_224",
        model_args={
            "img_size": _side(state) * patch,
            "patch_size": patch,
            "embed_dim": width,
            "depth": depth(state, "blocks."),
            "num_heads": heads,
            "mlp_ratio": mlp_ratio(shape_of(state, "blocks.0.mlp.fc1.weight", 2)[0], width),
            "qkv_bias": "blocks.0.attn.q_bias" in state,
            # zero for none: timm takes None for "not said", and its own 0.1
            "init_values": 0.1 if "blocks.0.gamma_1" in state else 0.0,
            "use_abs_pos_emb": "pos_embed" in state,
            "use_rel_pos_bias": any(key.startswith("blocks.") for key in _tables(state)),
            "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in state,
            "global_pool": "token" if whole else "avg",
        },
        encoder=_with_norm(state, width),
        announcements=guess,
    )


def _tables(state: State) -> list[str]:
    return [key for key in state if key.endswith("relative_position_bias_table")]


def _heads(state: State, width: int, hints: Hints) -> tuple[int, tuple[str, ...]]:
    tables = _tables(state)
    if tables:
        return shape_of(state, tables[0], 2)[1], ()
    return count_heads(width, hints, HEADS)


def _side(state: State) -> int:
    """Patches along a side of the grid, from the absolute or the relative positions.

    timm resamples tables of another grid without a word. Raises UserError for those.
    """
    tables = _tables(state)
    if "pos_embed" in state:
        side = square_side(shape_of(state, "pos_embed", 3)[1] - 1)
    else:
        distances = math.isqrt(state[tables[0]].shape[0] - _CLS_DISTANCES) if tables else 0
        side = (distances + 1) // 2 or None
    if side is None:
        raise UserError("neither absolute nor relative positions tell a square grid of patches")
    for table in tables:
        if shape_of(state, table, 2)[0] != (2 * side - 1) ** 2 + _CLS_DISTANCES:
            raise UserError(f"{table} is not that of a grid of {side}x{side} patches, as the others are")
    return side


def _with_norm(state: State, width: int) -> State:
    """timm's Beit has a norm before or after pooling; where the weights have none, an unused one of ones after it."""
    if any(key.startswith(("norm.", "fc_norm.")) for key in state):
        return state
    like = state["cls_token"]
    return state | {"fc_norm.weight": like.new_ones(width), "fc_norm.bias": like.new_zeros(width)}
