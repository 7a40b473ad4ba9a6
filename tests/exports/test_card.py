"""The model card: metadata that the hub takes, nothing that is not known, and a program that runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from kamim_analysis import plugins
from kamim_analysis.cli import main

FORMS = plugins.names("kamim_analysis.exports")
LIBRARIES = {"timm": "timm", "huggingface": "transformers"}


def card_of(model: str | Path, form: str, out: Path) -> tuple[dict[str, Any], str]:
    """The metadata as the hub's own client reads it, and the text below."""
    from huggingface_hub import ModelCard

    main(["export", str(model), "--format", form, "--out", str(out)])
    card = ModelCard.load(out / "README.md")
    assert yaml.safe_load(card.content.split("\n---\n")[0].removeprefix("---\n")) == card.data.to_dict()
    return card.data.to_dict(), card.text


def program_in(text: str) -> str:
    (program,) = [block.removeprefix("python\n") for block in text.split("```") if block.startswith("python\n")]
    return program


@pytest.mark.parametrize("form", FORMS)
def test_the_card_says_what_the_run_tells(form, masked_vit, run_of, tmp_path):
    data, text = card_of(f"Mine={run_of(masked_vit)}", form, tmp_path / "out")
    assert data == {
        "library_name": LIBRARIES[form],
        "pipeline_tag": "image-feature-extraction",
        "model_name": "Mine",
        "tags": ["self-supervised-learning", "masked-image-modeling", "kamim", "vision-transformer", "kamim-analysis"],
    }
    assert text.strip().startswith("# Mine\n")
    assert "objective: `KAMIM (mask_unit 16, detector FAST (threshold 10))`" in text
    assert "data: `photos of cats (crop_scale [0.67, 1])`" in text
    assert "optimisation: `batch_size 32, learning_rate 0.002, decay_biases_and_norms true`" in text
    assert "after step 12, written by kamim-analysis 0.0.9" in text
    assert "(bilinear), take the central 32 x 32 px" in text
    assert "arXiv:2407.13873" in text
    assert "arXiv:2111.09886" in text
    assert "None is stated" in text
    weights = sum(parameter.numel() for parameter in masked_vit.encoder.parameters())
    assert f"3 blocks, 2 heads, 32 channels and {weights:,} weights" in text


@pytest.mark.parametrize("form", FORMS)
def test_a_swin_s_card(form, masked_swin, run_of, tmp_path):
    data, text = card_of(run_of(masked_swin, recipe={"objective": {"class_path": "SimMIM"}}), form, tmp_path / "out")
    assert data["tags"][2:4] == ["simmim", "swin-transformer"]
    assert "4 blocks, 2-4 heads, 32 channels" in text
    assert "in patches of 4 px, merged step by step to 8 px" in text
    assert "2407.13873" not in text
    assert "2111.09886" in text


