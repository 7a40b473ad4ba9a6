"""`hf:OWNER/NAME`: the hub's own client finds a cached model without a network; what cannot be had is one line."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import parse
from kamim_analysis.opening import load_encoder, open_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(transformers_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as the client leaves it, with `owner/tiny` in it: a reference, and links from a snapshot to blobs."""
    from huggingface_hub import constants

    transformers_model("ViTModel").save_pretrained(tmp_path / "saved")
    cache = tmp_path / "hub"
    model = cache / "models--owner--tiny"
    for folder in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (model / folder).mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    for file in (tmp_path / "saved").iterdir():
        blob = model / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blob)
        (model / "snapshots" / COMMIT / file.name).symlink_to(Path("../../blobs") / blob.name)
    # the client reads its environment when it is imported, and these whenever it is asked
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def test_a_cached_model_opens_as_its_directory(cached):
    opened = open_model(parse("hf:owner/tiny"))
    snapshot = cached / "models--owner--tiny" / "snapshots" / COMMIT
    assert opened.label == "tiny"
    assert opened.provenance["format"] == "huggingface_vit"
    assert opened.provenance["sha256"] == (snapshot / "model.safetensors").resolve().name
    assert opened.encoder.blocks[0].attn.num_heads == 4  # of its config.json
    expected = load_encoder(str(snapshot)).state_dict()
    torch.testing.assert_close(opened.encoder.state_dict(), expected, rtol=0, atol=0)


def models(spec: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """`kamim models SPEC` as a user without a network calls it."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-m", "kamim_analysis", "models", spec]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_command_line_respects_the_client_s_own_environment(cached):
    done = models("hf:owner/tiny", cached)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hf:owner/tiny: format huggingface_vit\n")
    assert "left out: pooler.dense.bias, pooler.dense.weight" in done.stdout


def test_a_model_that_is_not_cached_is_one_line(cached):
    done = models("hf:owner/absent", cached)
    assert done.returncode == 2
    assert done.stderr.startswith("kamim: error: hf:owner/absent is neither cached nor reachable (")
    assert done.stderr.count("\n") == 1


def refusal(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        open_model(parse(spec))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("cached")
def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # where nothing listens
    assert "hf:owner/absent is neither cached nor reachable" in refusal("hf:owner/absent")
    assert load_encoder("hf:owner/tiny").blocks[0].attn.num_heads == 4


def test_a_model_without_weights_is_one_line(cached):
    snapshot = cached / "models--owner--tiny" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    assert refusal("hf:owner/tiny").startswith("hf:owner/tiny holds none of model.safetensors")


@pytest.mark.parametrize("spec", ["hf:owner", "hf:owner/name/more", "hf:../tiny/x", "hf:owner/"])
def test_what_is_no_name_of_the_hub_is_refused_before_it_is_asked(spec):
    with pytest.raises(UserError, match="give hf:OWNER/NAME"):
        parse(spec)
