"""Which command is running, written out in full for the manifest, from which `kamim rerun` runs it again."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from .arguments import Parser

_OUTPUT, _REPLACE = "--out", "--overwrite"


@dataclass(frozen=True)
class Invocation:
    """A sub-command that can be run again."""

    command: str
    """The sub-command's name."""
    arguments: tuple[str, ...]
    """What it was given, less where it writes, after the defaults of all that it was not given."""
    directory: str
    """The working directory, against which relative paths are taken."""


_running: ContextVar[Invocation | None] = ContextVar("running", default=None)


def current() -> Invocation | None:
    """The command that is running; None where no command that can be run again is."""
    return _running.get()


@contextmanager
def recorded(parser: Parser, arguments: Sequence[str]) -> Iterator[argparse.Namespace]:
    """What the options say; manifests that are written within tell how to run the command again."""
    chosen = parser.parse_args(arguments)
    complete = (*_defaults(parser, arguments), *_without_output(arguments))
    token = _running.set(Invocation(parser.prog.removeprefix("kamim "), complete, str(Path.cwd())))
    try:
        yield chosen
    finally:
        _running.reset(token)


def before_positional(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """Arguments with options added that prevail over earlier ones: last, but before a `--` that ends all options.

    >>> before_positional(["--seed=0", "--", "run"], ["--seed=1"])
    ['--seed=0', '--seed=1', '--', 'run']
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*arguments[:end], *options, *arguments[end:]]


def _without_output(arguments: Sequence[str]) -> list[str]:
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            kept += [argument, *rest]
        elif argument == _OUTPUT:
            next(rest)
        elif argument != _REPLACE and not argument.startswith(f"{_OUTPUT}="):
            kept.append(argument)
    return kept


def _defaults(parser: Parser, arguments: Sequence[str]) -> list[str]:
    """The options that were not given and have a default: another version's may differ."""
    given = {argument.partition("=")[0] for argument in arguments}
    found = []
    for action in parser._actions:
        value = action.default
        # what None, False and empty lists mean cannot be written but by leaving the option out
        unwritable = value is None or value is False or value == [] or value == argparse.SUPPRESS
        if action.option_strings and not unwritable:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            if given.isdisjoint(action.option_strings):
                found.append(f"{action.option_strings[0]}={text}")
    return found
