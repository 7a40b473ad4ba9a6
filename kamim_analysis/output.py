"""Output directories that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError
from .lock import locked_beside

MANIFEST = "manifest.json"
#: ends the name of a file that is being written
PARTIAL = ".partial"
#: what a system says of a disk that takes no more: full, over its quota, a file at its limit, read only, broken
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def holds_results(folder: Path) -> bool:
    """Whether an analysis was written there."""
    return (folder / MANIFEST).is_file()


def check(out: Path, *, overwrite: bool, earlier: Callable[[Path], bool] = holds_results) -> None:
    """Raise UserError unless `out` can be written: absent, empty, or `earlier` output that may be replaced."""
    if out.name in ("", ".."):
        raise UserError(f"output {str(out)!r} cannot be put in place whole; give the directory by its name")
    if not out.exists() and _replaced(_place(out)).exists():
        with locked_beside(_place(out)):
            _put_back(_place(out))
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"output {str(out)!r} is a file; give a directory")
    if not any(out.iterdir()):
        return
    if not earlier(out):
        raise UserError(f"output directory {str(out)!r} holds other files; give a new or empty one")
    if not overwrite:
        raise _taken(out)


def _taken(out: Path) -> UserError:
    return UserError(f"output directory {str(out)!r} already holds another run; give a new one, or add --overwrite")


@contextmanager
def written_whole(out: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A directory beside `out` to write to; it takes `out`'s place on leaving, or is removed after an error.

    Killed at any moment it leaves an earlier `out` as it was or, between two renames, where `check` and the next
    writer put it back from. Raises UserError where another process writes `out`, where one has done so since `check`
    and it is not to be overwritten, and where it cannot be written; an earlier `out` is then as it was.
    """
    out = _place(out)
    aside = out.with_name(f".{out.name}{PARTIAL}")
    with locked_beside(out):
        _put_back(out)
        if not overwrite and out.is_dir() and any(out.iterdir()):
            raise _taken(out)
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            yield aside
            _put_in_place(aside, out)
        except OSError as error:
            if not _is_of_writing(error, aside, out):
                raise
            named = _shown(Path(os.fsdecode(error.filename or out)))
            raise UserError(
                f"cannot write {named!r}: {_reason(error)}; nothing of it is left, mend it and run the same command "
                "again"
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _place(out: Path) -> Path:
    """Where it lies: a link to a directory on another disk stays."""
    return out.resolve() if out.is_symlink() else out


def _replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def _put_in_place(aside: Path, out: Path) -> None:
    try:
        if out.exists():
            out.rename(_replaced(out))
        aside.rename(out)
    finally:
        _put_back(out)


def _put_back(out: Path) -> None:
    """What was about to be replaced, unless something has taken its place."""
    replaced = _replaced(out)
    if out.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        replaced.rename(out)


def _is_of_writing(error: OSError, aside: Path, out: Path) -> bool:
    """Whether an error is about what is written: of a file there, or, as from `write`, of no file but the disk."""
    if isinstance(error, shutil.Error):  # of files copied there
        return True
    if error.filename is None:
        return error.errno in DISK
    named, partial = Path(os.fsdecode(error.filename)).absolute(), aside.absolute()
    return named == out.absolute() or named.is_relative_to(partial) or partial.is_relative_to(named)


def _reason(error: OSError) -> str:
    """In a few words; of many copies that failed, the first's."""
    if isinstance(error, shutil.Error):
        return str(error.args[0][0][2]).partition(": '")[0]
    return error.strerror or str(error)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of writing name the file, as those of opening do: a full disk by itself names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in DISK:
            error.filename = str(path)
        raise


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
        f"cannot write {_shown(path)!r}: {error.strerror or error}; what is written stays, mend it and run the same "
        "command again to go on"
    )


def _shown(path: Path) -> str:
    """A file by the name that it is to have.

    >>> _shown(Path("out/.results.partial/metrics.csv"))
    'out/results/metrics.csv'
    """
    final = [
        part[1:].removesuffix(PARTIAL) if part.startswith(".") and part.endswith(PARTIAL) else part
        for part in path.parts
    ]
    return str(Path(*final))


def flush(path: Path) -> None:
    """Force a file, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
