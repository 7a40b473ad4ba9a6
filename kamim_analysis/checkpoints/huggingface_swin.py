"""transformers' Swin: `SwinModel`, `SwinForMaskedImageModeling` (KAMIM's checkpoints)."""

from dataclasses import replace
from typing import Any

from . import timm_swin
from ._huggingface import block_rules, check_activation, fused, layer_norm_eps, with_linear_head
from ._layout import COMPUTED, SET_ASIDE, Hints, Recognised, Rules, State, split_head

BRANCHES = (("", "swin."), ("", ""))
REQUIRED = ("embeddings.patch_embeddings.projection.weight", "encoder.layers.0.blocks.0.layernorm_before.weight")
_BLOCK = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_TABLE = r"attention\.(?:self\.)?(?:relative_position_bias\.)?"
RULES: Rules = (
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"embeddings\.norm\.(weight|bias)", r"patch_embed.norm.\1"),
    *block_rules(_BLOCK, r"layers.\1.blocks.\2."),
    (rf"{_BLOCK}{_TABLE}relative_position_bias_table", r"layers.\1.blocks.\2.attn.relative_position_bias_table"),
    (rf"{_BLOCK}{_TABLE}relative_position_index", COMPUTED),
    (r"encoder\.(layers\.\d+\.downsample\.(?:norm\.(?:weight|bias)|reduction\.weight))", r"\1"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"(decoder\.0\.(?:weight|bias))", r"\1"),
    (r"classifier\..+", SET_ASIDE),
)


def convert(state: State, hints: Hints) -> Recognised:
    """As the original Swin, which merges patches at the end of a stage too, with query, key and value fused."""
    check_activation(hints)
    encoder, head = split_head(fused(state))
    recognised = timm_swin.convert(encoder, hints)
    notes = (*recognised.announcements, *_padding_note(recognised.model_args))
    recognised = replace(recognised, layer_norm_eps=layer_norm_eps(hints, 1e-5), announcements=notes)
    return with_linear_head(recognised, head)


def _padding_note(arguments: dict[str, Any]) -> tuple[str, ...]:
    """Where shifted windows do not tile a stage no timm model is the same function. The published models' do."""
    side, window = arguments["img_size"] // arguments["patch_size"], arguments["window_size"]
    for stage, blocks in enumerate(arguments["depths"], 1):
        if blocks > 1 and side > window and side % window:
            return (
                f"windows of {window} do not tile the {side} x {side} tokens of stage {stage}: transformers pads these "
                "before it shifts them, timm after, so that layers from the first shifted one on differ",
            )
        side = (side + 1) // 2
    return ()
