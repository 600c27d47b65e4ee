"""Schemas of files: types and bounds, which are checked before the contents are used.

The schema of a file is a pydantic model or a dataclass next to the code that reads the file. JSON must have exactly the
types it was written with: a number in quotes, or `true` instead of 1, is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .errors import InputError

T = TypeVar("T")
#: The largest count: far above any that occurs, and far below the limits of 64-bit integers and floats.
MOST = 10**15
Count = Annotated[int, Field(ge=0, le=MOST)]
"""A number of things, or an index."""
Positive = Annotated[int, Field(ge=1, le=MOST)]
Name = Annotated[str, Field(max_length=4_096)]
"""A word, a name or a path."""
Checksum = Annotated[str, Field(max_length=100)]
Element = Literal["auto", "float32", "float16", "bfloat16", "int8"]
"""How the numbers of harvested activations are stored; auto: as the language model computes them."""
#: The data types of tensors that can be read. There are others, such as 8-bit floats, that cannot even be compared.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SHOWN, _LISTED, _LONGEST_KEY = 80, 12, 200
_KINDS = ("literal[", "tuple[", "list[", "dict[", "constrained-")


class Schema(BaseModel):
    """The base class of schemas. Unknown keys, such as those of later versions, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def shown(value: object) -> str:
    """A value from a user or a file, for an error message: its repr, shortened if it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


def listed(names: Iterable[str]) -> str:
    """Names from a user or a file, for an error message: sorted, and at most a dozen."""
    found = sorted(names)
    more = f" and {len(found) - _LISTED:,} more" if len(found) > _LISTED else ""
    return ", ".join(name[:_SHOWN] for name in found[:_LISTED]) + more if found else "nothing"


def checked(kind: type[T], data: Any, where: object, remedy: str = "") -> T:
    """Convert JSON data to the type `kind`.

    Raises InputError, which names `where`, the key, what was expected, and the remedy.
    """
    then = f"; {remedy}" if remedy else ""
    try:
        return _adapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise InputError(f"{where}: {said(error)}{then}") from None


def said(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, as part of a line: see `flaw`. Of a range that a configuration checks
    by itself, what that says: its InputError is a ValueError, which pydantic takes for a finding of its own."""
    own = own_error(error)
    return flaw(error.errors()[0]) if own is None else str(own)


def own_error(error: ValidationError) -> InputError | None:
    """The first InputError that a configuration raised while pydantic made it; None where there is none."""
    causes = (found.get("ctx", {}).get("error") for found in error.errors())
    return next((cause for cause in causes if isinstance(cause, InputError)), None)


def flaw(error: ErrorDetails) -> str:
    """An error of pydantic as part of a message: the key, what was expected, and the value."""
    # If a value may have one of several types, pydantic adds the name of the type to the key.
    key = ".".join(part for part in map(str, error["loc"]) if not part.startswith(_KINDS))[:_LONGEST_KEY]
    match error["type"]:
        case "missing" | "missing_argument":
            return f"key '{key}' is missing"
        case "json_invalid":
            return (
                f"text that cannot be written: {shown(error['ctx'].get('error') if 'ctx' in error else '')}"
            )
        case "dataclass_type" | "model_type":
            expected = "expected an object"
        case _:
            expected = error["msg"].replace("Input should be", "expected").replace("Value error, ", "")
    expected = " ".join(expected.split())
    of = f"key '{key}': " if key else ""
    return f"{of}{expected}, got {shown(error['input'])}"


@cache
def _adapter(kind: Any) -> Any:
    return TypeAdapter(kind)


def without(data: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The mapping without some keys."""
    return {key: value for key, value in data.items() if key not in keys}
