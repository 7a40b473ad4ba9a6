"""Attention that the recorder does not see: modules that attend outside the blocks of the anatomy.

timm has dozens of attention classes and no common base. What they share is what their constructors set: a projection
to queries under one of a dozen names, or timm's own switches `attn_drop` and `fused_attn`. Neither the class name
nor a softmax tells them apart: squeeze-and-excite and its kin are called attention, radix and selective-kernel
convolutions take a softmax over branches, and `ParallelScalingBlock` attends under neither name. Attention over
channels (XCiT) and linear attention without a softmax (EfficientViT) have queries, and count.
"""

from torch import nn

from .encoders import anatomy

_MARKS = frozenset(
    """qkv qkvs qkv_proj qk q kv q_proj query to_query wq in_proj in_proj_weight attn_drop fused_attn""".split()
)
# pooling for a classifier: timm builds CLIP's and SigLIP's also without one, but they come after the last layer
_HEADS = ("attn_pool", "head")


def attention_modules(encoder: nn.Module) -> list[str]:
    """Dotted paths of all modules that compute attention, those of pooling heads left out.

    A module inside another one that attends is part of it.
    """
    found: list[str] = []
    for path, module in encoder.named_modules():
        own = vars(module).keys() | module._modules.keys() | module._parameters.keys()
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if path and own & _MARKS and not inside and path.split(".")[0] not in _HEADS:
            found.append(path)
    return found


def unrecorded_attention(encoder: nn.Module) -> list[str]:
    """Dotted paths of the modules that compute attention and are the attention of no block, nor inside one.

    Empty where `record` shows everything. Raises UserError for a model of no known family.

    >>> import timm
    >>> vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1)
    >>> unrecorded_attention(vit)
    []
    >>> cait = timm.create_model("cait_xxs24_224", num_classes=0, img_size=32, depth=1)  # 2 blocks for the cls token
    >>> unrecorded_attention(cait)
    ['blocks_token_only.0.attn', 'blocks_token_only.1.attn']
    """
    recorded = tuple(block.attention for block in anatomy(encoder).blocks)
    return [
        path
        for path in attention_modules(encoder)
        if not any(path == attention or path.startswith(f"{attention}.") for attention in recorded)
    ]
