"""transformers' Swin: opened as the same function, its attention in shifted windows put in place by hand."""

from itertools import product
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import Reading, parse
from kamim_analysis.opening import open_model

Expected = tuple[list[Tensor], list[Tensor], Tensor]
# two stages with patches of 4 px, two blocks each, the second shifted
SIZES: dict[str, Any] = {
    "image_size": 32, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "encoder_stride": 8,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "one window in the last stage": {},
    "windows of 3, shifted in both stages": {"image_size": 48, "window_size": 3},
    "windows of 5": {"image_size": 40, "window_size": 5},
    "windows of 2, three stages": {"depths": (2, 2, 2), "num_heads": (2, 4, 8), "window_size": 2, "encoder_stride": 16},
    "an odd depth": {"depths": (1, 3)},
    "no bias of query, key and value": {"qkv_bias": False},
    "a narrow mlp": {"mlp_ratio": 2.5},
}
CLASSES: dict[str, list[str]] = {
    "SwinForImageClassification": ["left out: classifier.bias, classifier.weight"],
    "SwinForMaskedImageModeling": [],
}


def computed(model: Any, images: Tensor) -> Expected:
    """Tokens before the first and after every block, attention stitched, and normalised tokens, by transformers.

    transformers hands out tokens and attention of a stage's last block only, so hooks ask every block.
    """
    from transformers.models.swin.modeling_swin import SwinLayer

    blocks = [module for module in model.modules() if isinstance(module, SwinLayer)]
    handed: list[tuple[Tensor, Tensor]] = []
    handles = [block.register_forward_hook(lambda _m, _inputs, output: handed.append(output)) for block in blocks]
    outputs = model.base_model(images, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    tokens = [outputs.hidden_states[0], *(after for after, _attention in handed)]
    attention = [stitched(block, *output) for block, output in zip(blocks, handed, strict=True)]
    return [t.double() for t in tokens], attention, outputs.last_hidden_state.double()


def stitched(block: Any, tokens: Tensor, attention: Tensor) -> Tensor:
    """[B, heads, N, N]: token (y, x) of window (v, w) is the pixel that the shift rolled there."""
    side, window, shift = round(tokens.shape[1] ** 0.5), block.window_size, block.shift_size
    of_window = attention.double().unflatten(0, (len(tokens), -1))
    whole = torch.zeros(*of_window[:, 0].shape[:2], side**2, side**2, dtype=torch.float64)
    for i, (v, w) in enumerate(product(range(side // window), repeat=2)):
        rows, columns = ([(n * window + k + shift) % side for k in range(window)] for n in (v, w))
        place = torch.tensor([row * side + column for row in rows for column in columns])
        whole[:, :, place[:, None], place] = of_window[:, i]
    return whole


def pictures(model: Any) -> Tensor:
    return torch.randn(2, 3, model.config.image_size, model.config.image_size)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_a_saved_directory_opens_as_the_same_function(variant, transformers_model, assert_computes, tmp_path):
    model = transformers_model("SwinModel", **SIZES | variant)
    model.save_pretrained(tmp_path)
    images = pictures(model)
    opened = open_model(parse(str(tmp_path)))
    assert opened.provenance["format"] == "huggingface_swin"
    assert_computes(opened.encoder, images, computed(model, images))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_a_state_dict_opens_as_the_same_function(variant, transformers_model, assert_computes, tmp_path):
    model = transformers_model("SwinModel", **SIZES | variant)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    images = pictures(model)
    opened = open_model(parse(str(tmp_path / "weights.pth")), images.shape[-1])
    assert_computes(opened.encoder, images, computed(model, images))


@torch.no_grad()
def test_the_config_s_epsilon_is_that_of_blocks_and_final_norm_alone(transformers_model, assert_computes, tmp_path):
    model = transformers_model("SwinModel", **SIZES, layer_norm_eps=1e-3)
    model.save_pretrained(tmp_path)
    images = pictures(model)
    assert_computes(open_model(parse(str(tmp_path))).encoder, images, computed(model, images))


@pytest.mark.parametrize(("name", "left_out"), CLASSES.items())
@torch.no_grad()
def test_every_class_opens(name, left_out, transformers_model, assert_computes, tmp_path):
    model = transformers_model(name, **SIZES)
    model.save_pretrained(tmp_path)
    images = pictures(model)
    opened = open_model(parse(str(tmp_path)))
    assert [note for note in opened.provenance["notes"] if "left out" in note] == left_out
    assert_computes(opened.encoder, images, computed(model, images))


@pytest.mark.parametrize("variant", ["one window in the last stage", "windows of 3, shifted in both stages"])
@torch.no_grad()
def test_reconstructions_are_the_same(variant, transformers_model, tmp_path):
    model = transformers_model("SwinForMaskedImageModeling", **SIZES | VARIANTS[variant])
    model.save_pretrained(tmp_path)
    torch.save({"model_state_dict": model.state_dict(), "epoch": 3}, tmp_path / "kamim.pth")
    images = pictures(model)
    grid = images.shape[-1] // 4
    mask = torch.rand(2, grid, grid) < 0.5
    expected = model(images, bool_masked_pos=mask.flatten(1)).reconstruction
    for file in (tmp_path, tmp_path / "kamim.pth"):
        opened = open_model(parse(str(file), Reading()), images.shape[-1])
        assert opened.masked_model is not None
        torch.testing.assert_close(opened.masked_model(images, mask), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["swin.embeddings.mask_token", "decoder.0.weight"])
def test_half_a_head_is_left_out_and_announced(name, transformers_model, tmp_path):
    state = transformers_model("SwinForMaskedImageModeling", **SIZES).state_dict()
    del state[name]
    torch.save(state, tmp_path / "weights.pth")
    opened = open_model(parse(str(tmp_path / "weights.pth")))
    assert opened.masked_model is None
    assert any("head and mask token are not both there" in note for note in opened.provenance["notes"])


@torch.no_grad()
def test_the_buffers_of_earlier_versions_are_computed(transformers_model, tmp_path):
    transformers_model("SwinModel", **SIZES).save_pretrained(tmp_path)
    before = open_model(parse(str(tmp_path))).encoder.state_dict()
    state = load_file(tmp_path / "model.safetensors")
    tables = [key for key in state if key.endswith("relative_position_bias_table")]
    assert len(tables) == 4
    state |= {key.replace("bias_table", "index"): torch.zeros(16, 16, dtype=torch.int64) for key in tables}
    save_file(state, tmp_path / "model.safetensors")
    after = open_model(parse(str(tmp_path))).encoder.state_dict()
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({"image_size": 40}, ["windows of 4 do not tile the 10 x 10 tokens of stage 1"]),
        ({"image_size": 48}, ["windows of 4 do not tile the 6 x 6 tokens of stage 2"]),
        ({"image_size": 40, "depths": (1, 1)}, []),
        ({"image_size": 64}, []),
    ],
)
def test_windows_that_do_not_tile_the_picture_are_announced(changed, note, transformers_model, tmp_path):
    """There transformers pads before it shifts, timm after it shifts: no timm model is the same function."""
    transformers_model("SwinModel", **SIZES | changed).save_pretrained(tmp_path)
    notes = open_model(parse(str(tmp_path))).provenance["notes"]
    assert [one.split(":")[0] for one in notes if one.startswith("windows")] == note


def test_a_position_embedding_is_refused_for_timm_has_none(transformers_model, tmp_path):
    transformers_model("SwinModel", **SIZES, use_absolute_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"huggingface_swin does not know embeddings\.position_embeddings"):
        open_model(parse(str(tmp_path)))
