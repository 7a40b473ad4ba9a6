"""transformers' ViT: `ViTModel`, `ViTForMaskedImageModeling` (KAMIM's checkpoints), `ViTMAE`, `IJepa`."""

from dataclasses import replace

from ._huggingface import block_rules, check_activation, embedding_rules, fused, layer_norm_eps, with_linear_head
from ._layout import SET_ASIDE, Hints, Recognised, Rules, State, head_count, split_head
from .mae import decoder_arguments, masking
from .timm_vit import HEADS, WIDE_HEADS, arguments

BRANCHES = (("", "vit."), ("", "ijepa."), ("", ""))
REQUIRED = (
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.position_embeddings",
    "encoder.layer.0.layernorm_before.weight or layers.0.layernorm_before.weight",
)
_DECODER_BLOCK = r"decoder\.decoder_(?:encoder\.layer|layers)\.(\d+)\."
RULES: Rules = (
    *embedding_rules(),
    *block_rules(),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"(decoder\.0\.(?:weight|bias))", r"\1"),
    *block_rules(_DECODER_BLOCK, r"decoder_blocks.\1."),
    (r"decoder\.(mask_token|decoder_pos_embed)", r"\1"),
    (r"decoder\.(decoder_(?:embed|norm|pred)\.(?:weight|bias))", r"\1"),
    (r"(?:classifier|pooler)\..+", SET_ASIDE),
)
_MAE_DECODER_HEADS = 16


def convert(state: State, hints: Hints) -> Recognised:
    """Fuse query, key and value; the head, where there is one, is SimMIM's or MAE's."""
    check_activation(hints)
    encoder, head = split_head(fused(state))
    width = encoder["patch_embed.proj.weight"].shape[0]
    heads, guess = head_count(width, hints, HEADS | WIDE_HEADS)
    recognised = Recognised(
        architecture="vit_base_patch16_224",
        model_args=arguments(encoder, heads),
        encoder=encoder,
        layer_norm_eps=layer_norm_eps(hints, 1e-12),
        announcements=guess,
    )
    return _with_head(recognised, head, hints)


def _with_head(recognised: Recognised, head: State, hints: Hints) -> Recognised:
    if "decoder_embed.weight" in head:
        decoder_heads = hints.config.get("decoder_num_attention_heads", _MAE_DECODER_HEADS)
        head_args, notes = decoder_arguments(head, hints, decoder_heads)
        announced = (*recognised.announcements, *notes)
        return replace(
            recognised,
            decoder=head,
            head="mae",
            head_args=head_args,
            masking=masking(recognised.encoder, hints),
            announcements=announced,
        )
    return with_linear_head(recognised, head)
