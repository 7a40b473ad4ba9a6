"""transformers' models of pretraining: what they predict of hidden patches, the opened model predicts too, to 1e-5."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from kamim_analysis.model_spec import Reading, parse
from kamim_analysis.opening import open_model
from kamim_analysis.reconstruction import MaskSettings

State = dict[str, Tensor]
# how KAMIM's code and others wrap a state dict
WRAPPED: dict[str, Any] = {
    "bare": lambda state: state,
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}, "epoch": 3},
    "DDP": lambda state: {"model_state_dict": {f"module.{key}": value for key, value in state.items()}},
    "compiled DDP": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
}


@pytest.fixture
def mask() -> Tensor:
    """Two masks of 3 x 3 patches, True = hidden, of different numbers of patches."""
    return torch.tensor([[[1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [1, 1, 1]]]).bool()


def same(opened: Any, images: Tensor, mask: Tensor, expected: Tensor) -> None:
    assert opened.masked_model is not None
    torch.testing.assert_close(opened.masked_model(images, mask), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_simmim_from_a_directory(transformers_model, images, mask, tmp_path):
    model = transformers_model("ViTForMaskedImageModeling", layer_norm_eps=1e-3)
    model.save_pretrained(tmp_path)
    same(open_model(parse(str(tmp_path))), images, mask, model(images, mask.flatten(1)).reconstruction)


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
@pytest.mark.parametrize("names", ["of transformers 4", "of transformers 5"])
@torch.no_grad()
def test_kamim_checkpoints(names, wrap, transformers_model, images, mask, tmp_path):
    model = transformers_model("ViTForMaskedImageModeling")
    model.save_pretrained(tmp_path / "saved")
    state = load_file(tmp_path / "saved" / "model.safetensors") if names[-1] == "4" else model.state_dict()
    torch.save(wrap(state), tmp_path / "kamim.pth")
    opened = open_model(parse(str(tmp_path / "kamim.pth"), Reading(heads=4)))
    assert opened.provenance["format"] == "huggingface_vit"
    same(opened, images, mask, model(images, mask.flatten(1)).reconstruction)


@pytest.mark.parametrize("name", ["vit.embeddings.mask_token", "decoder.0.weight"])
def test_half_a_head_is_left_out_and_announced(name, transformers_model, tmp_path):
    state = transformers_model("ViTForMaskedImageModeling").state_dict()
    del state[name]
    torch.save(state, tmp_path / "weights.pth")
    opened = open_model(parse(str(tmp_path / "weights.pth"), Reading(heads=4)))
    assert opened.masked_model is None
    assert any("head and mask token are not both there" in note for note in opened.provenance["notes"])


def mae_pixels(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """A random mask and the pixels predicted under it; normalised patches get their mean and deviation back."""
    side = images.shape[-1] // model.config.patch_size
    outputs = model(images, noise=torch.rand(len(images), side**2))
    predicted = outputs.logits
    if model.config.norm_pix_loss:
        true = model.patchify(images)
        predicted = predicted * (true.var(-1, keepdim=True) + 1e-6) ** 0.5 + true.mean(-1, keepdim=True)
    mask = outputs.mask.bool().unflatten(1, (side, side))
    assert 0 < mask.sum() < mask.numel()
    return mask, model.unpatchify(predicted)


@pytest.mark.parametrize("eps", [1e-12, 1e-3])
@pytest.mark.parametrize("normalised", [False, True])
@torch.no_grad()
def test_mae_from_a_directory(normalised, eps, transformers_model, images, tmp_path):
    """The published models' epsilon is 1e-12, in the decoder too."""
    model = transformers_model("ViTMAEForPreTraining", norm_pix_loss=normalised, layer_norm_eps=eps, mask_ratio=0.5)
    model.save_pretrained(tmp_path)
    opened = open_model(parse(str(tmp_path)))
    same(opened, images, *mae_pixels(model, images))
    assert opened.masking == MaskSettings(unit=4, ratio=0.5)
    assert any("normalised patches" in note for note in opened.provenance["notes"]) is normalised


@torch.no_grad()
def test_mae_from_a_state_dict(transformers_model, images, tmp_path):
    """Its decoder has 16 heads, as the published ones; normalised patches cannot be told."""
    model = transformers_model("ViTMAEForPreTraining", decoder_num_attention_heads=16)
    torch.save(model.state_dict(), tmp_path / "mae.pth")
    opened = open_model(parse(str(tmp_path / "mae.pth"), Reading(heads=4)))
    same(opened, images, *mae_pixels(model, images))
    assert any("norm_pix_loss" in note and "taken as not" in note for note in opened.provenance["notes"])


@torch.no_grad()
def test_mae_at_another_size_has_both_positions_from_timm_s_own_function(transformers_model, tmp_path):
    small, large = transformers_model("ViTMAEForPreTraining"), transformers_model("ViTMAEForPreTraining", image_size=20)
    state = small.state_dict()
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        state[name] = resample_abs_pos_embed(state[name], [5, 5])
    large.load_state_dict(state)
    small.save_pretrained(tmp_path)
    pictures = torch.randn(2, 3, 20, 20)
    same(open_model(parse(str(tmp_path)), 20), pictures, *mae_pixels(large, pictures))
