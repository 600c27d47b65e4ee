"""The runtime checks of types and shapes in the tests: `saeforest` is imported as if every function were decorated.

An int is a float, as everywhere else in Python's typing. jaxtyping's own decorator costs some 20 µs a call, so only
functions with shapes in their signatures get it, and the others beartype's alone, which checks the same types.
To be imported before saeforest is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

# The public functions tell users in their own words which argument is wrong; tests give them such arguments.
_CHECKS_ITSELF = "saeforest.api"
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_with_shapes = jaxtyping.jaxtyped


def _shaped(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_shaped(part) for part in (hint if isinstance(hint, list) else get_args(hint)))


def _has_shapes(function: Callable[..., Any]) -> bool:
    try:
        hints = get_type_hints(function)
    except NameError:  # a name that only type checkers import
        return True
    return any(_shaped(hint) for hint in hints.values())


def jaxtyped(typechecker: Any) -> Callable[[Any], Any]:
    """What jaxtyping's import hook puts on every function and class."""
    full = _with_shapes(typechecker=typechecker)

    def decorated(it: Any) -> Any:
        if it.__module__.startswith(_CHECKS_ITSELF):
            return it
        return full(it) if inspect.isclass(it) or _has_shapes(it) else checked(it)

    return decorated


jaxtyping.jaxtyped = jaxtyped
jaxtyping.install_import_hook("saeforest", "typecheck.checked")
