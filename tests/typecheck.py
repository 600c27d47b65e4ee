"""The runtime checks of types and shapes in the tests: `saeforest` is imported as if every function were decorated.

An int is a float, as everywhere else in Python's typing. jaxtyping's own decorator takes some 100 µs for a call, so
only functions with shapes in their signatures get it, and the others beartype's alone, which checks the same types. And
what passed once is not checked again: whether a call passes depends on the types and shapes of what is given and
returned, and on nothing else. To be imported before saeforest is.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable

# The public functions tell users in their own words which argument is wrong; tests give them such arguments.
_CHECKS_ITSELF = "saeforest.api"
_CONF = BeartypeConf(is_pep484_tower=True)
checked = beartype(conf=_CONF)
_with_shapes = jaxtyping.jaxtyped
_PLAIN = {int, float, bool, type(None)}
_FEW, _MOST = 8, 1000


def _shaped(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_shaped(part) for part in (hint if isinstance(hint, list) else get_args(hint)))


def _hints(function: Callable[..., Any]) -> dict[str, Any] | None:
    """None where a name is known to type checkers alone, or not yet."""
    try:
        return get_type_hints(function)
    except NameError:
        return None


class _Many(Exception):
    """A container of more than a few things, which takes longer to look at than to check."""


def _look(value: Any) -> Any:
    """What decides whether a value passes: its type, with its data type and shape or those of its parts. A string says
    itself, as only some may be allowed."""
    kind = type(value)
    if kind in _PLAIN:
        return kind
    if kind is torch.Tensor or isinstance(value, torch.Tensor | np.ndarray):
        return kind, value.dtype, value.shape
    if isinstance(value, tuple | list):
        if len(value) > _FEW:
            raise _Many
        return kind, tuple(map(_look, value))
    if isinstance(value, dict):
        return kind, _look(tuple(value.items()))
    if isinstance(value, set | frozenset):
        return kind, _look(tuple(value))
    return value if kind is str else kind


def _once(
    function: Callable[..., Any], full: Callable[..., Any], hints: dict[str, Any]
) -> Callable[..., Any]:
    """`full`, but a call whose arguments look like those of one that passed goes to `function`; what it returns is
    checked beside them unless it looks like what passed with them, too."""
    passed: dict[Any, set[Any]] = {}
    size = 0
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal size
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        try:
            given = _look(args), _look(kwargs)
        except _Many:
            return full(*args, **kwargs)
        known = passed.get(given)
        found = full(*args, **kwargs) if known is None else function(*args, **kwargs)
        try:
            returned = _look(found)
        except _Many:
            returned = None
        if known is not None:
            if returned in known:
                return found
            _check(signature.bind(*args, **kwargs), found, hints)
        if returned is not None and size < _MOST:
            passed.setdefault(given, set()).add(returned)
            size += 1
        return found

    return call


def _check(given: inspect.BoundArguments, found: Any, hints: dict[str, Any]) -> None:
    """Raises TypeCheckError where what a function was given and what it returned do not agree."""
    several: dict[Any, Any] = {
        inspect.Parameter.VAR_POSITIONAL: tuple,
        inspect.Parameter.VAR_KEYWORD: dict.values,
    }
    with _with_shapes("context"):
        for name, value in (*given.arguments.items(), ("return", found)):
            kind = None if name == "return" else given.signature.parameters[name].kind
            for one in several[kind](value) if kind in several else (value,):
                if name in hints and not is_bearable(one, hints[name], conf=_CONF):
                    raise jaxtyping.TypeCheckError(
                        f"{name} is not {hints[name]}, or does not agree with the others"
                    )


def jaxtyped(typechecker: Any) -> Callable[[Any], Any]:
    """What jaxtyping's import hook puts on every function and class."""
    full = _with_shapes(typechecker=typechecker)

    def decorated(it: Any) -> Any:
        if it.__module__.startswith(_CHECKS_ITSELF):
            return it
        if inspect.isclass(it) or (hints := _hints(it)) is None:
            return full(it)
        if not any(map(_shaped, hints.values())):
            return checked(it)
        return _once(it, full(it), hints) if inspect.isfunction(it) else full(it)

    return decorated


jaxtyping.jaxtyped = jaxtyped
jaxtyping.install_import_hook("saeforest", "typecheck.checked")
