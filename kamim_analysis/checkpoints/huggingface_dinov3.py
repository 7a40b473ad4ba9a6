"""transformers' DINOv3 ViT."""

from ..errors import UserError
from . import dinov3
from ._huggingface import block_rules, check_activation, embedding_rules, fused_without_key_bias
from ._layout import SET_ASIDE, Hints, Recognised, Rules, State

REQUIRED = ("embeddings.patch_embeddings.weight", "embeddings.register_tokens",
            "layer.0.layer_scale1.lambda1 or model.layer.0.layer_scale1.lambda1")  # fmt: skip
_BLOCK = r"(?:model\.)?layer\.(\d+)\."
RULES: Rules = (
    *embedding_rules(),
    (r"embeddings\.register_tokens", "reg_token"),
    *block_rules(),
    (rf"{_BLOCK}layer_scale([12])\.lambda1", r"blocks.\1.gamma_\2"),
    (rf"{_BLOCK}mlp\.gate_proj\.(weight|bias)", r"blocks.\1.mlp.fc1_g.\2"),
    (rf"{_BLOCK}mlp\.up_proj\.(weight|bias)", r"blocks.\1.mlp.fc1_x.\2"),
    (rf"{_BLOCK}mlp\.down_proj\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"(norm\.(?:weight|bias))", r"\1"),
    (r"embeddings\.mask_token", SET_ASIDE),
)


def convert(state: State, hints: Hints) -> Recognised:
    """As DINOv3; without gate, the projection up is timm's first layer of the MLP."""
    gated = "blocks.0.mlp.fc1_g.weight" in state
    check_activation(hints, "silu" if gated else "gelu")
    if not gated:
        state = {key.replace(".mlp.fc1_x.", ".mlp.fc1."): value for key, value in state.items()}
    theta = hints.config.get("rope_theta") or hints.config.get("rope_parameters", {}).get("rope_theta", 100.0)
    if theta != 100.0:
        raise UserError(f"config.json asks for rotary positions of base {theta}; DINOv3's are of base 100")
    return dinov3.recognised(fused_without_key_bias(state), hints, None)
