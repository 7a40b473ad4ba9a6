"""What transformers' ViT and Swin share: their names of a block's weights, and what both demand of it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..checkpoints._layout import Rules, State

# ours on the left, theirs on the right
_NAMES = {
    "attn.proj": "attention.output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def block_rules(source: str, target: str, attention: str) -> Rules:
    """Rules from a block's names in timm, query, key and value apart, to those in transformers' files.

    `source` matches what precedes a block's own names, with its numbers as groups; `attention` is what the module of
    the projections is called.
    """
    last = source.count("(") + 1
    names = _NAMES | {f"attn.{name[0]}": f"attention.{attention}.{name}" for name in ("query", "key", "value")}
    return [(rf"{source}{ours}\.(weight|bias)", rf"{target}{theirs}.\{last}") for ours, theirs in names.items()]


def unfused(state: State) -> dict[str, Tensor]:
    """timm's `attn.qkv` of each block as `attn.q`, `attn.k`, `attn.v`."""
    apart: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".attn.qkv." not in key:
            apart[key] = value
            continue
        for name, part in zip("qkv", value.chunk(3), strict=True):
            apart[key.replace(".attn.qkv.", f".attn.{name}.")] = part.clone()
    return apart


def block_misfits(blocks: Sequence[Any], block: type[nn.Module], attention: type[nn.Module]) -> dict[str, bool]:
    """What of the blocks transformers cannot hold, by what is said of it; True where it is the case."""
    from timm.layers import Mlp

    norms = [norm for one in blocks for norm in (one.norm1, one.norm2)]
    kinds = {(type(one), type(one.attn), type(one.mlp)) for one in blocks}
    if kinds != {(block, attention, Mlp)}:
        return {f"blocks other than {block.__name__} with {attention.__name__} and a plain MLP": True}
    linear = [layer for one in blocks for layer in (one.attn.proj, one.mlp.fc1, one.mlp.fc2)]
    projections = [one.attn.qkv for one in blocks]
    return {
        "an activation other than GELU": not all(_is_gelu(one.mlp.act) for one in blocks),
        "a norm in the MLP": any(isinstance(one.mlp.norm, nn.LayerNorm) for one in blocks),
        "norms other than LayerNorm": not all(isinstance(norm, nn.LayerNorm) for norm in norms),
        "layers without bias": any(layer.bias is None for layer in linear),
        "heads that do not share the width": any(one.out_features != 3 * one.in_features for one in projections),
    }


def _is_gelu(activation: nn.Module) -> bool:
    return type(activation).__name__ == "GELU" and getattr(activation, "approximate", "none") == "none"


def image_misfits(encoder: Any) -> dict[str, bool]:
    """What of picture and patches transformers cannot hold."""
    from timm.layers import PatchEmbed

    embed = encoder.patch_embed
    if type(embed) is not PatchEmbed:
        return {f"patches embedded by {type(embed).__name__}": True}
    return {
        "pictures or patches that are not square": len({*embed.img_size}) > 1 or len({*embed.patch_size}) > 1,
        "a patch embedding without bias": embed.proj.bias is None,
    }
