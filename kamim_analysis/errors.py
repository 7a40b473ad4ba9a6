"""The one exception that a user is meant to read."""

from collections.abc import Sequence


def printable(text: str) -> str:
    r"""Text as one line that any file can hold and any font draw: line ends, other control characters, marks that turn
    its direction and bytes that are no UTF-8 become escapes.

    >>> print(printable("größe\n\x1b[2J\udcff"))
    größe\n\x1b[2J\udcff
    """
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)


class UserError(Exception):
    """Something the user can mend; its text is one line that says what came and what would be right.

    The command line prints it without a traceback and ends with exit code 2.

    >>> import kamim_analysis as ka
    >>> try:
    ...     ka.Results.open("nowhere")
    ... except ka.UserError as mistake:
    ...     print(mistake)
    'nowhere' holds no analysis: metrics.csv is missing; run kamim analyze first
    """

    def __init__(self, text: str) -> None:
        # what is raised in a data worker comes out of torch's DataLoader as the last line of a traceback
        wrapped = text.startswith(f"Caught {type(self).__name__} in ")
        super().__init__(printable(text.strip().splitlines()[-1].split(": ", 1)[1] if wrapped else text))


def some(names: Sequence[object], shown: int = 6) -> str:
    """The first few of many names, and how many more there are.

    >>> some(["a", "b", "c"], shown=2)
    'a, b and 1 more'
    """
    more = len(names) - shown
    return ", ".join(printable(str(name)) for name in names[:shown]) + (f" and {more} more" if more > 0 else "")
