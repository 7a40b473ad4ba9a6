"""Swin transformers: timm's `SwinTransformer`, and the original's (microsoft/Swin-Transformer).

The original merges patches at the end of a stage, timm at the start of the next.
"""

import math

from ._layout import COMPUTED, SET_ASIDE, Hints, Recognised, Rules, State, depth, mlp_ratio

REQUIRED = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")
RULES: Rules = (
    (r"((?:patch_embed\.(?:proj|norm)|norm)\.(?:weight|bias))", r"\1"),
    (r"(layers\.\d+\.blocks\.\d+\.(?:norm1|norm2|attn\.(?:qkv|proj)|mlp\.(?:fc1|fc2))\.(?:weight|bias))", r"\1"),
    (r"(layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table)", r"\1"),
    (r"(layers\.\d+\.downsample\.(?:norm\.(?:weight|bias)|reduction\.weight))", r"\1"),
    # the masks of shifted windows are computed, but tell the image size
    (r"(layers\.0\.blocks\.1\.attn_mask)", r"\1"),
    (r"layers\.\d+\.blocks\.\d+\.(?:attn_mask|attn\.relative_position_index)", COMPUTED),
    (r"head\..+", SET_ASIDE),
)
_MASK = "layers.0.blocks.1.attn_mask"


def convert(state: State, hints: Hints) -> Recognised:
    """Read the architecture off the shapes; the original's merging layers are renumbered by timm when loading."""
    width, _colours, patch, _ = state["patch_embed.proj.weight"].shape
    stages = depth(state, "layers.")
    tables = [state[f"layers.{s}.blocks.0.attn.relative_position_bias_table"] for s in range(stages)]
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2
    size, guess = _image_size(state, hints, window, patch, stages)
    return Recognised(
        architecture="swin_base_patch4_window7_224",
        model_args={
            "img_size": size,
            "patch_size": patch,
            "window_size": window,
            "embed_dim": width,
            "depths": tuple(depth(state, f"layers.{s}.blocks.") for s in range(stages)),
            "num_heads": tuple(table.shape[1] for table in tables),
            # of the last stage: there half a unit more of the hidden width is less than one in all others
            "mlp_ratio": mlp_ratio(*state[f"layers.{stages - 1}.blocks.0.mlp.fc1.weight"].shape),
            "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in state,
        },
        encoder={key: value for key, value in state.items() if key != _MASK},
        announcements=guess,
    )


def _image_size(state: State, hints: Hints, window: int, patch: int, stages: int) -> tuple[int, tuple[str, ...]]:
    """From the config, from the mask of the first stage's shifted windows, or one window in the last stage."""
    if isinstance(hints.config.get("image_size"), int):
        return hints.config["image_size"], ()
    if _MASK in state:
        return math.isqrt(state[_MASK].shape[0]) * window * patch, ()
    size = window * patch * 2 ** (stages - 1)
    return size, (f"image size is not in the weights: taken as {size}, whose last stage is one window of {window}",)
