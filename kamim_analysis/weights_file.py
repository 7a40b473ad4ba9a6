"""Reading weights files: nothing in them is executed, and a broken one is refused in one line.

`check` needs no torch, so that a mistyped or hostile file is refused at once; `read` then loads with
safetensors or with `torch.load(weights_only=True)`, which stays the guard that matters.
"""

import argparse
import io
import json
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UserError
from .plain_data import json_of

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
#: ends the name of a file that says in which shard each tensor of a large model lies
INDEX = ".safetensors.index.json"
# packages whose names occur in the pickles of honest checkpoints; torch decides on each name within them
_HARMLESS = ("torch", "collections", "numpy", "argparse", "yacs", "_codecs", "builtins", "__builtin__")
#: the key of what we add to files of other libraries, and the name of our own format
OURS = "kamim"
# the old format: magic number, protocol, system, the object, the keys of its storages; then the tensors' bytes
_LEGACY_PICKLES = 5
# of the largest published encoders, in the format that takes most, some 100 kB and 3,000 tensors
_LONGEST_HEADER, _MOST_TENSORS = 16_000_000, 50_000
# bytes of a checkpoint's pickle, which holds names and shapes and no tensors
_LONGEST_PICKLE = 64_000_000
# bytes that are copied from one mapping of a file
_PORTION = 2**24


