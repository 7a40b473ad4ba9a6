"""What authors save beside their weights is read without running it; anything else is refused."""

import argparse
import os
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import Reading, parse
from kamim_analysis.opening import open_model
from kamim_analysis.weights_file import read

SCALARS = {
    "lr": np.float64(5e-4), "momentum": np.float32(0.9), "half": np.float16(0.5), "epochs": np.int64(800),
    "warmup": np.int32(10), "use_fp16": np.True_,
}  # fmt: skip


@pytest.fixture
def state(reference) -> dict[str, torch.Tensor]:
    """A plain ViT's."""
    return reference.drawn(reference.vit_shapes())


def opened_format(path: Path) -> str:
    found: str = open_model(parse(str(path), Reading(heads=4))).provenance["format"]
    return found


def yacs_node(node_type: Any, settings: dict[str, Any]) -> Any:
    """A node as yacs makes it: a dictionary with attributes of its own, and nodes inside."""
    node = node_type({key: yacs_node(node_type, value) if isinstance(value, dict) else value
                      for key, value in settings.items()})  # fmt: skip
    vars(node).update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={}, __new_allowed__=False)
    return node


@pytest.mark.parametrize("zipped", [True, False])
def test_simmim_s_config_is_read_without_yacs(tmp_path, zipped, state, monkeypatch):
    node_type = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    config = yacs_node(node_type, {"MODEL": {"TYPE": "vit", "VIT": {"DEPTHS": [2, 2], "INIT": None}}, "SEED": 0})
    state["mask_token"] = torch.zeros(1, 1, 64)
    model = {f"encoder.{name}": tensor for name, tensor in state.items()}
    with monkeypatch.context() as saving:
        saving.setitem(sys.modules, "yacs", ModuleType("yacs"))
        saving.setitem(sys.modules, "yacs.config", ModuleType("yacs.config"))
        saving.setattr(sys.modules["yacs.config"], "CfgNode", node_type, raising=False)
        whole = {"model": model, "config": config, "max_accuracy": 0.0}
        torch.save(whole, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert "yacs" not in sys.modules
    assert opened_format(tmp_path / "a.pth") == "simmim"
    assert read(tmp_path / "a.pth").others == ("config", "max_accuracy")


def with_old_name(path: Path) -> None:
    """Rename NumPy's module in the pickle to what it was before NumPy 2: published files are older."""
    with zipfile.ZipFile(path) as archive:
        members = {item: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for item, content in members.items():
            archive.writestr(item, content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


@pytest.mark.parametrize("numpy", ["new", "old"])
def test_arguments_that_are_numpy_s_scalars_are_read(tmp_path, numpy, state):
    whole = {"model": state, "args": argparse.Namespace(**SCALARS, nested=argparse.Namespace(betas=(0.9, 0.95)))}
    torch.save(whole, tmp_path / "a.pth")
    if numpy == "old":
        with_old_name(tmp_path / "a.pth")
        assert b"numpy.core.multiarray" in (tmp_path / "a.pth").read_bytes()
    settings = read(tmp_path / "a.pth").settings
    assert {name: settings[name] for name in SCALARS} == SCALARS
    assert settings["nested"].betas == (0.9, 0.95)
    assert opened_format(tmp_path / "a.pth") == "timm_vit"


class Executed:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("entry", ["args", "config", "optimizer"])
def test_any_other_class_beside_the_weights_is_refused_and_never_runs(tmp_path, entry, state):
    hostile = Executed(tmp_path / "executed")
    beside = argparse.Namespace(hook=hostile) if entry == "args" else hostile
    torch.save({"model": state, entry: beside}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"holds pickled code \(.*mkdir\), which is never executed"):
        opened_format(tmp_path / "a.pth")
    assert not (tmp_path / "executed").exists()


def test_a_flat_state_dict_is_opened_from_safetensors_too(tmp_path, reference, images, assert_computes):
    options = {"qkv_bias": ("q_bias", "v_bias"), "scale": "gamma_{}", "positions": False, "table": True}
    state = reference.drawn(reference.vit_shapes(**options))
    save_file(state, tmp_path / "a.safetensors")
    opened = open_model(parse(str(tmp_path / "a.safetensors")))
    assert opened.provenance["format"] == "beit"
    assert_computes(opened.encoder, images, reference.vit(state, images, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_those_numbers(tmp_path, dtype, state, images, reference, assert_computes):
    stored = {name: tensor.to(dtype) for name, tensor in state.items()}
    torch.save({"model": stored}, tmp_path / "a.pth")
    opened = open_model(parse(str(tmp_path / "a.pth"), Reading(heads=4)))
    assert_computes(opened.encoder, images, reference.vit(stored, images, 4))
