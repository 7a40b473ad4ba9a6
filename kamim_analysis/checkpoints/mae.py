"""MAE with its decoder (facebookresearch/mae): reconstruction works as it does for our own models."""

from ._layout import (
    Hints,
    Recognised,
    Rules,
    State,
    depth,
    head_count,
    mlp_ratio,
    patch_embedding,
    shape_of,
    split_head,
)
from .timm_vit import RULES as ENCODER_RULES
from .timm_vit import WIDE_HEADS, arguments

REQUIRED = ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "decoder_embed.weight",
            "decoder_pred.weight")  # fmt: skip
RULES: Rules = (
    *ENCODER_RULES,
    (r"(mask_token|decoder_pos_embed)", r"\1"),
    (r"(decoder_(?:embed|norm|pred)\.(?:weight|bias))", r"\1"),
    (r"(decoder_blocks\.\d+\..+)", r"\1"),
)
_DECODER_HEADS = 16
_MASK_RATIO = 0.75


def convert(state: State, hints: Hints) -> Recognised:
    """Read encoder and decoder off the shapes; published models have heads by width and 16 in the decoder."""
    encoder, decoder = split_head(state)
    width, _patch = patch_embedding(encoder)
    heads, guess = head_count(width, hints, {768: 12, 1024: 16, **WIDE_HEADS})
    head_args, announced = decoder_arguments(decoder, hints, _DECODER_HEADS)
    return Recognised(
        architecture="vit_base_patch16_224",
        model_args=arguments(encoder, heads),
        encoder=encoder,
        decoder=decoder,
        head="mae",
        head_args=head_args,
        masking=masking(encoder, hints),
        announcements=guess + announced,
    )


def masking(encoder: State, hints: Hints) -> dict[str, object]:
    """Single patches, in the share that file or config tells, else the paper's."""
    ratio = {**hints.settings, **hints.config}.get("mask_ratio")
    return {"unit": patch_embedding(encoder)[1], "ratio": ratio if isinstance(ratio, float) else _MASK_RATIO}


def decoder_arguments(decoder: State, hints: Hints, heads: int) -> tuple[dict[str, object], tuple[str, ...]]:
    """Arguments of `MaskedAutoencoder`, and what is to be said of normalised patches."""
    width, _ = shape_of(decoder, "decoder_embed.weight", 2)
    hidden, _ = shape_of(decoder, "decoder_blocks.0.mlp.fc1.weight", 2)
    shape_of(decoder, "decoder_pos_embed", 3)
    normalised = {**hints.settings, **hints.config}.get("norm_pix_loss")
    notes: tuple[str, ...] = ()
    if normalised is True:
        notes = ("its decoder predicts normalised patches: pictures borrow each true patch's mean and deviation",)
    elif normalised is not False:
        notes = ("whether the decoder predicts normalised patches (norm_pix_loss) is not in the file: taken as not",)
    return {
        "decoder_width": width,
        "decoder_depth": depth(decoder, "decoder_blocks."),
        "decoder_heads": heads,
        "decoder_mlp_ratio": mlp_ratio(hidden, width),
        "normalised_patches": normalised is True,
    }, notes
