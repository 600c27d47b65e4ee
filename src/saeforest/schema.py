"""What a file must hold: types and bounds, checked before anything is made of it.

A file's schema is a pydantic model or a dataclass beside the code that reads the file. JSON must have the very types
it is written with: a number in quotes, or `true` for 1, is not what anybody wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .errors import UserError

T = TypeVar("T")
#: Far above any count here, and far below what overflows a 64-bit integer or a float.
MOST = 10**15
Count = Annotated[int, Field(ge=0, le=MOST)]
"""A number of things, or the place of one."""
Positive = Annotated[int, Field(ge=1, le=MOST)]
Name = Annotated[str, Field(max_length=4_096)]
"""A word, a name or a path."""
Checksum = Annotated[str, Field(max_length=100)]
_SHOWN = 80


class Schema(BaseModel):
    """The base of schemas: keys of later versions are no error."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def shown(value: object) -> str:
    """A value from outside for an error message: as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


def checked(kind: type[T], data: Any, where: object, remedy: str = "") -> T:
    """JSON data as what they must be. Raises UserError that names `where`, the key, what is expected and the remedy."""
    then = f"; {remedy}" if remedy else ""
    try:
        return _adapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {flaw(error.errors()[0])}{then}") from None
    except UserError as error:  # a range that a configuration checks by itself
        raise UserError(f"{where}: {error}{then}") from None


def flaw(error: ErrorDetails) -> str:
    """What pydantic found wrong, as part of a line: which key, what is expected, and what there is."""
    key = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "missing" | "missing_argument":
            return f"key '{key}' is missing"
        case "json_invalid":
            return (
                f"no text that can be written: {shown(error['ctx'].get('error') if 'ctx' in error else '')}"
            )
        case "dataclass_type" | "model_type":
            expected = "expected an object"
        case _:
            expected = error["msg"].replace("Input should be", "expected").replace("Value error, ", "")
    expected = " ".join(expected.split())
    return f"{f'key {key!r}: ' if key else ''}{expected}, got {shown(error['input'])}"


@cache
def _adapter(kind: Any) -> Any:
    return TypeAdapter(kind)


def without(data: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The mapping less some keys."""
    return {key: value for key, value in data.items() if key not in keys}
