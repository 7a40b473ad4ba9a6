"""One writer at a time of a directory, and who that is."""

import errno
import fcntl
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from .errors import UserError

LOCK = ".lock"
#: what a file system without locks says: NFS without its lock daemon, Lustre mounted without flock
_WITHOUT = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
#: lock files that this process holds: a process is not refused its own lock, and loses it by closing the file anywhere
_held: set[Path] = set()

log = logging.getLogger(__name__)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory`, made where it is missing, against all other processes; a file `.lock` there names this one.

    The lock is the kernel's (POSIX record lock): it ends with this process, however that ends, is not inherited by data
    workers, and holds over NFS; what a file that was left behind says counts for nothing. A directory that was made and
    stayed empty is removed again. Raises UserError where another process holds it, which the error names, and where it
    cannot be written.
    """
    with _locked(directory, directory / LOCK):
        yield


@contextmanager
def locked_beside(out: Path) -> Iterator[None]:
    """As `locked`, by a file `.NAME.lock` beside `out`, which need not be there and may be replaced meanwhile."""
    with _locked(out, out.with_name(f".{out.name}{LOCK}")):
        yield


@contextmanager
def _locked(what: Path, path: Path) -> Iterator[None]:
    place, directory = path.resolve(), path.parent
    if place in _held:
        raise UserError(f"{str(what)!r} is being written by this very process; wait for that")
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    try:
        descriptor = _acquired(path, what)
    except OSError as error:
        _remove_empty(missing)
        raise UserError(
            f"cannot write {str(what)!r}: {error.strerror or error}; mend it, or give another directory"
        ) from error
    _held.add(place)
    try:
        yield
    finally:
        _held.discard(place)
        path.unlink(missing_ok=True)  # while it is held, so that nobody else's file is removed
        os.close(descriptor)
        _remove_empty(missing)


def _acquired(path: Path, what: Path) -> int:
    """The open lock file, which names this process. Raises UserError where another has it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # the one before has removed the directory, which it had made
            continue
        try:
            _lock(descriptor, what)
            # between opening and locking, the one before may have ended and removed the file that was opened
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _this_process().encode(errors="backslashreplace"))
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, what: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            other = os.read(descriptor, 4096).decode(errors="replace").strip() or "another process"
            raise UserError(
                f"{str(what)!r} is being written by {other}; wait for it or stop it, or give another directory"
            ) from None
        if error.errno not in _WITHOUT:
            raise
        log.warning("%s cannot be locked (%s); see that no other process writes there", what, error.strerror)


def _this_process() -> str:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    # one line, whatever files are called
    command = " ".join(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]).split())
    return f"pid {os.getpid()} on {socket.gethostname()} since {since} ({command})\n"


def _remove_empty(directories: list[Path]) -> None:
    """Those that were made, the innermost first, as long as they are empty."""
    with suppress(OSError):
        for one in directories:
            one.rmdir()
