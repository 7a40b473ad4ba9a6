"""Checkpoints on the disk: each directory is complete or absent, and verified before it is used.

`checkpoints/step-N/` holds `model.safetensors`, `optimizer.safetensors` (an entry PARAMETER/MOMENT for each moment of
the optimizer) and `checkpoint.json`, which names the size and the SHA-256 of both. Nothing in them can execute code.
"""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from kamim_analysis import weights_file
from kamim_analysis.errors import UserError
from kamim_analysis.output import PARTIAL, flush, write_file
from kamim_analysis.plain_data import json_of
from kamim_analysis.source import CHECKPOINT
from kamim_analysis.version import __version__

log = logging.getLogger(__name__)

FORMAT = 1
MODEL, OPTIMIZER, CONTENTS = "model.safetensors", "optimizer.safetensors", CHECKPOINT
#: a run's file that names its newest checkpoint, and the directory of all
LAST, FOLDER = "last", "checkpoints"
#: ends the name of a checkpoint that was found damaged and set aside
DAMAGED = ".damaged"
_STEP = re.compile(r"step-(\d{8,})")


class Damaged(Exception):
    """A checkpoint is not what was written; the text says in a few words what is wrong."""


def folder_of(run: Path, step: int) -> Path:
    """The directory of the checkpoint after so many steps."""
    return run / FOLDER / f"step-{step:08d}"


def newest_first(run: Path) -> list[Path]:
    """The checkpoints of a run, the one with most steps first; nothing unfinished, set aside or foreign."""
    folders = [path for path in (run / FOLDER).glob("step-*") if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=_step_of, reverse=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def named_last(run: Path) -> str | None:
    """The name that `last` holds, whatever that is; None without such a file."""
    try:
        return (run / LAST).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None


def write(run: Path, step: int, model: dict[str, Tensor], optimizer: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write a checkpoint aside, flush it, rename it, then point `last` at it.

    Whatever moment the process is killed at, `last` names a complete checkpoint. What an error leaves is removed.
    """
    folder = folder_of(run, step)
    aside = folder.with_name(folder.name + PARTIAL)
    aside.mkdir(parents=True)
    try:
        weights_file.write_state(aside / MODEL, model, about)
        weights_file.write_state(aside / OPTIMIZER, optimizer, {})
        files = {name: _facts(aside / name) for name in (MODEL, OPTIMIZER)}
        contents = {"format": FORMAT, "step": step, "version": __version__, "files": files}
        (aside / CONTENTS).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
        for name in (MODEL, OPTIMIZER, CONTENTS):
            flush(aside / name)
        flush(aside)
        if folder.exists():
            _discard(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    flush(folder.parent)
    write_file(run / LAST, f"{folder.name}\n".encode())


def _facts(path: Path) -> dict[str, Any]:
    """Size and hash of a file; of one that was just written, or is read next, the disk sees one of the two reads."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def verify(folder: Path) -> None:
    """Raise Damaged unless every file of a checkpoint is what was written.

    Raises UserError for a checkpoint of another version's format, which is not damaged.
    """
    if (folder / "state.pt").is_file() and not (folder / CONTENTS).exists():
        raise UserError(
            f"checkpoint {str(folder)!r} was written by an earlier version, which pickled its state, and cannot be "
            "resumed; give a new directory (the weights in it still open as a MODEL)"
        )
    try:
        contents = json_of((folder / CONTENTS).read_text(encoding="utf-8"))
        form, step, files = contents["format"], contents["step"], contents["files"]
        noted = {name: (files[name]["bytes"], files[name]["sha256"]) for name in (MODEL, OPTIMIZER)}
    except FileNotFoundError as error:
        raise Damaged(f"{CONTENTS} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{CONTENTS} is unreadable") from error
    if isinstance(form, int) and form > FORMAT:
        raise UserError(f"checkpoint {str(folder)!r} was written by a later version ({contents.get('version')})")
    if form != FORMAT or step != _step_of(folder):
        raise Damaged(f"{CONTENTS} is of another checkpoint")
    for name, (size, digest) in noted.items():
        _verify_file(folder / name, size, digest)


def _verify_file(path: Path, size: int, digest: str) -> None:
    try:
        there = path.stat().st_size
        if there != size:
            raise Damaged(f"{path.name} has {there} bytes of {size}")
        if _facts(path)["sha256"] != digest:
            raise Damaged(f"{path.name} has another SHA-256 than when it was written")
    except FileNotFoundError as error:
        raise Damaged(f"{path.name} is missing") from error
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error


def newest_intact(run: Path) -> Path | None:
    """The newest checkpoint that is intact; None in a directory without checkpoints. Of a run's processes, the first.

    It is the one with most steps, whatever `last` says, which is there for readers of the run. Newer ones that are
    damaged are renamed, and `last` points at what was found. Raises UserError where no checkpoint is intact.
    """
    found, named = newest_first(run), named_last(run)
    if not found:
        if named is not None:
            raise UserError(
                f"run {str(run)!r} has lost its checkpoints ({LAST!r} names {named!r}); put them back, or give a new "
                "directory"
            )
        return None
    damaged: dict[Path, str] = {}
    for folder in found:
        try:
            verify(folder)
            break
        except Damaged as error:
            damaged[folder] = str(error)
    else:
        reasons = "; ".join(f"{folder.name}: {wrong}" for folder, wrong in damaged.items())
        raise UserError(
            f"no checkpoint in {str(run / FOLDER)!r} is intact ({reasons}); put one back from a copy, or give a new "
            "directory"
        )
    lost = named is not None and not any(named == one.name for one in found)
    _tell_and_mend(run, folder, damaged, named if lost else None, mend=named != folder.name)
    return folder


def _tell_and_mend(run: Path, intact: Path, damaged: dict[Path, str], lost: str | None, *, mend: bool) -> None:
    """Point `last` at what is intact before what is damaged goes aside, so that it always names a checkpoint."""
    if mend:
        write_file(run / LAST, f"{intact.name}\n".encode())
    wrong = [f"{folder.name} is damaged ({why}) and now {_set_aside(folder)}" for folder, why in damaged.items()]
    if lost is not None:
        wrong.append(f"{LAST!r} names {lost[:40]!r}, which is not there")
    if wrong:
        log.warning("checkpoints in %s: %s; going on from %s", run / FOLDER, "; ".join(wrong), intact.name)


def _set_aside(folder: Path) -> str:
    """Rename a damaged checkpoint, for its owner to look at; the new name."""
    aside, number = folder.with_name(folder.name + DAMAGED), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}{DAMAGED}-{number}")
    folder.rename(aside)
    return aside.name


def prune(run: Path, keep: int, keep_every: int | None) -> None:
    """Remove all checkpoints but the `keep` newest, those of steps that `keep_every` divides, and the one of `last`."""
    named = named_last(run)
    for folder in newest_first(run)[keep:]:
        if folder.name != named and not (keep_every and _step_of(folder) % keep_every == 0):
            _discard(folder)


def _discard(folder: Path) -> None:
    """Renamed first, so that a kill leaves no checkpoint without some of its files."""
    gone = folder.with_name(f"{folder.name}.old{PARTIAL}")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_unfinished(run: Path) -> None:
    """Remove what a killed writer has left."""
    for path in (run / FOLDER).glob(f"step-*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)
