"""LABEL=SPEC as typed on the command line."""

import pytest
import torch
from safetensors.torch import save_file

from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import ModelSpec, parse, parse_all


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(1)}, path)
    return path


@pytest.fixture
def run(tmp_path):
    """A training run's directory with two checkpoints."""
    for step in (100, 200):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
    (tmp_path / "run" / "last").write_text("step-200\n")
    return tmp_path / "run"


def test_labels():
    assert parse("timm:vit_tiny_patch16_224").label == "timm:vit_tiny_patch16_224"
    assert parse("mine=timm:vit_tiny_patch16_224").label == "mine"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("random:vit_tiny", "random:vit_tiny"),
        ("SimMIM=random:vit_tiny", "SimMIM (random)"),
        ("a random=random:vit_tiny", "a random"),
    ],
)
def test_a_control_is_called_random_whatever_its_label(text, label):
    assert parse(text) == ModelSpec(label, text.split("=")[-1], "random", "vit_tiny")


def test_a_weights_file(weights):
    assert parse(str(weights)) == ModelSpec("w.safetensors", str(weights), "weights", str(weights))
    assert parse(f"x={weights}").label == "x"


def test_a_path_may_hold_an_equals_sign_after_a_label(tmp_path):
    path = tmp_path / "lr=0.1.safetensors"
    save_file({"w": torch.zeros(1)}, path)
    assert parse(f"best={path}").target == str(path)


def test_a_run_stands_for_its_last_checkpoint(run):
    spec = parse(f"KAMIM={run}")
    assert spec == ModelSpec("KAMIM", str(run), "weights", str(run / "checkpoints" / "step-200" / "model.safetensors"))
    assert parse(str(run / "checkpoints" / "step-100")).target.endswith("step-100/model.safetensors")


def test_a_control_of_a_run_points_at_its_weights(run):
    spec = parse(f"random:{run}")
    assert (spec.kind, spec.target) == ("random", str(run / "checkpoints" / "step-200" / "model.safetensors"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", "unknown model 'nowhere': no such file or directory; give a run directory"),
        ("x=", "names no SPEC: give a run directory, a weights file, .*timm:NAME, hf:OWNER/NAME or random:NAME"),
        ("", "names no SPEC"),
        (
            "timm:vit_tinny_patch16_224",
            "timm has no architecture 'vit_tinny_patch16_224'; did you mean 'vit_tiny_patch16_224'",
        ),
        ("random:vit_tinny", "timm has no architecture 'vit_tinny'; did you mean 'vit_tiny'"),
        ("random:", "architecture ''|names no"),
        ("timn:vit_tiny", "unknown model 'timn:vit_tiny'"),
    ],
)
def test_a_mistake_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is no training run: it has neither `last` nor model\.safetensors"):
        parse(str(tmp_path))


def test_a_run_whose_last_checkpoint_is_gone_is_refused(run):
    (run / "last").write_text("step-300\n")
    with pytest.raises(UserError, match="step-300"):
        parse(str(run))


def test_two_models_of_one_name_are_refused():
    with pytest.raises(UserError, match="two models are called 'a'; tell them apart with LABEL=SPEC"):
        parse_all(["a=timm:vit_tiny_patch16_224", "a=timm:vit_base_patch16_224"])
    assert [spec.label for spec in parse_all(["random:vit_tiny", "b=random:vit_tiny"])] == [
        "random:vit_tiny",
        "b (random)",
    ]
