"""ViTs whose cls token joins behind some of their blocks: ConViT and CaiT."""

from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention

from kamim_analysis.encoders import anatomy
from kamim_analysis.errors import UserError
from kamim_analysis.recorder import record

SMALL = {"img_size": 32, "patch_size": 8, "depth": 3}


def convit() -> Any:
    """Two local blocks over 4 x 4 patches, then one that sees the cls token too."""
    encoder = timm.create_model(
        "convit_tiny", num_classes=0, embed_dim=8, num_heads=4, local_up_to_layer=2, **SMALL
    ).eval()
    for block in encoder.blocks[:2]:
        torch.nn.init.normal_(block.attn.v.weight)  # else the identity
    return encoder


@torch.no_grad()
def test_convit_s_local_blocks_attend_among_patches_the_rest_with_the_cls_token():
    encoder = convit()
    body = anatomy(encoder)
    assert [block.prefix_tokens for block in body.blocks] == [0, 0, 1]
    assert (body.prefix_tokens, body.has_cls) == (1, True)
    images = torch.randn(2, 3, 32, 32)
    with record(encoder, attention_input="all", attention_output="all") as recording:
        recorded = encoder(images)
    torch.testing.assert_close(recorded, encoder(images))
    assert [recording.tokens[layer].shape[1] for layer in range(4)] == [16, 16, 16, 17]
    for layer, block in enumerate(encoder.blocks, start=1):
        attn, x = block.attn, recording.attention_input[layer]
        values = attn.v(x) if hasattr(attn, "v") else attn.qkv(x)[..., -32:]
        mixed = recording.attention[layer] @ values.unflatten(-1, (4, 8)).transpose(1, 2)
        torch.testing.assert_close(attn.proj(mixed.transpose(1, 2).flatten(2)), recording.attention_output[layer])


@torch.no_grad()
def test_cait_s_blocks_see_patches_only_and_talking_heads_are_refused():
    encoder = timm.create_model("cait_xxs24_224", num_classes=0, embed_dim=32, num_heads=2, **SMALL).eval()
    assert [block.prefix_tokens for block in anatomy(encoder).blocks] == [0, 0, 0]
    images = torch.randn(1, 3, 32, 32)
    with record(encoder, attention=()) as recording:
        encoder(images)
    assert recording.tokens[3].shape == (1, 16, 32)
    with pytest.raises(UserError, match="rows of attention miss a sum of one"), record(encoder):
        encoder(images)
    plain = timm.create_model("cait_xxs24_224", num_classes=0, embed_dim=32, num_heads=2, attn_block=Attention, **SMALL)
    with record(plain.eval()) as recording:
        plain(images)
    torch.testing.assert_close(recording.attention[3].sum(-1), torch.ones(1, 2, 16))


def test_differential_attention_is_refused_since_it_has_two_maps_for_a_head():
    sizes = {"embed_dim": 32, "num_heads": 2} | SMALL
    encoder = timm.create_model("vit_dwee_patch16_reg1_gap_256", num_classes=0, **sizes).eval()
    message = r"attention of shape \(1, 4, 17, 17\), expected \[\*, 2, 17, 17\]"
    with torch.no_grad(), pytest.raises(UserError, match=message), record(encoder):
        encoder(torch.zeros(1, 3, 32, 32))


def test_sam_s_encoder_is_of_no_known_family():
    with torch.device("meta"), pytest.raises(UserError, match="VisionTransformerSAM is of no known family"):
        anatomy(timm.create_model("samvit_base_patch16_224", num_classes=0))
