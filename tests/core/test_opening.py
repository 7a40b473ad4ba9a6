"""Weights opened from a file: round trips, resized position embeddings, and every key accounted for."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm.layers
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from kamim_analysis.encoders import create
from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import Reading, parse
from kamim_analysis.opening import load_encoder, open_model
from kamim_analysis.reconstruction import MaskedImageModel, MaskSettings
from kamim_analysis.weights_file import write_state

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"reg_tokens": 4},
    "DINOv2": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
    "layer scale without registers": {"init_values": 0.1},
    "no cls": {"class_token": False, "global_pool": "avg"},
    "no cls, normalised after pooling": {"class_token": False, "global_pool": "avg", "fc_norm": True},
    "qk-norm": {"qk_norm": True},
    "no qkv bias": {"qkv_bias": False},
    "pre-norm": {"pre_norm": True},
    "narrow mlp": {"mlp_ratio": 2.5},
}


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def randomised(encoder: Any) -> Any:
    """Every weight random, so that a weight left at its initial value shows."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    return encoder.eval()


def vit(image_size: int = 64, heads: int = 1, width: int = 64, **options: Any) -> Any:
    sizes = {"width": width, "depth": 2, "heads": heads, "patch_size": 16}
    return randomised(create("vit_tiny", image_size, sizes=sizes, **options))


def saved(path: Path, state: dict[str, Tensor]) -> str:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save({"model": state, "epoch": 3}, path)
    return str(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_a_vit_s_state_dict_is_opened_as_the_same_function(tmp_path, options, suffix):
    encoder = vit(**options)
    opened = load_encoder(saved(tmp_path / f"a.{suffix}", encoder.state_dict()))
    assert not opened.training
    torch.testing.assert_close(opened.forward_features(images()), encoder.forward_features(images()), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@torch.no_grad()
def test_a_swin_s_state_dict_is_opened_as_the_same_function(tmp_path, suffix):
    encoder = randomised(create("swin_tiny", 64, sizes={"width": 24}))
    opened = load_encoder(saved(tmp_path / f"a.{suffix}", encoder.state_dict()))
    torch.testing.assert_close(opened.forward_features(images()), encoder.forward_features(images()), rtol=0, atol=0)


@pytest.mark.parametrize(("width", "hidden"), [(448, 488), (64, 176), (64, 67)])
def test_any_width_of_the_mlp_is_read_off(tmp_path, width, hidden):
    encoder = vit(32, width=width, heads=width // 64, mlp_ratio=(hidden + 0.5) / width)
    assert encoder.blocks[0].mlp.fc1.out_features == hidden
    opened = load_encoder(saved(tmp_path / "a.pth", encoder.state_dict()))
    assert opened.blocks[0].mlp.fc1.out_features == hidden


@torch.no_grad()
def test_a_classifier_is_left_out_and_announced(tmp_path, caplog):
    encoder = randomised(
        timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=64, depth=2, num_heads=1, num_classes=5)
    )
    with caplog.at_level(logging.WARNING):
        opened = load_encoder(f"mine={saved(tmp_path / 'a.pth', encoder.state_dict())}")
    torch.testing.assert_close(opened.forward_features(images()), encoder.forward_features(images()))
    assert "mine: left out: head.bias, head.weight" in caplog.text


def test_a_head_count_that_weights_do_not_tell_is_announced_and_can_be_given(tmp_path, caplog):
    path = saved(tmp_path / "a.pth", vit(heads=4, width=128).state_dict())
    with caplog.at_level(logging.WARNING):
        assert load_encoder(path).blocks[0].attn.num_heads == 2
    assert "head count is not in the weights: taken as 2 (64 channels each)" in caplog.text
    assert open_model(parse(path, Reading(heads=4))).encoder.blocks[0].attn.num_heads == 4


def test_qk_norm_tells_the_head_count(tmp_path):
    path = saved(tmp_path / "a.pth", vit(heads=4, width=64, qk_norm=True).state_dict())
    assert load_encoder(path).blocks[0].attn.num_heads == 4


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4}, {"reg_tokens": 4, "no_embed_class": True}])
@pytest.mark.parametrize("size", [32, 96, 112])
def test_a_resized_position_embedding_is_timm_s(tmp_path, options, size):
    encoder = vit(**options)
    opened = load_encoder(saved(tmp_path / "a.pth", encoder.state_dict()), image_size=size)
    prefix = 0 if "no_embed_class" in options else encoder.num_prefix_tokens
    expected = timm.layers.resample_abs_pos_embed(
        encoder.pos_embed.detach(), new_size=[size // 16] * 2, old_size=[4, 4], num_prefix_tokens=prefix
    )
    torch.testing.assert_close(opened.pos_embed, expected, rtol=0, atol=0)
    assert opened.forward_features(images(size)).isfinite().all()


def test_resizing_is_announced(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_encoder(saved(tmp_path / "a.pth", vit().state_dict()), image_size=96)
    assert "position embedding resized from 64 px to 96 px" in caplog.text


@torch.no_grad()
def test_a_swin_keeps_its_weights_at_another_size(tmp_path):
    encoder = randomised(create("swin_tiny", 64, sizes={"width": 24}))
    opened = load_encoder(saved(tmp_path / "a.pth", encoder.state_dict()), image_size=128)
    for key, value in encoder.state_dict().items():
        torch.testing.assert_close(opened.state_dict()[key], value, rtol=0, atol=0)
    assert opened.forward_features(images(128)).shape == (2, 4, 4, 192)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("blocks.1.norm2.weight"),
            r"missing keys \['blocks\.1\.norm2\.weight'\], unexpected keys none",
        ),
        (
            lambda s: s.update(extra=torch.zeros(1)),
            r"Nearest: timm_vit \(as model\) does not know extra;",
        ),
        (
            lambda s: s.update({"blocks.0.attn.proj.bias": torch.zeros(3)}),
            "does not fit: .*size mismatch for blocks.0.attn.proj",
        ),
        (lambda s: s.pop("norm.weight"), r"missing keys \['norm\.weight'\]"),
    ],
    ids=["missing", "unexpected", "another shape", "no final norm"],
)
def test_every_key_must_fit(tmp_path, change, message):
    state = vit().state_dict()
    change(state)
    with pytest.raises(UserError, match=message) as caught:
        load_encoder(saved(tmp_path / "a.pth", state))
    assert "\n" not in str(caught.value)


