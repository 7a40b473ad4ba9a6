"""transformers' BEiT: `BeitModel`, `BeitForMaskedImageModeling` and kin."""

from dataclasses import replace

from . import beit
from ._huggingface import block_rules, check_activation, embedding_rules, fused_without_key_bias, layer_norm_eps
from ._layout import COMPUTED, SET_ASIDE, Hints, Recognised, Rules, State

BRANCHES = (("", "beit."), ("", ""))
REQUIRED = (
    "embeddings.patch_embeddings.projection.weight",
    "encoder.layer.0.lambda_1 or layers.0.lambda_1",
)
_BLOCK = r"(?:encoder\.layer|layers)\.(\d+)\."
_TABLE = r"(?:attention\.(?:attention\.)?)?relative_position_bias\."
_SHARED = r"(?:encoder\.relative_position_bias|shared_position_bias)\."
RULES: Rules = (
    *embedding_rules(),
    *block_rules(),
    (rf"{_BLOCK}lambda_([12])", r"blocks.\1.gamma_\2"),
    (rf"{_BLOCK}{_TABLE}relative_position_bias_table", r"blocks.\1.attn.relative_position_bias_table"),
    (rf"{_SHARED}relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"),
    (rf"(?:{_SHARED}|{_BLOCK}{_TABLE})relative_position_index", COMPUTED),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
    (r"pooler\.layernorm\.(weight|bias)", r"fc_norm.\1"),
    # the second: pretraining's norm before its head, where the encoder has one of its own
    (r"embeddings\.mask_token|\.\./layernorm\.(?:weight|bias)|(?:lm_head|classifier)\..+", SET_ASIDE),
)


def convert(state: State, hints: Hints) -> Recognised:
    """As BEiT: one matrix for query, key and value, biases of query and value apart."""
    check_activation(hints)
    return replace(beit.convert(fused_without_key_bias(state), hints), layer_norm_eps=layer_norm_eps(hints, 1e-12))
