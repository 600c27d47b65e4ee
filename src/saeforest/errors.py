"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user gave is wrong.

    The message is one line: it names the file, key or value, says what was expected, and what to do.
    The command line prints it without a traceback and exits with status 2.
    """