def test_a_swin_with_a_missing_key_is_refused(tmp_path):
    state = create("swin_tiny", 64, sizes={"width": 24}).state_dict()
    del state["layers.2.blocks.1.mlp.fc1.bias"]
    with pytest.raises(UserError, match=r"missing keys \['layers\.2\.blocks\.1\.mlp\.fc1\.bias'\]"):
        load_encoder(saved(tmp_path / "a.pth", state))


def test_keys_of_no_known_layout_are_refused_with_their_beginning(tmp_path):
    with pytest.raises(
        UserError, match=r"fits no known layout .*Nearest: .* lacks .* and does not know v, w|does not know w, v"
    ):
        load_encoder(saved(tmp_path / "a.pth", {"w": torch.zeros(1), "v": torch.zeros(1)}))


def test_a_position_embedding_that_is_no_square_is_refused(tmp_path):
    state = vit().state_dict()
    state["pos_embed"] = torch.zeros(1, 12, 64)
    with pytest.raises(UserError, match="pos_embed has 12 positions, which is no square grid"):
        load_encoder(saved(tmp_path / "a.pth", state))


def our_file(path: Path, model: MaskedImageModel, **changes: Any) -> str:
    description = {
        "architecture": model.encoder.architecture, "model_args": model.encoder.model_args,
        "masking": {"unit": 16, "ratio": 0.5}, "step": 12,
    }  # fmt: skip
    write_state(path, model.state_dict(), description | changes)
    return str(path)


@torch.no_grad()
def test_our_own_file_comes_back_with_head_and_mask_token(tmp_path):
    model = randomised(MaskedImageModel(vit(heads=4)))
    opened = open_model(parse(our_file(tmp_path / "model.safetensors", model)))
    mask = torch.rand(2, 4, 4) < 0.5
    assert opened.masked_model is not None
    torch.testing.assert_close(opened.masked_model(images(), mask), model(images(), mask), rtol=0, atol=0)
    assert opened.masking == MaskSettings(unit=16, ratio=0.5)
    assert opened.encoder.blocks[0].attn.num_heads == 4


def test_a_missing_mask_token_is_refused(tmp_path):
    model = MaskedImageModel(vit())
    state = model.state_dict()
    del state["mask_token"]
    write_state(
        tmp_path / "m.safetensors",
        state,
        {"architecture": model.encoder.architecture, "model_args": model.encoder.model_args},
    )
    with pytest.raises(UserError, match=r"missing keys \['mask_token'\]"):
        load_encoder(str(tmp_path / "m.safetensors"))


def test_an_unknown_key_beside_encoder_and_decoder_is_refused(tmp_path):
    model = MaskedImageModel(vit())
    state = model.state_dict() | {"teacher.weight": torch.zeros(2)}
    write_state(
        tmp_path / "m.safetensors",
        state,
        {"architecture": model.encoder.architecture, "model_args": model.encoder.model_args},
    )
    with pytest.raises(UserError, match=r"unexpected keys \['teacher\.weight'\]"):
        load_encoder(str(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    "description", [{}, {"architecture": "no_such_model", "model_args": {}}, {"architecture": "vit_tiny_patch16_224"}]
)
def test_a_description_that_does_not_say_enough_is_refused(tmp_path, description):
    write_state(tmp_path / "m.safetensors", vit().state_dict(), {"step": 1} | description)
    with pytest.raises(UserError):
        load_encoder(str(tmp_path / "m.safetensors"))


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone():
    state = torch.get_rng_state()
    spec = parse("random:vit_tiny")
    first, again, other = (open_model(spec, 32, seed=seed).encoder.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.values(), again.values(), strict=True))
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_a_control_of_a_file_shares_its_architecture_and_none_of_its_weights(tmp_path):
    encoder = vit(heads=4, reg_tokens=2)
    path = our_file(tmp_path / "model.safetensors", MaskedImageModel(encoder))
    control = load_encoder(f"random:{path}").state_dict()
    assert {k: v.shape for k, v in control.items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    assert not torch.equal(control["blocks.0.mlp.fc1.weight"], encoder.state_dict()["blocks.0.mlp.fc1.weight"])


def test_a_size_that_patches_do_not_tile_is_refused_before_a_picture_is_shown():
    with pytest.raises(UserError, match="100"):
        open_model(parse("random:vit_tiny"), 100)


@pytest.mark.parametrize("size", [None, 96])
def test_a_transformed_picture_fits_the_model(size):
    opened = open_model(parse("random:vit_tiny"), size)
    batch = opened.transform(Image.new("RGB", (130, 70)))[None]
    assert opened.encoder(batch).shape == (1, 192)


def test_an_opened_encoder_is_frozen(tmp_path):
    encoder = load_encoder(saved(tmp_path / "a.pth", vit().state_dict()))
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
