"""Weights files: hostile, broken and odd ones are refused in one line, and nothing in them runs."""

import argparse
import collections
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kamim_analysis.errors import UserError
from kamim_analysis.weights_file import check, read_state, write_state

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def refused(path: Path, message: str, *readers: Callable[[Path], Any]) -> None:
    for reader in readers or (check, read_state):
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
    state, description = read_state(path)
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
    assert read_state(path)[0].keys() == TENSORS.keys()


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_that_keep_their_script_s_arguments_are_read(tmp_path, zipped):
    # DINO's, MAE's and BEiT's full checkpoints hold `args`, an argparse.Namespace
    whole = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "model": TENSORS}
    path = torch_file(tmp_path / "a.pth", whole, _use_new_zipfile_serialization=zipped)
    check(path)
    assert read_state(path)[0].keys() == TENSORS.keys()


def test_a_nested_checkpoint_without_code_is_read(tmp_path):
    state, _ = read_state(torch_file(tmp_path / "a.pth", {"epoch": 3, "model": TENSORS, "rates": [0.1]}))
    assert state.keys() == TENSORS.keys()


def test_what_we_write_comes_back_with_its_description(tmp_path):
    description = {"architecture": "vit", "model_args": {"depth": 2, "init_values": None}, "step": 7}
    write_state(tmp_path / "a.safetensors", {"w": TENSORS["a.weight"].T}, description)
    state, read = read_state(tmp_path / "a.safetensors")
    assert read == description
    torch.testing.assert_close(state["w"], TENSORS["a.weight"].T)


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
        read_state(path)
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
        read_state(path)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "bin"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    save_file(TENSORS, path) if suffix == "safetensors" else torch_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "truncated|no readable safetensors|no torch checkpoint|cannot be read as weights", read_state)
    if suffix != "safetensors":
        refused(path, "truncated", check)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_legacy_files_are_refused(tmp_path, share):
    path = torch_file(tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, ".", read_state)


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
    refused(torch_file(tmp_path / "a.pth", value), "holds no tensors by name", read_state)


def test_safetensors_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "holds no tensors", read_state)


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
    refused(safetensors_file(tmp_path / "a.safetensors", header, data), ".", read_state)


def test_a_damaged_description_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"kamim": "{not json"})
    refused(tmp_path / "a.safetensors", ".", read_state)


def test_a_name_that_torch_does_not_trust_is_refused_in_one_line(tmp_path):
    path = torch_file(tmp_path / "a.pth", {"w": torch.zeros(2), "f": torch.nn.Linear(2, 2)})
    refused(path, r"cannot be read as weights: .*torch\.nn\.modules\.linear\.Linear", read_state)


def test_a_refusal_holds_no_control_characters_and_no_advice_to_switch_the_guard_off(tmp_path):
    path = torch_file(tmp_path / "a.pth", {"w": torch.zeros(2), "f": torch.nn.Linear(2, 2)})
    with pytest.raises(UserError) as caught:
        read_state(path)
    assert str(caught.value).isprintable()
    assert "two options" not in str(caught.value)
