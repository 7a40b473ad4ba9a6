"""Files of a directory, wherever it lies: whole, or some bytes of one; on a disk, behind a URL, or kept from there.

Nothing that is read is lost in silence: what fails on the way is tried again, and then ends the command.
"""

import fcntl
import hashlib
import io
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from .errors import UserError
from .output import PARTIAL

_KEPT = ("simplecache::", "filecache::")
# seconds before a read that failed is tried again: two minutes of a network's weakness end no training of days,
# and a URL that was mistyped is told of soon
_PAUSES, _FIRST_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0), (0.5, 1.0)
# bytes of a file that is read whole, an index or what tells of a shard's pictures, and of all that are read together:
# the pictures of ImageNet-22k, 14 million, take under 1 GB
_LARGEST_WHOLE, _LARGEST_TOGETHER = 2**27, 2**32
# files that a process holds open: well below the usual limit of 1,024
_OPEN_FILES = 256

log = logging.getLogger(__name__)
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Stored:
    """A file of a folder, with what tells it from any other."""

    name: str
    size: int
    """Bytes."""
    sha256: str


@runtime_checkable
class Folder(Protocol):
    """A directory to read from. Every method raises UserError for what cannot be read."""

    def read(self, names: Sequence[str]) -> list[bytes]:
        """Whole files. Raises FileNotFoundError where one is missing."""

    def read_range(self, file: Stored, start: int, length: int) -> bytes:
        """`length` bytes from byte `start` on; fewer where the file ends before."""


def is_url(source: str) -> bool:
    """Whether this is for fsspec: PROTOCOL://... or CACHE::PROTOCOL://..."""
    return "://" in source


def open_folder(source: str) -> Folder:
    """A directory's path, a URL, or simplecache::URL (or filecache::URL), of which whole shards are kept.

    Raises UserError for a protocol that is unknown or that needs a package.
    """
    if not is_url(source):
        return LocalFolder(Path(source))
    for prefix in _KEPT:
        if source.startswith(prefix):
            return KeptFolder(_remote(source.removeprefix(prefix)), _storage(prefix.removesuffix("::")))
    from fsspec.implementations.local import LocalFileSystem

    files, root = _filesystem(source, os.getpid())
    return LocalFolder(Path(root)) if isinstance(files, LocalFileSystem) else RemoteFolder(source)


class _Descriptor:
    """An open file that closes itself once nobody reads from it any more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@lru_cache(maxsize=_OPEN_FILES)
def _opened(path: Path, _sha256: str) -> _Descriptor:
    """The sum tells a file from the one that it has replaced."""
    return _Descriptor(os.open(path, os.O_RDONLY))


@dataclass(frozen=True)
class LocalFolder:
    """A directory of this machine's file systems."""

    path: Path

    def read(self, names: Sequence[str]) -> list[bytes]:
        """Whole files."""
        return [(self.path / name).read_bytes() for name in names]

    def read_range(self, file: Stored, start: int, length: int) -> bytes:
        """By position, so that processes that were forked with the file open do not get into each other's way."""
        path = self.path / file.name
        try:
            return os.pread(_opened(path, file.sha256).number, length, start)
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


@lru_cache(maxsize=8)
def _filesystem(url: str, _process: int) -> tuple[Any, str]:
    """fsspec's file system and the root within it. A process has its own: those of a parent do not survive a fork."""
    import fsspec
    from fsspec.registry import known_implementations

    protocol = url.split("://")[0].split("::")[-1]
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("class", "fsspec").split(".")[0]
        package = f"'fsspec[{protocol}]'" if package == "fsspec" else package
        raise UserError(f"{url!r} needs a package that is not installed: pip install {package}") from error
    except ValueError as error:
        raise UserError(f"cannot open {url!r}: {' '.join(str(error).split())}") from error
    return files, root.rstrip("/")


class _TooMuch(Exception):
    """More came than was asked for."""


class _Bounded(io.RawIOBase):
    """A file to write to that takes so many bytes and no more."""

    def __init__(self, file: io.BytesIO | io.BufferedWriter, room: int) -> None:
        self._file, self._room = file, room

    def write(self, content: Any, /) -> int:
        """Raises _TooMuch."""
        self._room -= len(content)
        if self._room < 0:
            raise _TooMuch
        return self._file.write(content)


def _is_web(files: Any) -> bool:
    """Whether whoever answers decides how much comes; clients of object stores read what they asked for."""
    return "https" in files.protocol


def _stream(files: Any, path: str, to: _Bounded, **headers: str) -> None:
    """A web server's answer piece by piece, so that one without an end fills neither memory nor disk."""
    files.get_file(path, to, headers={**files.kwargs.get("headers", {}), **headers})


def _streamed(files: Any, path: str, most: int, **headers: str) -> bytes:
    found = io.BytesIO()
    _stream(files, path, _Bounded(found, most), **headers)
    return found.getvalue()


def _whole(files: Any, path: str) -> bytes:
    """A small file. Raises _TooMuch for a large one."""
    if _is_web(files):
        return _streamed(files, path, _LARGEST_WHOLE)
    if files.info(path)["size"] > _LARGEST_WHOLE:
        raise _TooMuch
    return bytes(files.cat_file(path))


