"""`kamim`: finds the sub-command by its file's name and turns mistakes into one line and exit code 2."""

import logging
import os
import sys
from collections.abc import Sequence

from . import memory, plugins
from .errors import UserError
from .output import DISK
from .termination import orderly_termination
from .version import __version__

_COMMANDS = "kamim_analysis.commands"
_MISTAKE, _INTERRUPTED, _UNREAD = 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `kamim ARGUMENTS` and leave with its exit code."""
    logging.basicConfig(format="kamim: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("kamim_analysis").setLevel(logging.INFO)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with orderly_termination():
            _dispatch(given)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("kamim: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        _print_nowhere()
        sys.exit(_UNREAD)
    except Exception as error:
        mistake = _mistake(error, given)
        if mistake is None:
            raise
        print(f"kamim: error: {mistake}", file=sys.stderr)
        sys.exit(_MISTAKE)


def _mistake(error: Exception, arguments: Sequence[str]) -> str | None:
    """The line for what a user, not a programmer, can mend: mistakes, too little memory, files and disks."""
    short_of = memory.shortage(error)
    # first: what could not be built, read or loaded is told by a mistake that memory was the cause of
    if short_of is not None and arguments:
        module = sys.modules.get(f"{_COMMANDS}.{arguments[0]}")  # where memory is short, no folder may be listed either
        lighter = getattr(module, "LESS_MEMORY", "take less at a time, or a machine with more")
        return f"this does not fit into memory ({short_of}); {lighter}"
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)!r} cannot be read or written: {error.strerror}"
    if error.errno in DISK and _print_nowhere():
        return f"cannot write standard output: {error.strerror}"
    return f"cannot write: {error.strerror}" if error.errno in DISK else None


def _print_nowhere() -> bool:
    """Have what is printed, and what Python flushes at its end, go nowhere, unless it can be written; whether so."""
    try:
        print(flush=True)  # a failed write may have emptied the buffer, and to flush nothing succeeds
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
    elif arguments[0] == "--version":
        print(f"kamim {__version__}")
    else:
        plugins.load(_COMMANDS, arguments[0], "command").run(arguments[1:])


def _help() -> str:
    commands = plugins.load_all(_COMMANDS)
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {module.HELP}" for name, module in commands.items()]
    return "\n".join(
        [
            "usage: kamim COMMAND [OPTIONS]     (kamim COMMAND --help tells a command's options)",
            "",
            "Pretrain masked-image-modelling vision transformers and see why features do or do not separate classes.",
            "",
            *lines,
        ]
    )
