"""The runtime checks of types and shapes in the tests: `saeforest` is imported as if every function were decorated.

An int is a float, as everywhere else in Python's typing. Shapes are written as jaxtyping reads them, but its decorator
checks the arguments twice and takes some 20 µs a call, a good part of the time of all tests. Here a call is checked
once, by beartype; the sizes of its axes are kept where jaxtyping keeps them; and an array is compared with names and
sizes of axes directly. What does not pass so is left to jaxtyping, which alone refuses an array.
To be imported before saeforest is.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import update_wrapper, wraps
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping._storage import get_shape_memo, pop_shape_memo, push_shape_memo, shape_str

# The public functions tell users in their own words which argument is wrong; tests give them such arguments.
_CHECKS_ITSELF = "saeforest.api"
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_with_shapes = jaxtyping.jaxtyped


# -- arrays


class _Known(NamedTuple):
    """What an annotation says of an array."""

    array: Any
    axes: tuple[str | int | None, ...]
    """The name or size of each axis; None: any size. Without `*name` and `...`."""
    variadic: int | None
    """Where `*name` or `...` stands."""
    name: str
    """That name; empty for `...`."""
    dtypes: set[Any]
    """Those that jaxtyping has let pass."""


def _parsed(annotation: Any) -> _Known | None:
    """None for what only jaxtyping understands: an axis that is computed, say."""
    axes: list[str | int | None] = []
    variadic, name = None, ""
    for i, axis in enumerate(annotation.dim_str.split()):
        if axis == "..." or (axis[0] == "*" and axis[1:].isidentifier()):
            variadic, name = i, axis[1:] if axis[0] == "*" else ""
        elif axis == "_":
            axes.append(None)
        elif axis.isdecimal():
            axes.append(int(axis))
        elif axis.isidentifier() and axis[0] != "_":
            axes.append(axis)
        else:
            return None
    return _Known(annotation.array_type, tuple(axes), variadic, name, set())


_ANNOTATION: Any = type(jaxtyping.AbstractArray)
_by_jaxtyping: Callable[[Any, object], bool] = _ANNOTATION.__instancecheck__
_known: dict[Any, _Known | None] = {}


def _is_instance(annotation: Any, value: Any) -> bool:
    """Whether a value is as annotated, given the sizes of the axes in this call."""
    try:
        known = _known[annotation]
    except KeyError:
        own = hasattr(annotation, "dim_str") and annotation.array_type is not Any
        known = _known[annotation] = _parsed(annotation) if own else None
    if known is None:
        return _by_jaxtyping(annotation, value)
    if not isinstance(value, known.array):
        return False
    if value.dtype in known.dtypes and _agrees(known, value.shape):
        return True
    if passed := _by_jaxtyping(annotation, value):
        known.dtypes.add(value.dtype)
    return passed


def _agrees(known: _Known, shape: tuple[int, ...]) -> bool:
    """Whether a shape agrees with the sizes of this call's axes; if so, the sizes of others are kept."""
    memo = get_shape_memo()
    sizes, axes, i, middle = memo[0], known.axes, known.variadic, ()
    if i is not None:
        j = len(shape) - len(axes) + i
        if j < i:
            return False
        shape, middle = shape[:i] + shape[j:], shape[i:j]
    if len(shape) != len(axes):
        return False
    new: dict[Any, int] | None = None
    for axis, size in zip(axes, shape):  # noqa: B905  # some 20,000 times in a second of training
        if axis is None:
            continue
        expected = axis if axis.__class__ is int else sizes.get(axis)
        if expected is None:
            if new is None:
                new = {axis: size}
            elif new.setdefault(axis, size) != size:
                return False
        elif expected != size:
            return False
    if known.name and memo[1].setdefault(known.name, (False, middle)) != (False, middle):
        return False
    if new is not None:
        sizes.update(new)
    return True


_ANNOTATION.__instancecheck__ = _is_instance


# -- functions


def _shaped(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_shaped(part) for part in (hint if isinstance(hint, list) else get_args(hint)))


def _hint(annotation: Any, names: dict[str, Any]) -> Any:
    """What an annotation means; anything if it has a name that only type checkers import, or a later one."""
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), names)["it"]
    except NameError:
        return Any


def _resolved(function: Any) -> tuple[Any, dict[str, Any]]:
    """The function, annotated with what can be known where it is defined, and these annotations."""
    try:
        return function, get_type_hints(function)
    except NameError:
        names = function.__globals__
        hints = {name: _hint(annotation, names) for name, annotation in function.__annotations__.items()}
    twin = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    update_wrapper(twin, function)
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__annotations__ = hints
    return twin, hints


def _function(function: Any) -> Any:
    annotated, hints = _resolved(function)
    if not any(map(_shaped, hints.values())):
        return checked(annotated)
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        return _with_shapes(typechecker=checked)(function)
    inner = checked(annotated)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        push_shape_memo({})
        try:
            return inner(*args, **kwargs)
        except BeartypeCallHintViolation as error:
            if not hasattr(error, "__notes__"):
                error.add_note(shape_str(get_shape_memo()))
            raise
        finally:
            pop_shape_memo()

    return call


def jaxtyped(typechecker: Any) -> Callable[[Any], Any]:
    """What jaxtyping's import hook puts on every function and class."""

    def decorated(it: Any) -> Any:
        if it.__module__.startswith(_CHECKS_ITSELF):
            return it
        if not inspect.isclass(it):
            return _function(it)
        if dataclasses.is_dataclass(it) and not hasattr(it.__init__, "__wrapped__"):
            it.__init__ = _function(it.__init__)
        return it

    return decorated


jaxtyping.jaxtyped = jaxtyped
jaxtyping.install_import_hook("saeforest", "typecheck.checked")
