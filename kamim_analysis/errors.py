"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend; its text is one line that says what came and what would be right.

    The command line prints it without a traceback and ends with exit code 2.
    """
