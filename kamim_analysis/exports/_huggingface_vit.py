"""timm's plain `VisionTransformer` as transformers' ViT."""

from typing import Any

from torch import nn

from ..checkpoints._layout import Rules, State
from ._huggingface import block_misfits, block_rules, image_misfits

MODEL_TYPE, NAME = "vit", "ViT"
RULES: Rules = (
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embeddings.projection.\1"),
    *block_rules(r"blocks\.(\d+)\.", r"encoder.layer.\1.", "attention"),
    (r"norm\.(weight|bias)", r"layernorm.\1"),
)


def matches(encoder: nn.Module) -> bool:
    """Whether it is the plain model, and none of the many that inherit from it."""
    from timm.models.vision_transformer import VisionTransformer

    return type(encoder) is VisionTransformer


def weights(encoder: nn.Module) -> State:
    """All that the file holds of the encoder, in timm's names."""
    return encoder.state_dict()


def misfits(encoder: Any) -> dict[str, bool]:
    """What transformers' ViT cannot hold, by what is said of it; True where it is the case."""
    from timm.layers import Attention
    from timm.models.vision_transformer import Block

    blocks = [*encoder.blocks]
    eps = {norm.eps for norm in encoder.modules() if isinstance(norm, nn.LayerNorm)}
    return {
        "no cls token": encoder.cls_token is None,
        "registers": encoder.reg_token is not None,
        "no absolute positions": encoder.pos_embed is None,
        "a cls token without a position": encoder.cls_token is not None and encoder.no_embed_class,
        "a norm before the blocks": not isinstance(encoder.norm_pre, nn.Identity),
        "no norm after the blocks": not isinstance(encoder.norm, nn.LayerNorm),
        "a pooling by attention": encoder.attn_pool is not None,
        "layer scale": any(hasattr(getattr(one, "ls1", None), "gamma") for one in blocks),
        "normalised queries and keys": any(hasattr(getattr(one.attn, "q_norm", None), "weight") for one in blocks),
        "LayerNorms of several epsilons": len(eps) > 1,
        **image_misfits(encoder),
        **block_misfits(blocks, Block, Attention),
    }


def config(encoder: Any) -> dict[str, Any]:
    """The keys of `ViTConfig` that its tensors do not tell."""
    block = encoder.blocks[0]
    return {
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "qkv_bias": block.attn.qkv.bias is not None,
        "layer_norm_eps": block.norm1.eps,
    }
