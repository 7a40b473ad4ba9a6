"""timm's form: timm opens it as the same function, bit for bit, and so do we."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from kamim_analysis.cli import main
from kamim_analysis.encoders import create
from kamim_analysis.model_spec import parse
from kamim_analysis.opening import load_encoder, open_model

EXACT = {"rtol": 0, "atol": 0}


def exported(model: Path | str, tmp_path: Path, *options: str) -> Path:
    out = tmp_path / "exported"
    main(["export", str(model), "--format", "timm", "--out", str(out), *options])
    return out


@pytest.mark.parametrize("masked", ["vit", "swin"], indirect=True)
@torch.no_grad()
def test_timm_and_we_open_the_same_function(masked, run_of, tmp_path, images):
    out = exported(run_of(masked), tmp_path)
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    expected = masked.encoder.forward_features(images)
    torch.testing.assert_close(theirs.forward_features(images), expected, **EXACT)
    torch.testing.assert_close(load_encoder(str(out)).forward_features(images), expected, **EXACT)
    assert theirs.num_classes == 0
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in masked.encoder.state_dict().items()
    }


@pytest.mark.parametrize("masked", ["vit", "swin"], indirect=True)
def test_pictures_are_prepared_alike(masked, run_of, tmp_path, pictures):
    from PIL import Image

    run = run_of(masked)
    out = exported(run, tmp_path)
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs), is_training=False)
    for model in (run, out):
        opened = open_model(parse(str(model)))
        assert opened.provenance["transform"]["interpolation"] == "bilinear"
        for picture in map(Image.fromarray, pictures):
            torch.testing.assert_close(transform(picture), opened.transform(picture), **EXACT)


@pytest.mark.parametrize("masked", ["vit", "swin"], indirect=True)
def test_timm_puts_a_classifier_on_it(masked, run_of, tmp_path, images):
    out = exported(run_of(masked), tmp_path)
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=5).eval()
    torch.testing.assert_close(theirs.forward_features(images), masked.encoder.forward_features(images), **EXACT)
    assert theirs(images).shape == (2, 5)


def test_no_claim_of_timm_s_own_weights_is_copied(masked_vit, run_of, tmp_path):
    config = json.loads((exported(run_of(masked_vit), tmp_path) / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["model_args"]["img_size"] == 32
    assert config["kamim"] == {"exported_by": config["kamim"]["exported_by"], "step": 12, "version": "0.0.9"}
    # of timm's weights of that name
    assert not {"license", "tag", "url", "hf_hub_id", "origin_url"} & config["pretrained_cfg"].keys()
    assert config["pretrained_cfg"]["crop_pct"] == 1.0
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 0


def test_a_swin_s_merging_layers_are_numbered_as_every_version_of_timm_reads_them(masked_swin, run_of, tmp_path):
    keys = load_file(exported(run_of(masked_swin), tmp_path) / "model.safetensors").keys()
    assert {key.rpartition(".downsample.")[0] for key in keys if "downsample" in key} == {"layers.0"}


ENCODERS: dict[str, dict[str, Any]] = {
    "registers": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1},
    "averaged": {"class_token": False, "global_pool": "avg", "fc_norm": True},
    "normalised": {"qk_norm": True, "pre_norm": True},
}


@pytest.mark.parametrize("options", ENCODERS.values(), ids=ENCODERS)
@torch.no_grad()
def test_encoders_that_transformers_cannot_hold_go_to_timm(options, tiny_vit, randomised, tmp_path, images):
    encoder = randomised(tiny_vit(**options))
    torch.save(encoder.state_dict(), tmp_path / "weights.pth")
    out = exported(tmp_path / "weights.pth", tmp_path, "--heads", "2")
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    torch.testing.assert_close(theirs.forward_features(images), encoder.forward_features(images), **EXACT)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_relpos_small_patch16_224", {"width": 32, "depth": 2, "heads": 2}),
        ("beit_base_patch16_224", {"width": 32, "depth": 2, "heads": 2}),
        ("vit_small_patch16_dinov3", {"width": 32, "depth": 2, "heads": 2}),
        ("swinv2_tiny_window8_256", None),
    ],
)
@torch.no_grad()
def test_other_families_go_to_timm(name, sizes, randomised, run_of, tmp_path):
    from kamim_analysis.reconstruction import MaskedImageModel

    options = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4} if sizes is None else {}
    encoder = create(name, 64, sizes=sizes, **options)
    model = randomised(MaskedImageModel(encoder))
    out = exported(run_of(model), tmp_path)
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    pixels = torch.randn(1, 3, 64, 64)
    expected = model.encoder.forward_features(pixels)
    torch.testing.assert_close(theirs.forward_features(pixels), expected, **EXACT)
    torch.testing.assert_close(load_encoder(str(out)).forward_features(pixels), expected, **EXACT)


@pytest.mark.parametrize("masked", ["vit", "swin"], indirect=True)
@torch.no_grad()
def test_an_epsilon_that_timm_cannot_be_told_is_said_and_comes_back(
    masked: Any, run_of: Callable[..., Path], tmp_path: Path, images: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    """In transformers it is a setting, which Swin's embedding and merging do not follow; in timm it is none."""
    theirs = tmp_path / "theirs"
    main(["export", str(run_of(masked)), "--format", "huggingface", "--out", str(theirs)])
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.01}))
    capsys.readouterr()

    out = exported(theirs, tmp_path)
    assert "than these weights' 0.01: set it after loading" in capsys.readouterr().out
    expected = load_encoder(str(theirs)).forward_features(images)
    torch.testing.assert_close(load_encoder(str(out)).forward_features(images), expected, **EXACT)
    plain = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    assert (plain.forward_features(images) - expected).abs().max() > 1e-3
    card = (out / "README.md").read_text()
    (told,) = [block for block in card.split("```") if block.startswith("python")]
    exec(told[told.index("for name, module") : told.index("transform =")], {"model": plain, "torch": torch})
    torch.testing.assert_close(plain.forward_features(images), expected, **EXACT)

    # and out of timm's form into transformers' again
    main(["export", str(out), "--format", "huggingface", "--out", str(tmp_path / "again")])
    assert json.loads((tmp_path / "again" / "config.json").read_text())["layer_norm_eps"] == 0.01
    torch.testing.assert_close(load_encoder(str(tmp_path / "again")).forward_features(images), expected, **EXACT)


@torch.no_grad()
def test_another_image_size_is_exported(masked_vit, run_of, tmp_path):
    run = run_of(masked_vit)
    out = exported(run, tmp_path, "--image_size", "48")
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    pixels = torch.randn(1, 3, 48, 48)
    expected = load_encoder(str(run), image_size=48).forward_features(pixels)
    torch.testing.assert_close(theirs.forward_features(pixels), expected, **EXACT)
    assert "position embedding resized from 32 px to 48 px" in (out / "README.md").read_text()


@torch.no_grad()
def test_what_timm_itself_saved_is_opened(tiny_vit, tmp_path, images):
    """timm's own function counts num_classes and in_chans among the arguments."""
    encoder = tiny_vit()
    arguments = encoder.model_args | {"num_classes": 0, "in_chans": 3}  # timm before 1.0.31 has to be told them
    timm.models.save_for_hf(encoder, str(tmp_path / "theirs"), safe_serialization=True, model_args=arguments)
    out = exported(tmp_path / "theirs", tmp_path)
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    torch.testing.assert_close(theirs.forward_features(images), encoder.forward_features(images), **EXACT)
