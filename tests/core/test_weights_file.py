"""Weights files: hostile, broken and odd ones are refused in one line, and nothing in them runs."""

import argparse
import collections
import json
import os
import pickle
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kamim_analysis.errors import UserError
from kamim_analysis.weights_file import check, read, write_state

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def refused(path: Path, message: str, *readers: Callable[[Path], Any]) -> None:
    for reader in readers or (check, read):
        with pytest.raises(UserError, match=message) as caught:
            reader(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def torch_file(path: Path, value: Any = None, **options: Any) -> Path:
    torch.save(TENSORS if value is None else value, path, **options)
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "legacy.pth", "a.bin", "a.pt"])
def test_tensors_come_back(tmp_path, name):
    path = tmp_path / name
    if name == "a.safetensors":
        save_file(TENSORS, path)
    else:
        torch_file(path, _use_new_zipfile_serialization="legacy" not in name)
    check(path)
    contents = read(path)
    (state,), description = contents.states.values(), contents.description
    assert description is None
    assert state.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        torch.testing.assert_close(state[key], tensor)


@pytest.mark.parametrize("key", ["model", "state_dict", "teacher", "student"])
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_training_scripts_are_looked_into(tmp_path, key, zipped):
    whole = {"epoch": 3, key: collections.OrderedDict(TENSORS), "optimizer": {"lr": 1}}
    path = torch_file(tmp_path / "a.pth", whole, _use_new_zipfile_serialization=zipped)
    check(path)
    contents = read(path)
    assert contents.states.keys() == {key}
    assert contents.states[key].keys() == TENSORS.keys()
    assert contents.others == ("epoch", "optimizer")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_the_prefixes_of_wrappers_are_taken_off(tmp_path, wrapper):
    wrapped = {wrapper + name: tensor for name, tensor in TENSORS.items()}
    assert read(torch_file(tmp_path / "a.pth", {"model": wrapped})).states["model"].keys() == TENSORS.keys()
    mixed = {f"module.{name}": tensor for name, tensor in TENSORS.items()} | {"other": torch.zeros(1)}
    assert read(torch_file(tmp_path / "b.pth", mixed)).states[""].keys() == mixed.keys()


def test_every_state_dict_of_a_file_is_found(tmp_path):
    whole = {"student": TENSORS, "teacher": {"t": torch.ones(1)}, "epoch": 2, "n": torch.zeros(1)}
    states = read(torch_file(tmp_path / "a.pth", whole)).states
    assert {name: sorted(state) for name, state in states.items()} == {
        "": ["n"], "student": ["a.weight", "b"], "teacher": ["t"],
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_that_keep_their_script_s_arguments_are_read(tmp_path, zipped):
    # DINO's, MAE's and BEiT's full checkpoints hold `args`, an argparse.Namespace
    whole = {"epoch": 3, "args": argparse.Namespace(lr=0.1, norm_pix_loss=True), "model": TENSORS}
    path = torch_file(tmp_path / "a.pth", whole, _use_new_zipfile_serialization=zipped)
    check(path)
    contents = read(path)
    assert contents.states["model"].keys() == TENSORS.keys()
    assert contents.settings == {"lr": 0.1, "norm_pix_loss": True}


NUMBERS = [np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(3), np.int32(3), np.bool_(True)]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.dtype.name)
@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_s_scalars_beside_weights_are_harmless(tmp_path, number, zipped):
    whole = {"model": TENSORS, "best": number, "args": argparse.Namespace(rate=number)}
    path = torch_file(tmp_path / "a.pth", whole, _use_new_zipfile_serialization=zipped)
    check(path)
    contents = read(path)
    assert contents.states.keys() == {"model"}
    assert contents.settings["rate"] == number


def test_numpy_s_arrays_of_objects_stay_refused(tmp_path):
    path = torch_file(tmp_path / "a.pth", {"model": TENSORS, "x": np.array([_Payload(tmp_path / "ran")], object)})
    with pytest.raises(UserError):
        read(path)
    assert not (tmp_path / "ran").exists()


def test_yacs_nodes_are_read_as_dictionaries_without_yacs(tmp_path, monkeypatch):
    # SimMIM's and Swin's checkpoints hold their `config`
    yacs, config = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    config.CfgNode = node  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", yacs)
        patch.setitem(sys.modules, "yacs.config", config)
        path = torch_file(tmp_path / "a.pth", {"model": TENSORS, "config": node(MODEL=node(TYPE="vit"))})
    check(path)
    assert read(path).others == ("config",)