def _part(files: Any, path: str, start: int, length: int) -> bytes:
    """Up to `length` bytes. Raises _TooMuch where more come."""
    if _is_web(files):
        return _streamed(files, path, length, Range=f"bytes={start}-{start + length - 1}") if length else b""
    return bytes(files.cat_file(path, start=start, end=start + length))


def _copy(files: Any, path: str, copy: Path, size: int) -> None:
    """A whole file to `copy`. Raises _TooMuch for one of more than `size` bytes."""
    if _is_web(files):
        with copy.open("wb") as file:
            _stream(files, path, _Bounded(file, size))
    elif files.info(path)["size"] > size:
        raise _TooMuch
    else:
        files.get_file(path, str(copy))


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind a URL, read through fsspec."""

    url: str

    def read(self, names: Sequence[str]) -> list[bytes]:
        """Whole files, several at a time. Raises UserError for what no index is as large as."""
        found: list[bytes] = []
        with ThreadPoolExecutor(16) as threads:
            for name, content in zip(names, threads.map(self._read, names), strict=True):
                found.append(content)
                if sum(map(len, found)) > _LARGEST_TOGETHER:
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise self._too_large(name)
        return found

    def _read(self, name: str) -> bytes:
        try:
            return self._patiently(name, _whole, _FIRST_PAUSES)
        except _TooMuch as error:
            raise self._too_large(name) from error

    def _too_large(self, name: str) -> UserError:
        return UserError(f"{self.url!r} sends far more for {name} than packed shards have there; it is no such data")

    def read_range(self, file: Stored, start: int, length: int) -> bytes:
        """One request."""
        try:
            return self._patiently(file.name, lambda files, path: _part(files, path, start, length))
        except _TooMuch as error:
            raise UserError(
                f"{self.url!r} gives whole files only: read it as simplecache::{self.url}, which keeps them"
            ) from error

    def fetch(self, file: Stored, path: Path) -> None:
        """Copy a whole file. Raises UserError for one that is larger than it should be."""
        try:
            self._patiently(file.name, lambda files, remote: _copy(files, remote, path, file.size))
        except _TooMuch as error:
            raise UserError(
                f"{file.name} of {self.url!r} is not the file that its index names: it is larger"
            ) from error

    def _patiently(
        self, name: str, read: Callable[[Any, str], _Read], pauses: tuple[float, ...] | None = None
    ) -> _Read:
        """Read, and read again after a while, whatever happened: each file system has errors of its own."""
        files, root = _filesystem(self.url, os.getpid())
        pauses = pauses or _PAUSES
        for pause in (*pauses, None):
            try:
                return read(files, f"{root}/{name}")
            except (FileNotFoundError, _TooMuch):
                raise
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                if pause is None:
                    raise UserError(
                        f"cannot read {name} of {self.url!r}, tried {len(pauses) + 1} times: {reason}; run the same "
                        "command again when it can be reached"
                    ) from error
                log.warning("reading %s of %s failed (%s); again in %g s", name, self.url, reason, pause)
                time.sleep(pause)
        raise AssertionError("unreachable")


def _remote(url: str) -> RemoteFolder:
    _filesystem(url, os.getpid())  # raises for what is unknown
    return RemoteFolder(url)


def _storage(protocol: str) -> Path:
    """Where fsspec is told to keep files, as by FSSPEC_SIMPLECACHE_CACHE_STORAGE, or this user's in $TMPDIR."""
    import fsspec.config

    told = fsspec.config.conf.get(protocol, {}).get("cache_storage")
    return Path(told) if told else Path(tempfile.gettempdir()) / f"kamim_shards_{os.getuid()}"


@dataclass(frozen=True)
class KeptFolder:
    """A remote folder of which each file is copied when it is first needed, under the name of its check sum.

    fsspec's own caches write under the final name, so that another process takes half a file for a whole one, and so
    does the next run after a kill. Here a file is whole, verified, and copied once for all processes.
    """

    remote: RemoteFolder
    storage: Path

    def read(self, names: Sequence[str]) -> list[bytes]:
        """Whole files, which are not kept: they are small, and their check sums are not known."""
        return self.remote.read(names)

    def read_range(self, file: Stored, start: int, length: int) -> bytes:
        """From the copy."""
        kept = Stored(file.sha256, file.size, file.sha256)
        with suppress(FileNotFoundError):
            _opened(self.storage / kept.name, file.sha256)
            return LocalFolder(self.storage).read_range(kept, start, length)
        self._keep(file)
        return LocalFolder(self.storage).read_range(kept, start, length)

    def _fetch(self, file: Stored, copy: Path) -> None:
        self.remote.fetch(file, copy)
        with copy.open("rb") as fetched:
            found = hashlib.file_digest(fetched, "sha256").hexdigest()
        if found != file.sha256:
            raise UserError(f"{file.name} of {self.remote.url!r} is not the file that its index names")

    def _keep(self, file: Stored) -> None:
        whole = self.storage / file.sha256
        aside = self.storage / (file.sha256 + PARTIAL)
        try:
            self.storage.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self.storage / f"{file.sha256}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if whole.is_file():
                    return
                try:
                    self._fetch(file, aside)
                    aside.replace(whole)
                finally:
                    aside.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot keep {file.name} of {self.remote.url!r} in {str(self.storage)!r}: {error.strerror or error}"
            ) from error
