"""A plain timm `SwinTransformer` state dict."""

import math

from ._layout import Recognised, State, depth


def matches(state: State) -> bool:
    """Whether these are the keys of timm's SwinTransformer."""
    return {"patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table"} <= state.keys()


def convert(state: State, heads: int | None = None) -> Recognised:
    """Read the architecture off the shapes; `heads`, which these weights do tell, is not used."""
    del heads
    width, _colours, patch, _ = state["patch_embed.proj.weight"].shape
    stages = depth(state, "layers.")
    tables = [state[f"layers.{s}.blocks.0.attn.relative_position_bias_table"] for s in range(stages)]
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2
    size = window * patch * 2 ** (stages - 1)
    classifier = {key for key in state if key.startswith("head.")}
    announcements = [f"image size is not in the weights: taken as {size}, whose last stage is one window of {window}"]
    if classifier:
        announcements.append(f"classifier left out: {', '.join(sorted(classifier))}")
    # buffers that depend on the image size; timm makes its own
    computed = ("relative_position_index", "attn_mask")
    return Recognised(
        architecture="swin_base_patch4_window7_224",
        model_args={
            "img_size": size,
            "patch_size": patch,
            "window_size": window,
            "embed_dim": width,
            "depths": tuple(depth(state, f"layers.{s}.blocks.") for s in range(stages)),
            "num_heads": tuple(table.shape[1] for table in tables),
        },
        encoder={k: v for k, v in state.items() if k not in classifier and not k.endswith(computed)},
        announcements=tuple(announcements),
    )
