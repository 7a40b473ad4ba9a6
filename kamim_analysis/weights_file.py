"""Reading weights files: nothing in them is executed, and a broken one is refused in one line.

`check` needs no torch, so that a mistyped or hostile file is refused at once; `read_state` then loads with
safetensors or with `torch.load(weights_only=True)`, which stays the guard that matters.
"""

import argparse
import io
import json
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

from .errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# packages whose names occur in the pickles of honest checkpoints; torch decides on each name within them
_HARMLESS = ("torch", "collections", "numpy", "argparse", "_codecs", "builtins", "__builtin__")
_METADATA_KEY = "kamim"
# the old format: magic number, protocol, system, the object, the keys of its storages; then the tensors' bytes
_LEGACY_PICKLES = 5


def check(path: Path) -> None:
    """Raise UserError for a file that is missing, empty, truncated, no checkpoint, or that holds pickled code."""
    if not path.is_file():
        raise UserError(f"no weights file at {str(path)!r}")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{str(path)!r} is no weights file; expected one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise UserError(f"weights file {str(path)!r} is empty")
    if path.suffix == ".safetensors":
        _safetensors_header(path)
    else:
        _check_pickle(path)


def _safetensors_header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, 100_000_000):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if max(ends, default=0) + 8 + length > size:
            raise ValueError("it is truncated")
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(path)!r} is no readable safetensors file: {error}") from error
    return header


def _check_pickle(path: Path) -> None:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                member = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
                if member is None:
                    raise UserError(f"{str(path)!r} is a zip file but no torch checkpoint (it has no data.pkl)")
                pickled = archive.read(member)
        else:
            with path.open("rb") as file:
                pickled = file.read(16_000_000)
            if pickled[:2] == b"PK":
                raise UserError(f"{str(path)!r} is a truncated torch checkpoint")
        for name in _names_in(pickled):
            if name.split(".")[0].split(" ")[0] not in _HARMLESS:
                raise UserError(f"{str(path)!r} holds pickled code ({name}), which is never executed; refused")
    except (zipfile.BadZipFile, ValueError, IndexError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} is no torch checkpoint: {' '.join(str(error).split())}") from error


def _names_in(pickled: bytes) -> list[str]:
    """Every global that the pickles at the head of `pickled` would import, as `module.name`."""
    names: list[str] = []
    stream = io.BytesIO(pickled)
    for _ in range(_LEGACY_PICKLES):
        if stream.tell() < len(pickled):
            names += _globals_of(list(pickletools.genops(stream)))
    return names


def _globals_of(operations: list[tuple[Any, Any, Any]]) -> list[str]:
    names, strings = [], []
    for opcode, argument, _position in operations:
        if isinstance(argument, str) and opcode.name != "GLOBAL":
            strings.append(argument)
        if opcode.name == "GLOBAL":
            names.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.append(".".join(strings[-2:]))
        elif opcode.name == "INST":
            names.append(str(argument).replace(" ", "."))
    return names


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The tensors of a weights file by name, and our own description of the model where the file carries one.

    A dictionary of torch.hub's kind is looked into: the first of `model`, `state_dict`, `teacher`, `student` that
    holds tensors. Raises UserError as `check` does, and when no tensors are found.
    """
    import torch

    check(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        # MAE's, DINO's and iBOT's files hold their arguments beside the weights: a plain record, harmless
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling reports damage as RuntimeError, EOFError, KeyError and UnpicklingError
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "Unsupported" in line), lines[0])
        raise UserError(f"{str(path)!r} cannot be read as weights: {' '.join(reason.split())}") from error
    return _tensors_in(loaded, path), None


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = _safetensors_header(path).get("__metadata__", {})
    try:
        described = metadata.get(_METADATA_KEY)
        description = json.loads(described) if described else None
        tensors = load_file(path)
    except (SafetensorError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{str(path)!r} is no readable safetensors file: {' '.join(str(error).split())}") from error
    if not tensors or not isinstance(description, dict | None):
        raise UserError(f"{str(path)!r} holds no tensors by name, so it is no checkpoint")
    return tensors, description


def _tensors_in(loaded: Any, path: Path) -> dict[str, Any]:
    import torch

    candidates = (
        [loaded] + [loaded.get(key) for key in ("model", "state_dict", "teacher", "student")]
        if isinstance(loaded, dict)
        else []
    )
    for candidate in candidates:
        if isinstance(candidate, dict):
            tensors = {key: value for key, value in candidate.items() if isinstance(value, torch.Tensor)}
            if tensors:
                return tensors
    raise UserError(f"{str(path)!r} holds no tensors by name, so it is no checkpoint")


def write_state(path: Path, tensors: dict[str, Any], description: dict[str, Any]) -> None:
    """Write tensors to a safetensors file that carries `description` (see `read_state`).

    One entry of metadata: several would be written in a random order, and equal weights would differ in bytes.
    """
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={_METADATA_KEY: json.dumps(description)})
