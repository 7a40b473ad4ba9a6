"""What comes with transformers' weights: config, preprocessing, shards; what is said of them, and what is refused."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import Reading, parse
from kamim_analysis.opening import load_encoder, open_model

Model = Callable[..., Any]
#: layouts by a class of each, with the parts that only some models have
CLASSES: dict[str, dict[str, Any]] = {
    "ViTForMaskedImageModeling": {},
    "ViTMAEForPreTraining": {},
    "BeitModel": {"use_relative_position_bias": True},
    "Dinov2Model": {"use_swiglu_ffn": True},
    "Dinov2WithRegistersModel": {},
    "DINOv3ViTModel": {"use_gated_mlp": True, "hidden_act": "silu"},
    "SwinForMaskedImageModeling": {
        "image_size": 16, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 4), "window_size": 2, "encoder_stride": 8,
    },
}  # fmt: skip


def refusal(spec: object) -> str:
    """The one line in which a spec is refused."""
    with pytest.raises(UserError) as caught:
        open_model(parse(str(spec), Reading(heads=4)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_weights(one: Any, other: Any) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_the_manifest_says_what_was_opened(transformers_model, tmp_path):
    transformers_model("ViTModel", layer_norm_eps=1e-6).save_pretrained(tmp_path)
    opened = open_model(parse(f"mine={tmp_path}"))
    assert opened.label == "mine"
    assert Path(opened.provenance["source"]).is_relative_to(tmp_path)
    assert {key: opened.provenance[key] for key in ("sha256", "format", "notes", "architecture")} == {
        "sha256": hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest(),
        "format": "huggingface_vit",
        "notes": [
            "left out: pooler.dense.bias, pooler.dense.weight",
            "mean and deviation are not in the weights: taken as ImageNet's",
        ],
        "architecture": "vit_base_patch16_224",
    }
    assert opened.provenance["transform"]["mean"] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("width", "heads", "guess"),
    [(32, 1, "head count is not in the weights: taken as 1 (32 channels each)"), (192, 3, "")],
)
def test_a_head_count_that_nothing_tells_is_guessed_aloud(width, heads, guess, transformers_model, tmp_path, caplog):
    """ViT-T, S, B and L have the published counts."""
    model = transformers_model("ViTModel", hidden_size=width, num_hidden_layers=1)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    with caplog.at_level(logging.WARNING):
        encoder = load_encoder(f"mine={tmp_path / 'weights.pth'}")
    assert encoder.blocks[0].attn.num_heads == heads
    assert ("head count" in caplog.text) == bool(guess)
    assert guess in caplog.text
    assert load_encoder(str(tmp_path / "weights.pth"), heads=4).blocks[0].attn.num_heads == 4


def test_a_given_head_count_goes_before_that_of_the_config(transformers_model, tmp_path):
    transformers_model("ViTModel").save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path)).blocks[0].attn.num_heads == 4
    assert load_encoder(str(tmp_path), heads=8).blocks[0].attn.num_heads == 8


def test_pictures_are_normalised_as_the_preprocessor_does(transformers_model, tmp_path):
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(
        size={"height": 12, "width": 12}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2
    )
    transformers_model("ViTModel").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8))
    opened = open_model(parse(str(tmp_path)))
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(opened.transform(picture), expected, rtol=0, atol=1e-5)
    assert opened.provenance["transform"]["interpolation"] == "bilinear"
    assert not any("mean and deviation" in note for note in opened.provenance["notes"])


def test_shards_open_as_one_file(transformers_model, tmp_path):
    model = transformers_model("ViTForMaskedImageModeling")
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    shards = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(shards) > 2
    whole, parts = (open_model(parse(str(tmp_path / name))) for name in ("whole", "parts"))
    same_weights(whole.masked_model, parts.masked_model)
    same_weights(parts.encoder, load_encoder(str(tmp_path / "parts" / "model.safetensors.index.json")))
    assert parts.provenance["sha256"] == hashlib.sha256(b"".join(map(Path.read_bytes, shards))).hexdigest()
    shards[1].unlink()
    assert shards[1].name in refusal(tmp_path / "parts")


def test_weights_of_before_safetensors_open_too(transformers_model, tmp_path):
    transformers_model("ViTModel").save_pretrained(tmp_path)
    expected = load_encoder(str(tmp_path))
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    same_weights(load_encoder(str(tmp_path)), expected)


def test_weights_of_half_precision_are_taken_up_in_single(transformers_model, tmp_path):
    model = transformers_model("ViTModel").bfloat16()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    torch.testing.assert_close(encoder.norm.weight, model.layernorm.weight.float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "config", "activation"),
    [
        ("ViTModel", {"hidden_act": "gelu_new"}, "gelu_new"),
        ("ViTMAEForPreTraining", {"hidden_act": "relu"}, "relu"),
        ("IJepaModel", {"hidden_act": "quick_gelu"}, "quick_gelu"),
        ("SwinModel", CLASSES["SwinForMaskedImageModeling"] | {"hidden_act": "relu"}, "relu"),
        ("BeitModel", {"hidden_act": "silu"}, "silu"),
        ("Dinov2Model", {"hidden_act": "silu"}, "silu"),
        ("DINOv3ViTModel", {"hidden_act": "silu"}, "silu"),
        ("DINOv3ViTModel", {"use_gated_mlp": True}, "gelu"),
    ],
)
def test_an_activation_that_timm_s_model_has_not_is_refused(name, config, activation, transformers_model, tmp_path):
    transformers_model(name, **config).save_pretrained(tmp_path)
    assert f"config.json asks for the activation '{activation}'" in refusal(tmp_path)


def test_rotary_positions_of_another_base_are_refused(transformers_model, tmp_path):
    transformers_model("DINOv3ViTModel", rope_theta=10_000.0).save_pretrained(tmp_path)
    assert "rotary positions of base 10000.0" in refusal(tmp_path)


def test_a_bias_of_keys_that_timm_s_model_has_not_is_refused(transformers_model, tmp_path):
    transformers_model("DINOv3ViTModel", key_bias=True).save_pretrained(tmp_path)
    assert "unexpected keys ['blocks.0.attn.k.bias', 'blocks.1.attn.k.bias']" in refusal(tmp_path)


@pytest.mark.parametrize(("name", "config"), CLASSES.items())
def test_a_key_too_many_is_refused_by_its_name(name, config, transformers_model, tmp_path):
    transformers_model(name, **config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"extra.weight": torch.zeros(1)}, file)
    assert "does not know extra.weight" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("layers.1.mlp.fc1.bias", "missing keys ['blocks.1.mlp.fc1.bias']"),
        ("layers.1.attention.k_proj.weight", "lack blocks.1.attn.k.weight"),
        ("layernorm.weight", "missing keys ['norm.weight']"),
    ],
)
def test_a_missing_key_is_named(missing, named, transformers_model, tmp_path):
    state = transformers_model("ViTModel").state_dict()
    del state[missing]
    torch.save(state, tmp_path / "weights.pth")
    assert named in refusal(tmp_path / "weights.pth")


@pytest.mark.parametrize(("name", "config"), CLASSES.items())
def test_whatever_key_is_missing_the_file_is_refused_in_one_line(name, config, transformers_model, tmp_path):
    """But for what opening can do without: mask tokens, head and registers."""
    state = transformers_model(name, **config).state_dict()
    file = tmp_path / "weights.pth"
    for missing in state:
        if not missing.endswith(("mask_token", "register_tokens", "decoder.0.weight", "decoder_embed.weight")):
            torch.save({key: value for key, value in state.items() if key != missing}, file)
            refusal(file)


def test_a_config_that_is_no_json_is_refused(transformers_model, tmp_path):
    transformers_model("ViTModel").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json' is no readable JSON" in refusal(tmp_path)


def test_a_head_count_of_the_config_that_does_not_fit_is_refused(transformers_model, tmp_path):
    transformers_model("ViTModel").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))
    with pytest.raises(UserError, match="5 heads do not divide the width 32"):
        load_encoder(str(tmp_path))
