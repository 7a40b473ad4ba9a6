"""Memory that does not suffice: known by whatever a library says of it, and told with what takes less."""

import errno
from collections.abc import Iterator

# torch, the CUDA libraries, OpenCV and the system, each in its own words
_WORDS = (
    "defaultcpuallocator",
    "not enough memory",
    "out of memory",
    "outofmemory",
    "insufficient memory",
    "memoryerror",  # of a data worker: torch tells the type as text
    "cannot allocate memory",
    "alloc_failed",
    "size calculation overflowed",  # more than any address
)
_LONGEST = 160


def shortage(error: BaseException) -> str | None:
    """What an error tells of memory that ran out, in a few words; None where it is about something else.

    It may be the error's cause, or what it was raised in handling of.

    >>> shortage(MemoryError("Unable to allocate 8.00 EiB for an array")), shortage(ValueError("odd"))
    ('Unable to allocate 8.00 EiB for an array', None)
    """
    return next((_words(one) for one in _chain(error) if _is_shortage(one)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # of torch, OpenCV and safetensors; a ValueError that quotes a word is not one of them
    said = isinstance(error, RuntimeError) or type(error).__name__ in ("error", "SafetensorError")
    return isinstance(error, MemoryError) or (said and any(word in str(error).lower() for word in _WORDS))


def _words(error: BaseException) -> str:
    """The line that says how much was asked for, or the last, which in a worker's traceback is the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = next((line for line in lines if "allocate" in line), lines[-1])
    # around it torch tells where in its own source it failed, and the system's number for that
    line = (line.partition("DefaultCPUAllocator: ")[2] or line).partition(". Error code")[0]
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
