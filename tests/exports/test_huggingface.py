"""transformers' form: it opens it as the same function with no key left over on either side, and so do we."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kamim_analysis.cli import main
from kamim_analysis.encoders import create
from kamim_analysis.errors import UserError
from kamim_analysis.exports.huggingface import export
from kamim_analysis.model_spec import parse
from kamim_analysis.opening import load_encoder, open_model
from kamim_analysis.reconstruction import MaskedImageModel, MaskSettings

EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 0, "atol": 1e-5}
CLASSES = {"vit": "ViT", "swin": "Swin"}


def exported(model: Path | str, tmp_path: Path, *options: str) -> Path:
    out = tmp_path / "exported"
    main(["export", str(model), "--format", "huggingface", "--out", str(out), *options])
    return out


def opened_by_transformers(name: str, folder: Path, **options: Any) -> Any:
    """A model of a class of transformers; every key of the file must have found its place, and the other way round."""
    import transformers

    found = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **options)
    model, told = found
    assert {what: [*told[what]] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")} == {
        "missing_keys": [], "unexpected_keys": [], "mismatched_keys": []
    }  # fmt: skip
    return model.eval()


def hidden(model: MaskedImageModel) -> torch.Tensor:
    side = model.anatomy.image_size.height // model.anatomy.mask_patch
    return torch.rand(2, side, side, generator=torch.Generator().manual_seed(2)) < 0.5


@pytest.mark.parametrize("masked", ["vit", "swin"], indirect=True)
@torch.no_grad()
def test_transformers_reconstructs_the_same(masked, run_of, tmp_path, images):
    out = exported(run_of(masked), tmp_path)
    kind = json.loads((out / "config.json").read_text())["model_type"]
    theirs = opened_by_transformers(f"{CLASSES[kind]}ForMaskedImageModeling", out)
    mask = hidden(masked)
    reconstruction = theirs(images, bool_masked_pos=mask.flatten(1)).reconstruction
    torch.testing.assert_close(reconstruction, masked(images, mask), **CLOSE)
    tokens = masked.encoder.forward_features(images).reshape(2, -1, masked.anatomy.width)
    torch.testing.assert_close(theirs.base_model(images).last_hidden_state, tokens, **CLOSE)
    assert reconstruction.std() > 0.1


@pytest.mark.parametrize("masked", ["vit", "swin"], indirect=True)
@torch.no_grad()
def test_we_open_the_same_model_again(masked, run_of, tmp_path, images, caplog):
    again = open_model(parse(str(exported(run_of(masked), tmp_path))))
    assert again.masked_model is not None
    mask = hidden(masked)
    torch.testing.assert_close(again.encoder.forward_features(images), masked.encoder.forward_features(images), **EXACT)
    torch.testing.assert_close(again.masked_model(images, mask), masked(images, mask), **EXACT)
    assert again.masking == MaskSettings(unit=16, ratio=0.5)
    assert again.provenance["step"] == 12
    assert again.provenance["transform"]["interpolation"] == "bilinear"
    assert again.provenance["notes"] == []


@pytest.mark.parametrize(("name", "kind"), [("vit", "ViT"), ("swin", "Swin")])
@torch.no_grad()
def test_an_encoder_alone_is_the_bare_model(name, kind, request, tmp_path, images):
    masked = request.getfixturevalue(f"masked_{name}")
    torch.save(masked.encoder.state_dict(), tmp_path / "weights.pth")
    out = exported(tmp_path / "weights.pth", tmp_path, "--heads", "2")
    options = {"add_pooling_layer": False}
    tokens = opened_by_transformers(f"{kind}Model", out, **options)(images).last_hidden_state
    ours = load_encoder(str(tmp_path / "weights.pth"), heads=2).forward_features(images)
    torch.testing.assert_close(tokens, ours.reshape(tokens.shape), **CLOSE)
    torch.testing.assert_close(load_encoder(str(out)).forward_features(images), ours, **EXACT)


def test_the_names_are_those_of_published_files(masked_vit, run_of, tmp_path):
    state = load_file(exported(run_of(masked_vit), tmp_path) / "model.safetensors")
    assert state["vit.encoder.layer.2.attention.attention.key.weight"].shape == (32, 32)
    assert state["vit.embeddings.mask_token"].shape == (1, 1, 32)
    assert {"vit.layernorm.bias", "vit.encoder.layer.0.intermediate.dense.weight", "decoder.0.bias"} <= state.keys()


def test_version_4_of_transformers_finds_all_that_it_keeps_of_a_swin(masked_swin, run_of, tmp_path):
    state = load_file(exported(run_of(masked_swin), tmp_path) / "model.safetensors")
    index = state["swin.encoder.layers.1.blocks.0.attention.self.relative_position_index"]
    assert index.shape == (16, 16)
    # of 7 x 7 relative positions: a token to itself is the middle one, the first to the last the first one
    assert (index.diagonal() == 24).all()
    assert index[0, 15] == 0
    assert {key.rpartition(".downsample.")[0] for key in state if "downsample" in key} == {"swin.encoder.layers.0"}


@pytest.mark.parametrize("crop", [{"crop_pct": 1.0}, {"crop_pct": 0.8}, {"crop_pct": 1.0, "crop_mode": "squash"}])
def test_pictures_are_prepared_alike(crop, masked_vit, run_of, tmp_path, pictures):
    from kamim_analysis.exports._directory import write

    how = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "interpolation": "bicubic"} | crop
    opened = open_model(parse(str(run_of(masked_vit))))
    opened.encoder.pretrained_cfg.update(how)
    write(export(opened), "", tmp_path)
    again = open_model(parse(str(tmp_path)))

    import timm.data
    from transformers import AutoImageProcessor

    settings = timm.data.resolve_data_config({"input_size": (3, 32, 32)}, model=opened.encoder)
    transform = timm.data.create_transform(**settings, is_training=False)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    for picture in pictures:
        # 3 : 2, since of an odd margin their centre crop gives the extra pixel to the other side
        picture = Image.fromarray(picture[:200, :300])
        ours, theirs = transform(picture), processor(picture, return_tensors="pt").pixel_values[0]
        # their resize works on tensors and rounds otherwise than Pillow's: off by a grey level or two
        levels = (ours - theirs).abs() * 255 * torch.tensor(how["std"])[:, None, None]
        assert levels.max() < 3
        assert levels.mean() < 0.5
        torch.testing.assert_close(again.transform(picture), ours, **EXACT)
    assert np.isclose(processor.rescale_factor, 1 / 255)


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "registers": ({"reg_tokens": 4}, "registers"),
    "no cls": ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "no cls token"),
    "positions": ({"no_embed_class": True}, "a cls token without a position"),
    "none": ({"pos_embed": "none"}, "no absolute positions"),
    "layer scale": ({"init_values": 0.1}, "layer scale"),
    "qk-norm": ({"qk_norm": True}, "normalised queries and keys"),
    "pre-norm": ({"pre_norm": True}, "a norm before the blocks"),
    "fc-norm": ({"global_pool": "avg", "fc_norm": True}, "no norm after the blocks"),
    "pooling": ({"global_pool": "map"}, "a pooling by attention"),
    "mlp norm": ({"scale_mlp_norm": True}, "a norm in the MLP"),
    "attention norm": ({"scale_attn_norm": True}, "blocks.0.attn.norm.weight"),
    "activation": ({"act_layer": "relu"}, "an activation other than GELU"),
    "tanh": ({"act_layer": "gelu_tanh"}, "an activation other than GELU"),
    "norm": ({"norm_layer": "rmsnorm"}, "norms other than LayerNorm"),
    "bias": ({"proj_bias": False}, "layers without bias"),
    "blocks": ({"attn_layer": "diff"}, "blocks other than Block with Attention"),
    "rectangle": ({"img_size": (32, 64)}, "not square"),
}


def opened_with(encoder: Any) -> Any:
    opened = open_model(parse("mine=random:vit_tiny"), 32)
    opened.encoder = encoder
    return opened


@pytest.mark.parametrize(("options", "named"), MISFITS.values(), ids=MISFITS)
def test_a_vit_that_does_not_fit_is_refused_with_the_reason(options, named, tiny_vit):
    with pytest.raises(UserError, match=r"does not fit transformers' ViT or Swin: it has .*--format timm") as caught:
        export(opened_with(tiny_vit(**options)))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"window": 8}, "windows that differ"),
        ({"window": (4, 2)}, "windows that differ or are not square"),
        ({"window": 3}, "grids that windows do not tile"),
        ({"always_partition": True}, "windows shifted where one holds the whole grid"),
        ({"head_dim": 16}, "heads that do not share the width"),
        ({"mlp_ratio": (4.0, 2.0)}, "MLPs whose ratio differs"),
    ],
)
def test_a_swin_that_does_not_fit_is_refused_with_the_reason(options, named, tiny_swin):
    with pytest.raises(UserError, match=r"it has .*--format timm") as caught:
        export(opened_with(tiny_swin(**options)))
    assert named in str(caught.value)


def test_epsilons_that_do_not_fit_are_refused(tiny_vit, tiny_swin):
    vit, swin = tiny_vit(), tiny_swin()
    vit.norm.eps = 1e-3
    with pytest.raises(UserError, match="LayerNorms of several epsilons"):
        export(opened_with(vit))
    swin.patch_embed.norm.eps = 1e-3
    with pytest.raises(UserError, match="an epsilon other than 1e-05 where patches are embedded and merged"):
        export(opened_with(swin))


@pytest.mark.parametrize(
    "name", ["vit_relpos_small_patch16_224", "beit_base_patch16_224", "deit_tiny_distilled_patch16_224"]
)
def test_another_architecture_is_refused_by_name(name):
    encoder = create(name, 32, sizes={"depth": 1, "width": 32, "heads": 2})
    with pytest.raises(UserError, match=rf"it is timm's \w+ \({name}\), neither .*; use --format timm"):
        export(opened_with(encoder))
