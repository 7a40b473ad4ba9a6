"""Pixels predicted by SimMIM's and MAE's files: those that the papers' definitions give for the same masks, to 1e-5."""

import argparse
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kamim_analysis.masked_autoencoder import MaskedAutoencoder
from kamim_analysis.model_spec import Reading, parse
from kamim_analysis.opening import OpenedModel, open_model
from kamim_analysis.reconstruction import MaskSettings

State = dict[str, Tensor]
BEIT = {"qkv_bias": ("q_bias", "v_bias"), "scale": "gamma_{}", "positions": False}
SIMMIM = {
    "shared table": BEIT | {"shared_table": True},
    "a table a block, no norm before pooling": BEIT | {"table": True, "norm": "fc_norm"},
    "positions": BEIT | {"positions": True},
}
HIDES = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1, 0], [0, 1, 1, 0, 1, 1, 0, 0, 1]], dtype=torch.bool)
MASK = HIDES.reshape(2, 3, 3)


def opened(path: Any, value: Any) -> OpenedModel:
    torch.save(value, path)
    return open_model(parse(str(path), Reading(heads=4)))


@pytest.mark.parametrize("shapes", SIMMIM.values(), ids=SIMMIM.keys())
def test_simmim_predicts_every_pixel_with_hidden_patches_as_mask_token(tmp_path, shapes, reference, images, close):
    state = reference.drawn(reference.vit_shapes(**shapes, extra={"mask_token": (1, 1, 64)}))
    head = reference.drawn({"decoder.0.weight": (48, 64, 1, 1), "decoder.0.bias": (48,)}, seed=1)
    found = opened(tmp_path / "a.pth", {"model": {f"encoder.{name}": t for name, t in state.items()} | head})
    assert found.masked_model is not None
    assert found.masking == MaskSettings(unit=32, ratio=0.6)
    _, _, final = reference.vit(state, images, 4, mask=MASK)
    close(found.masked_model(images, MASK), reference.simmim_pixels(head, final[:, 1:], 4))


def test_a_mask_token_without_head_predicts_nothing_and_is_announced(tmp_path, reference):
    state = reference.drawn(reference.vit_shapes(**SIMMIM["positions"], extra={"mask_token": (1, 1, 64)}))
    found = opened(tmp_path / "a.pth", {"model": {f"encoder.{name}": t for name, t in state.items()}})
    assert found.masked_model is None
    assert "left out, since there is no whole head: mask_token" in found.provenance["notes"]


def mae_shapes(reference: Any) -> dict[str, tuple[int, ...]]:
    """MAE with a decoder of two blocks, 32 channels and the published 16 heads."""
    shapes = reference.vit_shapes() | {"mask_token": (1, 1, 32), "decoder_pos_embed": (1, 10, 32)}
    shapes |= {"decoder_embed.weight": (32, 64), "decoder_embed.bias": (32,)}
    for i in range(2):
        shapes |= reference.block_shapes(f"decoder_blocks.{i}.", width=32, hidden=40)
    shapes |= {"decoder_norm.weight": (32,), "decoder_norm.bias": (32,)}
    return shapes | {"decoder_pred.weight": (48, 32), "decoder_pred.bias": (48,)}


def mae_patches(reference: Any, state: State, images: Tensor) -> Tensor:
    """Section 3 of the paper: the encoder sees visible patches only, the decoder everything, with its own positions."""
    state = {name: tensor.double() for name, tensor in state.items()}
    tokens = reference.with_prefix(state, reference.embedded(state, images.double()))
    visible = torch.cat([torch.ones(2, 1, dtype=torch.bool), ~HIDES], 1)
    layers, _ = reference.blocks(state, tokens[visible].unflatten(0, (2, -1)), 4, 1e-6)
    encoded = reference.linear(state, "decoder_embed", reference.layer_norm(state, "norm", layers[-1], 1e-6))
    everything = state["mask_token"].repeat(2, 10, 1)
    everything[visible] = encoded.flatten(0, 1)
    layers, _ = reference.blocks(state, everything + state["decoder_pos_embed"], 16, 1e-6, prefix="decoder_blocks.")
    return reference.linear(state, "decoder_pred", reference.layer_norm(state, "decoder_norm", layers[-1], 1e-6))[:, 1:]


def pixels_of(patches: Tensor) -> Tensor:
    """Patches in the order (row, column, colour) as pictures."""
    cells = patches.unflatten(2, (4, 4, 3)).unflatten(1, (3, 3))
    return torch.einsum("bhwyxc -> bchywx", cells).flatten(4).flatten(2, 3)


MAE_FILES = {
    "pixels": ({"args": argparse.Namespace(norm_pix_loss=False, lr=np.float32(1e-3))}, False, None),
    "normalised": ({"args": argparse.Namespace(norm_pix_loss=True)}, True, "borrow each true patch's mean"),
    "not said": ({}, False, "norm_pix_loss"),
}


@pytest.mark.parametrize(("beside", "normalised", "note"), MAE_FILES.values(), ids=MAE_FILES.keys())
def test_mae_predicts_from_visible_patches(tmp_path, beside, normalised, note, reference, images, close):
    state = reference.drawn(mae_shapes(reference))
    training = {"optimizer": {"state": {}}, "epoch": 799, "scaler": {"scale": 65536.0}}
    found = opened(tmp_path / "a.pth", {"model": state} | training | beside)
    assert found.provenance["format"] == "mae"
    assert isinstance(found.masked_model, MaskedAutoencoder)
    assert found.masking == MaskSettings(unit=4, ratio=0.75)
    expected = mae_patches(reference, state, images)
    close(found.masked_model.predict_patches(images, MASK), expected)
    if normalised:
        variance, mean = torch.var_mean(reference.patches_of(images.double(), 4), -1, keepdim=True)
        expected = expected * (variance + 1e-6).sqrt() + mean
    close(found.masked_model(images, MASK), pixels_of(expected))
    assert any(note in line for line in found.provenance["notes"]) if note else found.provenance["notes"] == []


def test_the_encoder_of_a_whole_mae_computes_what_it_does_without_decoder(tmp_path, reference, images, assert_computes):
    state = reference.drawn(mae_shapes(reference))
    found = opened(tmp_path / "a.pth", {"model": state})
    assert_computes(found.encoder, images, reference.vit(state, images, 4))


def test_an_encoder_alone_predicts_nothing(tmp_path, reference):
    assert opened(tmp_path / "a.pth", {"model": reference.drawn(reference.vit_shapes())}).masked_model is None
