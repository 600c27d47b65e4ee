"""Errors: the one exception that a user is meant to read, and the check of what holds by definition."""

import shlex


class InputError(ValueError):
    """Something the user gave is wrong: an argument, a setting, a file.

    The message is one line: it names the file, key or value, says what was expected, and what to do.
    The command line prints it without a traceback and exits with status 2.
    """


def command(*words: object) -> str:
    """A command line for a hint, `saeforest` first, as a shell takes it whatever is in the words."""
    return shlex.join(["saeforest", *map(str, words)])


def require(holds: bool, where: str, identity: str) -> None:
    """Raises RuntimeError where something that holds by definition does not: an error of ours, not the user's."""
    if not holds:
        raise RuntimeError(f"{where}: {identity} must hold by definition but does not; please report this")
