"""Errors that tell an API's reader more than that something was wrong: the answer's status follows from them."""

from __future__ import annotations

from ..errors import InputError


class NotFound(InputError):
    """What was asked for does not exist."""


class Unavailable(InputError):
    """The run lacks what the question needs; the message says how to make it."""


class Unsupported(InputError):
    """The path exists, but not with this method."""
