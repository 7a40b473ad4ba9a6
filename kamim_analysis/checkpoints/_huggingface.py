"""What the layouts of transformers share: names of blocks, old and new, and projections that timm fuses."""

import torch

from ..errors import UserError
from ._layout import Hints, Rules, State

# `encoder.layer.0` in files, `layers.0` or `model.layer.0` in the modules of transformers 5
_BLOCK = r"(?:encoder\.layer|layers|model\.layer|layer)\.(\d+)\."
_PROJECTION = r"(?:attention\.(?:attention|self)\.{long}|attention\.{short}_proj)"
_GELU = "gelu"


def block_rules(source: str = _BLOCK, target: str = r"blocks.\1.") -> Rules:
    """Rules for transformer blocks; `source` matches what precedes a block's own names, with its numbers as groups."""
    last = source.count("(") - source.count("(?:") + 1
    parts = [
        *((_PROJECTION.format(long=long, short=long[0]), f"attn.{long[0]}") for long in ("query", "key", "value")),
        (r"attention\.(?:output\.dense|o_proj)", "attn.proj"),
        (r"(?:layernorm_before|norm1)", "norm1"),
        (r"(?:layernorm_after|norm2)", "norm2"),
        (r"(?:intermediate\.dense|mlp\.fc1)", "mlp.fc1"),
        (r"(?:output\.dense|mlp\.fc2)", "mlp.fc2"),
    ]
    return [(rf"{source}{names}\.(weight|bias)", rf"{target}{ours}.\{last}") for names, ours in parts]


def embedding_rules() -> Rules:
    """Rules for cls, positions and the patch embedding."""
    return [
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings\.(?:projection\.)?(weight|bias)", r"patch_embed.proj.\1"),
    ]


def fused(state: State) -> State:
    """`attn.q`, `attn.k`, `attn.v` of each block as timm's `attn.qkv`. Raises UserError where one is missing."""
    fusing = dict(state)
    for key in state:
        if ".attn.q." not in key:
            continue
        parts = [key.replace(".attn.q.", f".attn.{name}.") for name in "qkv"]
        absent = [part for part in parts if part not in fusing]
        if absent:
            raise UserError(f"the weights have {key.replace('.attn.q.', ' query ')} but lack {', '.join(absent)}")
        fusing[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat([fusing.pop(part) for part in parts])
    return fusing


def layer_norm_eps(hints: Hints, default: float) -> float:
    """The config's epsilon, or that of the architecture in transformers."""
    return float(hints.config.get("layer_norm_eps", default))


def check_activation(hints: Hints) -> None:
    """Raise UserError for a config whose activation is not the exact GELU of the timm models."""
    activation = hints.config.get("hidden_act", _GELU)
    if activation != _GELU:
        raise UserError(f"config.json asks for the activation {activation!r}; only {_GELU!r} is known for this layout")
