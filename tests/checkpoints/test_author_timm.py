"""Plain state dicts of timm's own BEiT, Swin and DINOv3: the very function comes back."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kamim_analysis.encoders import build
from kamim_analysis.model_spec import Reading, parse
from kamim_analysis.opening import open_model

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "beit_base_patch16_224": ("beit", SIZES),
    "beitv2_base_patch16_224": ("beit", SIZES | {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}),
    "swin_tiny_patch4_window7_224": ("timm_swin", SWIN),
    "vit_small_patch16_dinov3": ("dinov3", SIZES),
    "vit_small_patch16_dinov3_qkvb": ("dinov3", SIZES),
    "vit_small_plus_patch16_dinov3": ("dinov3", SIZES),
    "vit_base_patch14_dinov2": ("timm_vit", SIZES),
    "vit_base_patch14_reg4_dinov2": ("timm_vit", SIZES),
}


def randomised(encoder: Any) -> Any:
    """Every weight random, so that one left at its initial value shows."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    return encoder.eval()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_state_dict_of_timm_is_opened_as_the_same_function(tmp_path, name):
    layout, arguments = MODELS[name]
    encoder = randomised(build(name, arguments))
    torch.save(encoder.state_dict(), tmp_path / "a.pth")
    # DINOv3's weights suit any image size
    size = 32 if layout == "dinov3" else None
    opened = open_model(parse(str(tmp_path / "a.pth"), Reading(heads=4)), size)
    images: Tensor = torch.randn(2, 3, 32, 32)
    assert opened.provenance["format"] == layout
    expected = encoder.forward_features(images)
    torch.testing.assert_close(opened.encoder.forward_features(images), expected, rtol=0, atol=0)
