"""Swin transformers: timm's `SwinTransformer`, and the original's (microsoft/Swin-Transformer).

The original merges patches at the end of a stage, timm at the start of the next.
"""

import math

from ..errors import UserError
from ._layout import COMPUTED, SET_ASIDE, Hints, Recognised, Rules, State, depth, mlp_ratio, patch_embedding, shape_of

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
    width, patch = patch_embedding(state)
    stages = depth(state, "layers.")
    tables = [shape_of(state, f"layers.{s}.blocks.0.attn.relative_position_bias_table", 2) for s in range(stages)]
    windows = [(math.isqrt(distances) + 1) // 2 for distances, _heads in tables]
    size, guess = _image_size(state, hints, windows, patch)
    _check_tables(state, windows[0], size // patch)
    return Recognised(
        architecture="swin_base_patch4_window7_224",
        model_args={
            "img_size": size,
            "patch_size": patch,
            "window_size": windows[0],
            "embed_dim": width,
            "depths": tuple(depth(state, f"layers.{s}.blocks.") for s in range(stages)),
            "num_heads": tuple(heads for _distances, heads in tables),
            # of the last stage: there half a unit more of the hidden width is less than one in all others
            "mlp_ratio": mlp_ratio(*shape_of(state, f"layers.{stages - 1}.blocks.0.mlp.fc1.weight", 2)),
            "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in state,
        },
        encoder={key: value for key, value in state.items() if key != _MASK},
        announcements=guess,
    )


def _image_size(state: State, hints: Hints, windows: list[int], patch: int) -> tuple[int, tuple[str, ...]]:
    """From the config, from the mask of the first stage's shifted windows, or one window in the last stage."""
    if isinstance(hints.config.get("image_size"), int):
        return hints.config["image_size"], ()
    if _MASK in state:
        return math.isqrt(shape_of(state, _MASK, 3)[0]) * windows[0] * patch, ()
    last = windows[-1]
    size = last * patch * 2 ** (len(windows) - 1)
    return size, (f"image size is not in the weights: taken as {size}, whose last stage is one window of {last}",)


def _check_tables(state: State, window: int, grid: int) -> None:
    """Raise UserError for a table of another window than the model's: timm would resample it without a word.

    A stage whose grid is smaller than the window has one window of its grid.
    """
    for key in state:
        if key.endswith("relative_position_bias_table"):
            side = 2 * min(window, grid // 2 ** int(key.split(".")[1])) - 1
            distances, _heads = shape_of(state, key, 2)
            if distances != side**2:
                raise UserError(f"{key} has {distances} distances, where the first stage's window suggests {side**2}")