@pytest.mark.parametrize("form", FORMS)
def test_no_path_of_this_machine_is_published(form, masked_vit, run_of, tmp_path):
    card_of(run_of(masked_vit), form, tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        assert str(tmp_path).encode() not in content
        assert b"somebody" not in content


def test_a_file_outside_of_a_run_tells_less(masked_vit, tmp_path):
    torch.save(masked_vit.state_dict(), tmp_path / "found.pth")
    data, text = card_of(tmp_path / "found.pth", "timm", tmp_path / "out")
    assert data["tags"] == ["self-supervised-learning", "masked-image-modeling", "vision-transformer", "kamim-analysis"]
    assert "a linear reconstruction head, as SimMIM trains them" in text
    assert "does not tell more of the training" in text
    assert "`found.pth`, read as layout `simmim`" in text
    assert "head count is not in the weights" in text
    assert "## Citation" not in text

    torch.save(masked_vit.encoder.state_dict(), tmp_path / "bare.pth")
    data, text = card_of(tmp_path / "bare.pth", "timm", tmp_path / "bare")
    assert data["tags"] == ["vision-transformer", "kamim-analysis"]


def test_a_control_is_called_one(masked_vit, run_of, tmp_path):
    data, text = card_of(f"random:{run_of(masked_vit)}", "timm", tmp_path / "out")
    assert data["model_name"] == "random:run"
    assert data["tags"][0] == "random-weights"
    assert "seeded random weights (seed 0)" in text
    assert "has learned nothing" in text
    assert "sha256" not in text
    assert "KAMIM (" not in text


@pytest.mark.parametrize(
    "label", ["# x\n---\nlicense: mit", "a: [b", "<script>*bold*`", "'\"{}", "!!python/object:x", "日本"]
)
def test_any_label_is_text(label, masked_vit, run_of, tmp_path):
    data, text = card_of(f"{label}={run_of(masked_vit)}", "timm", tmp_path / "out")
    assert data["model_name"] == " ".join(label.split())
    assert "license" not in data
    assert "<script>" not in text
    assert text.strip().splitlines()[0].startswith("# ")


@pytest.mark.parametrize("name", ["out", "an 'odd\" na`me"])
@pytest.mark.parametrize("masked", ["vit", "swin"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_the_program_runs(
    form: str, masked: Any, name: str, run_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = card_of(run_of(masked), form, tmp_path / name)
    Image.new("RGB", (60, 40)).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program_in(text), names)
    assert names["tokens"].shape[0] == 1
    assert names["tokens"].shape[-1] == 32
    if form == "huggingface":
        assert names["predicted"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "content", ["objective: [", "- a\n- b\n", "objective: KAMIM\n", "\x00", "objective: {class_path: 3}\n"]
)
def test_a_config_that_is_no_recipe_is_passed_over(content, masked_vit, run_of, tmp_path):
    run = run_of(masked_vit, recipe=None)
    (run / "config.yaml").write_text(content)
    _, text = card_of(run, "timm", tmp_path / "out")
    assert "does not tell more of the training" in text
    assert "50% of the units of 16 px were hidden" in text


@pytest.mark.parametrize("form", FORMS)
def test_a_masked_autoencoder_s_decoder_is_left_out_aloud(form, tiny_vit, randomised, tmp_path, capsys):
    from kamim_analysis.masked_autoencoder import MaskedAutoencoder

    model = randomised(MaskedAutoencoder(tiny_vit(), decoder_width=64, decoder_depth=1, decoder_heads=16))
    encoder = {key.removeprefix("encoder."): value for key, value in model.state_dict().items()}
    torch.save({"model": encoder}, tmp_path / "mae.pth")
    data, text = card_of(tmp_path / "mae.pth", form, tmp_path / "out")
    assert "note: the encoder alone" in capsys.readouterr().out
    assert "* the encoder alone" in text
    assert "a decoder of hidden patches, as MAE trains them" in text
    assert "masked-image-modeling" in data["tags"]
    assert "bool_masked_pos" not in text


def test_only_a_run_s_own_files_are_said_to_be_of_it(masked_vit, run_of, tmp_path):
    run = run_of(masked_vit)
    weights = run / "checkpoints" / "step-00000012" / "model.safetensors"
    for place, known in ((run / "encoder.safetensors", True), (run / "other.safetensors", False)):
        place.hardlink_to(weights)
        data, text = card_of(place, "timm", tmp_path / place.stem)
        assert ("KAMIM (mask_unit 16" in text) is known
        assert ("kamim" in data["tags"]) is known


def test_a_model_of_the_hub_keeps_its_name(masked_vit, run_of, tmp_path, monkeypatch):
    import kamim_analysis.opening

    card_of(run_of(masked_vit), "huggingface", tmp_path / "first")
    monkeypatch.setattr(kamim_analysis.opening, "fetch", lambda _name: tmp_path / "first")
    data, text = card_of("hf:owner/model", "timm", tmp_path / "again")
    assert data["model_name"] == "model"
    assert "source: `hf:owner/model`, read as layout `huggingface_vit`" in text
    assert "after step 12, written by kamim-analysis 0.0.9" in text


def test_the_folder_one_stands_in_has_a_name(masked_vit, run_of, tmp_path, monkeypatch):
    monkeypatch.chdir(run_of(masked_vit))
    data, text = card_of(".", "timm", tmp_path / "out")
    assert data["model_name"] == "run"
    assert "source: `run`" in text
