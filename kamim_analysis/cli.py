"""`kamim`: finds the sub-command by its file's name and turns mistakes into one line and exit code 2."""

import logging
import os
import sys
from collections.abc import Sequence

from . import plugins
from .errors import UserError
from .termination import orderly_termination
from .version import __version__

_COMMANDS = "kamim_analysis.commands"
_MISTAKE, _INTERRUPTED, _UNREAD = 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `kamim ARGUMENTS` and leave with its exit code."""
    logging.basicConfig(format="kamim: %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("kamim_analysis").setLevel(logging.INFO)
    try:
        with orderly_termination():
            _dispatch(list(sys.argv[1:] if arguments is None else arguments))
            sys.stdout.flush()
    except UserError as mistake:
        print(f"kamim: error: {mistake}", file=sys.stderr)
        sys.exit(_MISTAKE)
    except KeyboardInterrupt:
        print("kamim: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # the reader, such as head, has seen enough; what Python flushes at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_UNREAD)


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
