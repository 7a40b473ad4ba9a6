"""The description of an encoder against what its own modules do."""

import pytest
import torch

from kamim_analysis.encoders import anatomy, create
from kamim_analysis.errors import UserError
from kamim_analysis.shapes import Grid, Size


def test_vit(tiny_vit):
    body = anatomy(tiny_vit(reg_tokens=3))
    assert (body.family, body.image_size, body.mask_patch, body.stride, body.width) == ("vit", Size(32, 32), 8, 8, 32)
    assert body.prefix_tokens == 4
    assert [block.layer for block in body.blocks] == [1, 2, 3]
    for i, block in enumerate(body.blocks):
        assert (block.path, block.attention) == (f"blocks.{i}", f"blocks.{i}.attn")
        assert (block.heads, block.grid, block.patch_size) == (2, Grid(4, 4), Size(8, 8))
        assert (block.prefix_tokens, block.window) == (4, None)


def test_swin(tiny_swin):
    body = anatomy(tiny_swin(64))
    assert (body.family, body.image_size, body.mask_patch, body.stride, body.width) == ("swin", Size(64, 64), 4, 8, 32)
    assert [block.path for block in body.blocks] == [f"layers.{s}.blocks.{i}" for s in (0, 1) for i in (0, 1)]
    assert [block.grid for block in body.blocks] == [Grid(16, 16)] * 2 + [Grid(8, 8)] * 2
    assert [block.patch_size for block in body.blocks] == [Size(4, 4)] * 2 + [Size(8, 8)] * 2
    assert [block.heads for block in body.blocks] == [2, 2, 4, 4]
    assert [block.window.shift for block in body.blocks] == [(0, 0), (2, 2), (0, 0), (2, 2)]
    assert [block.layer for block in body.blocks] == [1, 2, 3, 4]


def test_a_swin_whose_last_stage_is_one_window_does_not_shift_there():
    body = anatomy(create("swin_tiny", 64, sizes={"width": 24}))
    assert body.blocks[-1].grid == Grid(2, 2)
    assert [block.window.shift for block in body.blocks[-2:]] == [(0, 0), (0, 0)]


def test_rectangular_images(tiny_vit):
    body = anatomy(tiny_vit(img_size=(32, 48)))
    assert (body.image_size, body.blocks[0].grid) == (Size(32, 48), Grid(4, 6))


ARCHITECTURES = {
    "deit_tiny_distilled_patch16_224": 2,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_medium_patch16_reg4_gap_256": 4,
    "beit_base_patch16_224": 1,
    "eva02_tiny_patch14_224": 1,
    "vit_relpos_small_patch16_224": 0,
    "vit_small_patch16_dinov3": 5,
    "swinv2_tiny_window8_256": 0,
    "vit_tiny_r_s16_p8_224": 1,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_timm_s_kin(name):
    """Prefix, grid and pixels of a patch follow from the tokens that the model itself makes of an image."""
    size = 224
    shallow = {"depths": (1, 1, 1, 1)} if "swin" in name else {"depth": 1}
    encoder = create(name, size, **shallow).eval()
    body = anatomy(encoder)
    assert body.prefix_tokens == ARCHITECTURES[name]
    tokens = encoder.forward_features(torch.zeros(1, 3, size, size))
    patches = tokens.flatten(1, -2).shape[1] - body.prefix_tokens
    last = body.blocks[-1]
    assert last.grid.area == patches
    assert tuple(body.image_size) == (size, size)
    assert tuple(last.patch_size) == (size // last.grid.height, size // last.grid.width)
    assert body.width == tokens.shape[-1]
    assert body.stride == size // last.grid.height


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch16_18x2_224", "convnext_atto"])
def test_models_of_other_families_are_refused_by_name(name):
    import timm

    with torch.device("meta"), pytest.raises(UserError, match=r"is of no known family \(swin, vit\)"):
        anatomy(timm.create_model(name, num_classes=0))