def shards(folder: Path, names: dict[str, str]) -> Path:
    for shard in set(names.values()) & {"a.safetensors", "b.safetensors"}:
        save_file({key: TENSORS[key] for key, where in names.items() if where == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    return index


def test_shards_are_read_as_one_file(tmp_path):
    index = shards(tmp_path, {"a.weight": "a.safetensors", "b": "b.safetensors"})
    check(index)
    state = read(index).states[""]
    assert {key: tensor.tolist() for key, tensor in state.items()} == {k: t.tolist() for k, t in TENSORS.items()}


@pytest.mark.parametrize("place", ["../a.safetensors", "/a.safetensors", "a.pth", "missing.safetensors"])
def test_shards_elsewhere_and_missing_ones_are_refused(tmp_path, place):
    index = shards(tmp_path, {"a.weight": "a.safetensors", "b": place})
    for reader in (check, read):
        with pytest.raises(UserError, match=r"names no safetensors shards|no weights file at"):
            reader(index)


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    state = read(path).states[""]
    with path.open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(bytes(40))
    torch.testing.assert_close(state["a.weight"], TENSORS["a.weight"])


def test_a_nested_checkpoint_without_code_is_read(tmp_path):
    contents = read(torch_file(tmp_path / "a.pth", {"epoch": 3, "model": TENSORS, "rates": [0.1]}))
    assert contents.states["model"].keys() == TENSORS.keys()


def test_what_we_write_comes_back_with_its_description(tmp_path):
    description = {"architecture": "vit", "model_args": {"depth": 2, "init_values": None}, "step": 7}
    write_state(tmp_path / "a.safetensors", {"w": TENSORS["a.weight"].T}, description)
    contents = read(tmp_path / "a.safetensors")
    assert contents.description == description
    torch.testing.assert_close(contents.states[""]["w"], TENSORS["a.weight"].T)


class _Payload:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def hostile(path: Path, form: str, target: Path) -> Path:
    value = {"w": torch.zeros(2), "x": _Payload(target)}
    if form == "zip":
        return torch_file(path, value)
    if form == "legacy":
        return torch_file(path, value, _use_new_zipfile_serialization=False)
    path.write_bytes(pickle.dumps(_Payload(target), protocol=int(form[-1])))
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 0", "pickle 2", "pickle 4"])
@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
def test_pickled_code_is_refused_and_never_runs(tmp_path, form, suffix):
    target = tmp_path / "executed"
    path = hostile(tmp_path / f"a.{suffix}", form, target)
    with pytest.raises(UserError):
        read(path)
    if form != "legacy":
        refused(path, "holds pickled code .*system.*never executed", check)
    assert not target.exists()


def test_legacy_code_is_refused_before_torch_is_asked(tmp_path):
    # the old format is several pickles in a row: magic number, protocol, system, then the object
    path = hostile(tmp_path / "a.pth", "legacy", tmp_path / "executed")
    refused(path, "holds pickled code", check)


@pytest.mark.parametrize("function", [eval, exec, __import__, getattr])
def test_builtin_functions_are_code_too(tmp_path, function):
    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return function, ("1",)

    path = torch_file(tmp_path / "a.pth", {"w": torch.zeros(1), "x": Call()})
    with pytest.raises(UserError):
        read(path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    save_file(TENSORS, path) if suffix == "safetensors" else torch_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "truncated|no readable safetensors|no torch checkpoint|cannot be read as weights", read)
    if suffix != "safetensors":
        refused(path, "truncated", check)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_legacy_files_are_refused(tmp_path, share):
    path = torch_file(tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, ".", read)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin"])
@pytest.mark.parametrize("content", [bytes(1000), b"hello there\n", b"\x80", bytes(range(256)) * 4, b"PK\x03\x04"])
def test_files_that_are_no_checkpoint_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    refused(path, "is no|truncated")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.touch()
    refused(path, "is empty")


def test_a_missing_file_a_directory_and_an_unknown_suffix_are_refused(tmp_path):
    refused(tmp_path / "a.pth", "no weights file at")
    refused(tmp_path, "no weights file at")
    (tmp_path / "a.onnx").write_bytes(b"x")
    refused(tmp_path / "a.onnx", r"is no weights file; expected one of \.safetensors, \.pth, \.pt, \.bin")


def test_a_zip_file_of_something_else_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("notes.txt", "no weights")
    refused(tmp_path / "a.pth", "is a zip file but no torch checkpoint")


@pytest.mark.parametrize("value", [{}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(2), 5, {"model": {"lr": 0.1}}])
def test_a_checkpoint_without_named_tensors_is_refused(tmp_path, value):
    refused(torch_file(tmp_path / "a.pth", value), "holds no tensors by name", read)


def test_safetensors_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "holds no tensors", read)


def safetensors_file(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


BAD_SAFETENSORS = {
    "a shape that disagrees with its bytes": ({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),
    "trailing bytes": ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(12)),
    "an unknown type": ({"w": {"dtype": "Q99", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "a hole": ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
    "no shape": ({"w": {"data_offsets": [0, 8]}}, bytes(8)),
    "missing bytes": ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)),
    "no object": ([1, 2], bytes(8)),
    "no json": (b"{'w': 1}", bytes(8)),
    "an entry that is no object": ({"w": None}, bytes(8)),
    "metadata that is no object": (
        {"__metadata__": 5, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        bytes(8),
    ),
}


@pytest.mark.parametrize(("header", "data"), BAD_SAFETENSORS.values(), ids=BAD_SAFETENSORS.keys())
def test_a_damaged_safetensors_file_is_refused(tmp_path, header, data):
    refused(safetensors_file(tmp_path / "a.safetensors", header, data), ".", read)


def test_a_damaged_description_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"kamim": "{not json"})
    refused(tmp_path / "a.safetensors", ".", read)


def test_a_name_that_torch_does_not_trust_is_refused_in_one_line(tmp_path):
    path = torch_file(tmp_path / "a.pth", {"w": torch.zeros(2), "f": torch.nn.Linear(2, 2)})
    refused(path, r"cannot be read as weights: .*torch\.nn\.modules\.linear\.Linear", read)


def test_a_refusal_holds_no_control_characters_and_no_advice_to_switch_the_guard_off(tmp_path):
    path = torch_file(tmp_path / "a.pth", {"w": torch.zeros(2), "f": torch.nn.Linear(2, 2)})
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).isprintable()
    assert "two options" not in str(caught.value)