def check(path: Path) -> None:
    """Raise UserError for a file that is missing, empty, truncated, no checkpoint, or that holds pickled code."""
    if not path.is_file():
        raise UserError(f"no weights file at {str(path)!r}")
    if path.name.endswith(INDEX):
        for part in parts(path):
            check(part)
        return
    if path.suffix not in SUFFIXES:
        raise UserError(f"{str(path)!r} is no weights file; expected one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise UserError(f"weights file {str(path)!r} is empty")
    if path.suffix == ".safetensors":
        _safetensors_header(path)
    else:
        _check_pickle(path)


def parts(path: Path) -> list[Path]:
    """The files that hold the tensors: `path` itself, or the shards that an index names, which must lie beside it."""
    if not path.name.endswith(INDEX):
        return [path]
    try:
        names = sorted(set(json_of(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(path)!r} is no index of shards: {' '.join(str(error).split())}") from error
    if not names or not all(name.endswith(".safetensors") and Path(name).name == name for name in names):
        raise UserError(f"{str(path)!r} names no safetensors shards beside it")
    return [path.with_name(name) for name in names]


def _safetensors_header(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _LONGEST_HEADER):
                raise ValueError(f"its header is longer than the file, or than {_LONGEST_HEADER:,} bytes")
            header: dict[str, Any] = json_of(file.read(length))
        if len(header) > _MOST_TENSORS:
            raise ValueError(f"it has {len(header):,} tensors, and {_MOST_TENSORS:,} are read at most")
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
                _check_members(archive, path)
                pickled = archive.read(member)
        else:
            with path.open("rb") as file:
                pickled = file.read(16_000_000)
            if pickled[:2] == b"PK":
                raise UserError(f"{str(path)!r} is a truncated torch checkpoint")
        for name in _names_in(pickled):
            if name.split(".")[0].split(" ")[0] not in _HARMLESS:
                raise UserError(f"{str(path)!r} holds pickled code ({name}), which is never executed; refused")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OverflowError, MemoryError, struct.error, ValueError,
            IndexError, OSError) as error:  # fmt: skip
        raise UserError(f"{str(path)!r} is no torch checkpoint: {' '.join(str(error).split())}") from error


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse an archive that unpacks to more than its file holds: torch compresses nothing, a bomb is compressed."""
    unpacked, size = sum(member.file_size for member in archive.infolist()), path.stat().st_size
    if unpacked > size:
        raise UserError(
            f"{str(path)!r} would unpack to {unpacked:,} bytes from {size:,}: torch writes no such file; if its origin "
            "is sound, load it and torch.save it again"
        )
    if (
        archive.getinfo(next(name for name in archive.namelist() if name.endswith("data.pkl"))).file_size
        > _LONGEST_PICKLE
    ):
        raise UserError(f"{str(path)!r} holds a pickle of more than {_LONGEST_PICKLE:,} bytes beside its tensors")


def _names_in(pickled: bytes) -> list[str]:
    """Every global that the pickles at the head of `pickled` would import, as `module.name`."""
    names: list[str] = []
    stream = io.BytesIO(pickled)
    for _ in range(_LEGACY_PICKLES):
        if stream.tell() < len(pickled):
            names += _globals_of(pickletools.genops(stream))
    return names


def _globals_of(operations: Iterable[tuple[Any, Any, Any]]) -> list[str]:
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


@dataclass(frozen=True)
class Contents:
    """What a weights file holds."""

    states: dict[str, dict[str, Any]]
    """State dicts (tensors by name) by the entry they lie in, such as `model`, `teacher`; "" for the file itself."""
    description: dict[str, Any] | None = None
    """Our own description of the model, where the file carries one."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The training arguments beside the weights (an entry `args`)."""
    others: tuple[str, ...] = ()
    """Entries that hold no state dict, such as `optimizer`."""


def read(path: Path) -> Contents:
    """Read a weights file: safetensors, shards named in an index, or a torch checkpoint of nested dictionaries.

    The tensors are private copies, read one at a time: no more memory than the file's size, and a file that changes
    later changes nothing. Raises UserError as `check` does, and when there are no tensors by name.
    """
    check(path)
    if path.name.endswith(INDEX):
        shards = [_read_safetensors(part)[0] for part in parts(path)]
        return Contents({"": {name: tensor for shard in shards for name, tensor in shard.items()}})
    if path.suffix == ".safetensors":
        tensors, description = _read_safetensors(path)
        return Contents({"": tensors}, description)
    return _contents(_read_pickle(path), path)


def _read_pickle(path: Path) -> Any:
    """`torch.load` with weights only, and by name the harmless types that published files hold beside them."""
    import torch

    with torch.serialization.safe_globals(_harmless_types()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling reports damage as RuntimeError, EOFError, KeyError, UnpicklingError
            lines = str(error).splitlines() or [type(error).__name__]
            reason = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0])
            # torch advises to load without the guard
            reason = "it holds more than weights" if "weights_only" in reason else reason
            raise UserError(f"{str(path)!r} cannot be read as weights: {' '.join(reason.split())}") from error


def _harmless_types() -> list[Any]:
    """Records of arguments, and NumPy's scalars: MAE's, DINO's, iBOT's, MoCo's and SimMIM's files hold them.

    yacs' node is read as the dictionary that it is, without yacs.
    """
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")]
    return [
        argparse.Namespace,
        (OrderedDict, "yacs.config.CfgNode"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *dtypes,
    ]


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    from safetensors import SafetensorError, safe_open

    header = _safetensors_header(path)
    try:
        described = header.pop("__metadata__", {}).get(OURS)
        description = json_of(described) if described else None
        tensors: dict[str, Any] = {}
        for names in _portions(header):
            # opened anew for each: the pages of one mapping would stay in memory beside the copies
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{str(path)!r} is no readable safetensors file: {' '.join(str(error).split())}") from error
    if not tensors or not isinstance(description, dict | None):
        raise UserError(f"{str(path)!r} holds no tensors by name, so it is no checkpoint")
    return tensors, description


def _portions(header: dict[str, Any]) -> Iterator[list[str]]:
    """The names of a file's tensors, in its order, some megabytes at a time."""
    names: list[str] = []
    taken = 0
    for name, entry in header.items():
        names.append(name)
        taken += entry["data_offsets"][1] - entry["data_offsets"][0]
        if taken > _PORTION:
            yield names
            names, taken = [], 0
    yield names


def _contents(loaded: Any, path: Path) -> Contents:
    """Find the state dicts in what a torch checkpoint held: the dictionary itself, or entries of it."""
    entries = {str(key): value for key, value in loaded.items()} if isinstance(loaded, dict) else {}
    states = {name: found for name, value in {"": entries, **entries}.items() if (found := _tensors_of(value))}
    _check_storage(states, path)
    if not states:
        raise UserError(f"{str(path)!r} holds no tensors by name, so it is no checkpoint")
    settings = entries.get("args")
    return Contents(
        states,
        settings=settings if isinstance(settings, dict) else dict(getattr(settings, "__dict__", {})),
        others=tuple(name for name, value in entries.items() if name not in states and not _is_tensor(value)),
    )


def _check_storage(states: dict[str, dict[str, Any]], path: Path) -> None:
    """Refuse tensors that say one stored number many times over: a few bytes would take any amount of memory."""
    for name, tensor in ((name, tensor) for state in states.values() for name, tensor in state.items()):
        stored = tensor.untyped_storage().nbytes() // tensor.element_size() if tensor.layout is _strided() else 0
        if tensor.numel() > stored:
            raise UserError(f"{str(path)!r}: {name} has {tensor.numel():,} numbers, and {stored:,} are in the file")


def _strided() -> Any:
    import torch

    return torch.strided


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _tensors_of(value: Any) -> dict[str, Any]:
    """The tensors of a dictionary by name, without the prefixes of parallel and compiled wrappers."""
    items = value.items() if isinstance(value, dict) else ()
    tensors = {name: tensor for name, tensor in items if isinstance(name, str) and _is_tensor(tensor)}
    for wrapper in ("module.", "_orig_mod.", "module."):
        if tensors and all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}
    return tensors


def write_state(path: Path, tensors: dict[str, Any], description: dict[str, Any]) -> None:
    """Write tensors to a safetensors file that carries `description` (see `read`).

    One entry of metadata: several would be written in a random order, and equal weights would differ in bytes.
    """
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.touch()
    readable = path.stat().st_mode
    save_file(contiguous, path, metadata={OURS: json.dumps(description)})
    # safetensors makes files that nobody else may read, whatever the user's mask says
    path.chmod(readable)
