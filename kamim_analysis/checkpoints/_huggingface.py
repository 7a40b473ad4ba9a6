"""What the layouts of transformers share: names of blocks, old and new, and projections that timm fuses."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..errors import UserError
from ._layout import Hints, Recognised, Rules, State

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


def joined(state: State, parts: Sequence[str], whole: str) -> State:
    """The weights `parts` of each block, one below the other, as `whole`. Raises UserError where one is missing."""
    joining = dict(state)
    for first in state:
        if f".{parts[0]}." not in first:
            continue
        keys = [first.replace(f".{parts[0]}.", f".{part}.") for part in parts]
        absent = [key for key in keys if key not in state]
        if absent:
            raise UserError(f"the weights have {first} but lack {', '.join(absent)}")
        joining[first.replace(f".{parts[0]}.", f".{whole}.")] = torch.cat([joining.pop(key) for key in keys])
    return joining


def fused(state: State) -> State:
    """`attn.q`, `attn.k`, `attn.v` of each block as timm's `attn.qkv`. Raises UserError where one is missing."""
    return joined(state, ("attn.q", "attn.k", "attn.v"), "attn.qkv")


def fused_without_key_bias(state: State) -> State:
    """As `fused`, where the keys have no bias: those of query and value stay apart, as timm has them."""
    biases = {key: value for key, value in state.items() if key.endswith((".attn.q.bias", ".attn.v.bias"))}
    rest = {key: value for key, value in state.items() if key not in biases}
    return fused(rest) | {key.replace(".bias", "_bias"): value for key, value in biases.items()}


def layer_norm_eps(hints: Hints, default: float) -> float:
    """The config's epsilon, or that of the architecture in transformers."""
    return float(hints.config.get("layer_norm_eps", default))


def check_activation(hints: Hints, known: str = _GELU) -> None:
    """Raise UserError for a config whose activation is not that of the timm model, by default the exact GELU."""
    activation = hints.config.get("hidden_act", known)
    if activation != known:
        raise UserError(f"config.json asks for the activation {activation!r}; only {known!r} is known for this layout")


def with_linear_head(recognised: Recognised, head: State) -> Recognised:
    """With SimMIM's head and mask token; one without the other is of no use, left out and announced."""
    if head.keys() >= {"decoder.0.weight", "mask_token"}:
        return replace(recognised, decoder=head | {"mask_token": head["mask_token"].flatten()})
    notes = (f"left out, since head and mask token are not both there: {', '.join(head)}",) if head else ()
    return replace(recognised, announcements=(*recognised.announcements, *notes))
