"""Files of hostile origin: nothing in them is executed, no model larger than its file is built, one line says why."""

import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from kamim_analysis.encoders import create
from kamim_analysis.errors import UserError
from kamim_analysis.opening import load_encoder
from kamim_analysis.weights_file import write_state

Refused = Callable[..., str]
SOON = 20.0  # seconds; what is refused before anything is built takes one


def holding(folder: Path, form: str, payload: object) -> Path:
    """A weights file with a payload in it."""
    path = folder / f"hostile.{'bin' if form == 'plain' else 'pth'}"
    if form == "plain":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save({"w": torch.zeros(2), "args": payload}, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
@pytest.mark.parametrize("command", ["analyze", "knn", "export", "models", "probe", "random"])
def test_weights_with_code_are_refused_by_every_command(
    tmp_path, class_folders, refused: Refused, target, payload, form, command
):
    path, out = holding(tmp_path, form, payload), tmp_path / "out"
    spec = f"random:{path}" if command == "random" else path
    given = [] if command == "models" else ["--out", out]
    given += ["--data", class_folders] if command not in ("models", "export") else []
    given += ["--format", "timm"] if command == "export" else []
    assert "pickled code" in refused("analyze" if command == "random" else command, spec, *given)
    assert not target.exists()
    assert not out.exists()


@pytest.fixture
def run(tmp_path: Path, tiny_run: Path) -> Path:
    """A run to be damaged."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def last(run: Path) -> Path:
    return run / "checkpoints" / (run / "last").read_text().strip()


def test_a_run_s_state_with_code_is_refused(tmp_path, run, class_folders, refused: Refused, target, payload):
    pickled = pickle.dumps(payload)
    for path in (last(run) / "model.safetensors", run / "encoder.safetensors"):
        path.write_bytes(pickled)
    refused("analyze", run, "--data", class_folders, "--out", tmp_path / "out")
    (run / "last").write_text("../..")
    assert "names no checkpoint" in refused("analyze", run, "--data", class_folders, "--out", tmp_path / "out")
    assert not target.exists()


TAG = "!!python/object/apply:os.mkdir ['{target}']"


@pytest.mark.parametrize("place", ["config", "base", "sweep", "run"])
def test_yaml_with_object_tags_is_refused(tmp_path, run, refused: Refused, target, place):
    hostile, out = tmp_path / "hostile.yaml", tmp_path / "out"
    hostile.write_text(f"seed: {TAG.format(target=target)}\n")
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.safe_load(hostile.read_text())
    if place == "base":
        (tmp_path / "own.yaml").write_text("base: hostile.yaml\n")
    if place == "run":
        shutil.copy(hostile, run / "config.yaml")
    commands = {
        "config": ["train", "--config", hostile, "--out", out],
        "base": ["train", "--config", tmp_path / "own.yaml", "--out", out],
        "sweep": ["sweep", hostile, "--out", out],
        "run": ["train", "--recipe", "kamim_photographs", "--out", run],
    }
    assert "could not determine a constructor" in refused(*commands[place])
    assert not target.exists()
    assert not out.exists()


@pytest.mark.parametrize(
    "asked",
    [
        "objective: hostile_module.Anything",
        "objective: {{class_path: hostile_module.Anything}}",
        "objective: {{init_args: {{detector: hostile_module.Anything}}}}",
        "objective: {{init_args: {{detector: {{class_path: hostile_module.Anything}}}}}}",
        "sweep objective: hostile_module.Anything",
        "sweep objective.detector: hostile_module.Anything",
        "sweep objective.detector: {{class_path: hostile_module.Anything}}",
        "sweep objective.class_path: hostile_module.Anything",
        "sweep objective.init_args.detector.class_path: hostile_module.Anything",
        "sweep objective.help: hostile_module.Anything",
    ],
)
def test_a_recipe_cannot_have_a_module_imported(tmp_path, monkeypatch, refused: Refused, target, asked):
    """jsonargparse imports whatever class_path names; a module in the working directory is code of anybody's."""
    (tmp_path / "hostile_module.py").write_text(f"import os\nos.mkdir({str(target)!r})\nclass Anything: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    path, out = tmp_path / "asked.yaml", tmp_path / "out"
    asked = asked.replace("{{", "{").replace("}}", "}")
    if asked.startswith("sweep "):
        path.write_text(f"recipe: kamim_photographs\noverrides:\n  {asked.removeprefix('sweep ')}\n")
        refused("sweep", path, "--out", out)
    else:
        path.write_text(f"base: kamim_photographs\n{asked}\n")
        assert "no class 'hostile_module.Anything'" in refused("train", "--config", path, "--out", out)
    assert not target.exists()
    assert not out.exists()


def laughs(leaf: str = "[x, x]", merge: bool = False) -> str:
    """2^30 nodes in thirty lines."""
    lines = [f"a0: &a0 {leaf}"]
    for i in range(1, 30):
        twice = f"[*a{i - 1}, *a{i - 1}]"
        lines.append(f"a{i}: &a{i} {{<<: {twice}}}" if merge else f"a{i}: &a{i} {twice}")
    return "\n".join(lines)


YAMLS = {
    "aliases of aliases": (laughs(), "aliases written out"),
    "merges of merges": (laughs("{x: 1}", merge=True), "aliases written out"),
    "an alias of itself": ("data: &a {source: *a}", "leads into itself"),
    "2,000 lists": ("data: " + "[" * 2_000, "nested too deep"),
    "2,000 mappings": ("data: " + "{a: " * 2_000, "nested too deep"),
    "5,000 digits": ("seed: " + "9" * 5000, "digits"),
    "a zero byte": ('base: "a\\0.yaml"', "neither"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_that_would_fill_memory_is_refused(tmp_path, refused: Refused, name):
    text, reason = YAMLS[name]
    (tmp_path / "hostile.yaml").write_text(text)
    started = monotonic()
    assert reason in refused("train", "--config", tmp_path / "hostile.yaml", "--out", tmp_path / "out")
    if name != "a zero byte":
        assert reason in refused("sweep", tmp_path / "hostile.yaml", "--out", tmp_path / "out")
    assert monotonic() - started < SOON


def test_aliases_of_an_honest_recipe_are_followed(tmp_path, refused: Refused):
    """The first mistake is of what the alias stands for."""
    text = "base: kamim_photographs\noptim: {epochs: &n 4, warmup_epochs: *n}\n"
    (tmp_path / "own.yaml").write_text(text)
    said = refused("train", "--config", tmp_path / "own.yaml", "--out", tmp_path / "out")
    assert "optim.warmup_epochs 4.0 is not less than optim.epochs 4" in said


def header(path: Path, content: bytes, data: bytes = bytes(8), length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + data)
    return path


def entry(**changed: Any) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changed}).encode()


HEADERS = {
    "length 2^63": (b"{}", 2**63),
    "length 100 MB": (b" " * 100_000_000, None),
    "nested": (b'{"a":' * 100_000, None),
    "negative offset": (entry(data_offsets=[-8, 0]), None),
    "offset beyond": (entry(data_offsets=[0, 2**62]), None),
    "overlapping": (entry()[:-1] + b"," + entry()[1:].replace(b'"a"', b'"b"'), None),
    "kind": (entry(dtype="X99"), None),
    "overflow": (entry(shape=[2**33] * 3), None),
    "negative size": (entry(shape=[-1, -2]), None),
    "texts": (entry(data_offsets=["0", "8"]), None),
    "a list": (b"[1, 2]", None),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", None),
    "description nested": (entry()[:-1] + b', "__metadata__": {"kamim": "' + b"[" * 100_000 + b'"}}', None),
    "tensors": (b"{" + b",".join(b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(60_000))
                + b"}", None),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_absurd_headers_are_refused(tmp_path, refused: Refused, name):
    content, length = HEADERS[name]
    path, started = header(tmp_path / "a.safetensors", content, length=length), monotonic()
    assert "is no readable safetensors file" in refused("models", path)
    assert monotonic() - started < SOON


def test_a_tensor_s_name_cannot_write_on_the_terminal(tmp_path, refused: Refused):
    content = entry().replace(b'"a"', json.dumps("a\nkamim: done\x1b[2J\u202e").encode())
    said = refused("models", header(tmp_path / "a.safetensors", content))
    assert r"a\nkamim: done\x1b[2J\u202e" in said


def bomb(path: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in members.items():
            new.writestr(name, content)
    assert path.stat().st_size < 20_000


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (bomb, "would unpack to 4,000,"),
        (lambda path: torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path), "1,000,000,000,000 numbers, and 1"),
        (lambda path: path.write_bytes(b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."), "cannot be read"),
    ],
    ids=["bomb", "one number many times", "nested"],
)
def test_a_few_bytes_do_not_become_terabytes(tmp_path, refused: Refused, write, reason):
    write(tmp_path / "a.pth")
    assert reason in refused("models", tmp_path / "a.pth")


@pytest.fixture
def described(tmp_path: Path) -> Callable[..., Path]:
    """A small encoder with a description of its own, changed."""
    encoder = create("vit_tiny", 32, sizes={"width": 16, "depth": 2, "heads": 2, "patch_size": 8})

    def write(arguments: Any = None, **changed: Any) -> Path:
        about = {"architecture": encoder.architecture, "model_args": encoder.model_args | (arguments or {})}
        write_state(tmp_path / "a.safetensors", encoder.state_dict(), about | changed)
        return tmp_path / "a.safetensors"

    return write


ARGUMENTS = [
    {"depth": 10**6}, {"embed_dim": 10**9}, {"img_size": 10**6}, {"patch_size": 0}, {"num_heads": 0}, {"depth": -1},
    {"mlp_ratio": 1e12}, {"mlp_ratio": float("nan")}, {"reg_tokens": 10**9}, {"in_chans": 10**9}, {"depth": "x"},
    {"img_size": 4000}, {"checkpoint_path": "/dev/zero"}, {"pretrained": True}, {"cache_dir": "/"},
    {"pretrained_cfg_overlay": {"file": "/dev/zero"}}, {"norm_layer": "os.system"}, {"features_only": True},
]  # fmt: skip
DESCRIPTIONS = [
    {"architecture": "hf-hub:somebody/something"}, {"architecture": "local-dir:/"}, {"architecture": ["x"]},
    {"model_args": "x"}, {"model_args": None}, {"layer_norm_eps": "x"}, {"beside": 5},
    {"pretrained_cfg": 5}, {"pretrained_cfg": {"mean": "x"}}, {"pretrained_cfg": {"crop_pct": 1e-9}},
    {"pretrained_cfg": {"interpolation": "x"}}, {"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}},
    {"pretrained_cfg": {"std": [0.0, 0.0, 0.0]}},
]  # fmt: skip


def test_no_model_is_built_that_cannot_lie_in_its_file(described):
    before = monotonic()
    for arguments in ARGUMENTS:
        with pytest.raises(UserError, match=f"{next(iter(arguments))}|describes a model that cannot lie in it"):
            load_encoder(str(described(arguments)))
    for changed in DESCRIPTIONS:
        with pytest.raises(UserError, match=r"damaged|description|no architecture|no arguments"):
            load_encoder(str(described(**changed)))
    assert monotonic() - before < 2 * SOON
    load_encoder(str(described()))  # as it is, it opens


CONFIGS = {
    '{"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 1000000}}': "cannot lie in it",
    '{"architecture": "vit_tiny_patch16_224", "model_args": {"checkpoint_path": "x.pth"}}': "refused",
    '{"architecture": "hf-hub:somebody/something"}': "no architecture",
    '{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": [1]}': "damaged",
    "[" * 100_000: "nested too deep",
    "[]": "no JSON object",
}


def test_configs_beside_weights_are_checked_likewise(tmp_path, refused: Refused):
    save_file({"cls_token": np.zeros((1, 1, 16), np.float32)}, tmp_path / "model.safetensors")
    for text, reason in CONFIGS.items():
        (tmp_path / "config.json").write_text(text)
        assert reason in refused("models", tmp_path)


def test_numbered_blocks_are_counted_before_they_are_built(tmp_path, refused: Refused):
    encoder = create("vit_tiny", 32, sizes={"width": 16, "depth": 2, "heads": 2, "patch_size": 8})
    state = {
        key.replace("blocks.1.", "blocks.999999999."): value.numpy() for key, value in encoder.state_dict().items()
    }
    save_file(state, tmp_path / "a.safetensors")
    assert "1e+09 blocks in 30 tensors" in refused("models", tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "sizes",
    ["depth: 1000000", "width: 1000000000", "image_size: 1000000", "patch_size: 0", "heads: 0", "width: -8"],
)
def test_recipes_for_no_machine_are_refused(tmp_path, refused: Refused, sizes):
    (tmp_path / "own.yaml").write_text(f"base: kamim_photographs\nencoder: {{{sizes}}}\n")
    said = refused("train", "--config", tmp_path / "own.yaml", "--out", tmp_path / "out")
    assert f"encoder.{sizes.split(':')[0]}" in said
    assert not (tmp_path / "out").exists()


def test_weights_beyond_this_machine_s_memory_are_refused_before_they_are_taken():
    with pytest.raises(UserError, match=r"needs [\d,]+ GB for its weights, and this machine has .*take fewer blocks"):
        create("vit_tiny", 32, sizes={"width": 32_768, "depth": 1000, "heads": 2, "patch_size": 8})


def test_names_of_models_that_figures_and_tables_cannot_hold_are_refused(tmp_path, class_folders, refused: Refused):
    for label in ("x" * 300, "a\nb", "a\x1b[2J", "a\u202eb", "+cmd|' /C calc'!A0", "@SUM(1)"):
        given = ["--data", class_folders, "--out", tmp_path / "out"]
        assert "LABEL=SPEC" in refused("analyze", f"{label}=random:vit_tiny", *given)
