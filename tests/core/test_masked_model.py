"""Mask token and head around an unmodified encoder, against the same steps made by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kamim_analysis.reconstruction import MaskedImageModel, masked_input


@pytest.fixture(params=["vit", "vit with registers", "swin"])
def model(request, tiny_vit, tiny_swin) -> MaskedImageModel:
    made = {"vit": tiny_vit, "vit with registers": lambda: tiny_vit(reg_tokens=3), "swin": tiny_swin}[request.param]()
    return MaskedImageModel(made).eval()


def inputs(model: MaskedImageModel, count: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    cells = 32 // model.anatomy.mask_patch
    return torch.randn(count, 3, 32, 32, generator=draw), torch.rand(count, cells, cells, generator=draw) < 0.6


def by_hand(model: Any, images: Tensor, mask: Tensor) -> Tensor:
    """Hidden tokens replaced one by one, the rest of the encoder run step by step, the head as a matrix product."""
    encoder, stride = model.encoder, model.anatomy.stride
    x = encoder.patch_embed(images).clone()
    flat = x.reshape(len(x), -1, x.shape[-1])
    for b, i in mask.flatten(1).nonzero().tolist():
        flat[b, i] = model.mask_token
    if model.anatomy.family == "swin":
        tokens = encoder.norm(encoder.layers(x)).flatten(1, 2)
    else:
        tokens = encoder.norm(encoder.blocks(encoder._pos_embed(flat)))[:, model.anatomy.prefix_tokens :]
    pixels = tokens @ model.decoder[0].weight[:, :, 0, 0].T + model.decoder[0].bias
    side = 32 // stride
    # channel c, row y, column x of a patch: output c * stride^2 + y * stride + x, as in SimMIM's pixel shuffle
    patches = pixels.reshape(len(x), side, side, 3, stride, stride)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(x), 3, 32, 32)


@torch.no_grad()
def test_prediction_by_hand(model):
    nn.init.normal_(model.mask_token)
    images, mask = inputs(model)
    torch.testing.assert_close(model(images, mask), by_hand(model, images, mask), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hidden_pixels_cannot_be_seen(model):
    images, mask = inputs(model)
    side = model.anatomy.mask_patch
    hidden = mask.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
    changed = torch.where(hidden, 100 * torch.randn_like(images), images)
    torch.testing.assert_close(model(changed, mask), model(images, mask), rtol=0, atol=0)


@torch.no_grad()
def test_without_a_mask_the_encoder_sees_the_whole_picture(model):
    images, mask = inputs(model)
    expected = model.encoder.forward_features(images)
    seen: list[Tensor] = []
    handle = model.encoder.norm.register_forward_hook(lambda _m, _i, output: seen.append(output))
    model(images, torch.zeros_like(mask))
    handle.remove()
    torch.testing.assert_close(seen[0], expected)


def test_mask_token_head_and_encoder_get_gradients(model):
    images, mask = inputs(model)
    model(images, mask).abs().mean().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


def test_the_hook_is_gone_after_an_error(model):
    images, mask = inputs(model)
    embed = model.encoder.get_submodule("patch_embed")
    with pytest.raises(ZeroDivisionError), masked_input(embed, mask, model.mask_token):
        _ = 1 / 0
    assert not embed._forward_hooks
    model(images, mask)
    assert not embed._forward_hooks


def test_state_dict_names_are_encoder_decoder_and_mask_token(model):
    tops = {key.split(".")[0] for key in model.state_dict()}
    assert tops == {"encoder", "decoder", "mask_token"}
    assert {key for key in model.state_dict() if key.startswith("decoder")} == {"decoder.0.weight", "decoder.0.bias"}
