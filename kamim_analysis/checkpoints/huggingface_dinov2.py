"""transformers' DINOv2, with and without registers."""

from dataclasses import replace

from . import dinov2
from ._huggingface import block_rules, check_activation, embedding_rules, fused, joined, layer_norm_eps
from ._layout import SET_ASIDE, Hints, Recognised, Rules, State, head_count

BRANCHES = (("", "dinov2."), ("", "dinov2_with_registers."), ("", ""))
REQUIRED = ("embeddings.patch_embeddings.projection.weight", "embeddings.cls_token", "embeddings.position_embeddings",
            "encoder.layer.0.layer_scale1.lambda1")  # fmt: skip
_BLOCK = r"encoder\.layer\.(\d+)\."
RULES: Rules = (
    *embedding_rules(),
    (r"embeddings\.register_tokens", "reg_token"),
    *block_rules(),
    (rf"{_BLOCK}layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (rf"{_BLOCK}mlp\.weights_in\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (rf"{_BLOCK}mlp\.(?:weights_out|down_proj)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (rf"{_BLOCK}mlp\.(gate|up)_proj\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
    (r"embeddings\.mask_token|classifier\..+", SET_ASIDE),
)


def convert(state: State, hints: Hints) -> Recognised:
    """As DINOv2, with query, key and value fused, and the two halves of a gated MLP."""
    check_activation(hints)
    state = joined(fused(state), ("mlp.gate", "mlp.up"), "mlp.fc1")
    heads, guess = head_count(state["pos_embed"].shape[-1], hints, dinov2.HEADS)
    return replace(dinov2.recognised(state, heads, guess), layer_norm_eps=layer_norm_eps(hints, 1e-6))
