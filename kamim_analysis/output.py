"""Output directories that appear whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

MANIFEST = "manifest.json"
#: ends the name of a file that is being written
PARTIAL = ".partial"


def holds_results(folder: Path) -> bool:
    """Whether an analysis was written there."""
    return (folder / MANIFEST).is_file()


def check(out: Path, *, overwrite: bool, earlier: Callable[[Path], bool] = holds_results) -> None:
    """Raise UserError unless `out` can be written: absent, empty, or `earlier` output that may be replaced."""
    if out.name in ("", ".."):
        raise UserError(f"output {str(out)!r} cannot be put in place whole; give the directory by its name")
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"output {str(out)!r} is a file; give a directory")
    if not any(out.iterdir()):
        return
    if not earlier(out):
        raise UserError(f"output directory {str(out)!r} holds other files; give a new or empty one")
    if not overwrite:
        raise UserError(f"output directory {str(out)!r} already holds another run; give a new one, or add --overwrite")


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A directory beside `out` to write to; it takes `out`'s place on leaving, or is removed after an error."""
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    replaced = out.with_name(f".{out.name}.replaced")
    if out.exists():
        out.rename(replaced)
    aside.rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or as it was, whatever happens meanwhile.

    Raises UserError where it cannot be written.
    """
    aside = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(content)
            flush(aside)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        flush(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> UserError:
    """What to tell of a full disk, a directory that is read only, and the like."""
    return UserError(
        f"cannot write {str(path)!r}: {error.strerror or error}; what is written stays, mend it and run the same "
        "command again to go on"
    )


def flush(path: Path) -> None:
    """Force a file, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
