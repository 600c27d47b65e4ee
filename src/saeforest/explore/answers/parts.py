"""What all answers are made of: the version, arrays, errors, and answers as plain data."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..queries.cards import ForcedBy

#: Version of the API: the first part of its address, and a field of `overview`.
API_VERSION = 1
Format = Literal["share", "cosine", "log2", "rank", "number"]
"""How the numbers of a column are written."""

# Most of an answer: to be looked for first.
_LEAVES = (str, int, float, type(None))


def plain(answer: Any) -> Any:
    """An answer as nested dicts, lists, strings and numbers, ready for `json.dumps`."""
    if isinstance(answer, _LEAVES):
        return answer
    if is_dataclass(answer):
        return {name: plain(value) for name, value in vars(answer).items()}
    if isinstance(answer, Mapping):
        return {str(key): plain(value) for key, value in answer.items()}
    if isinstance(answer, list | tuple):
        # In lists of numbers or strings, which may be long, only the first is looked at.
        return (
            list(map(plain, answer))
            if answer and not isinstance(answer[0], str | int | float)
            else list(answer)
        )
    return answer


@dataclass(frozen=True)
class Array:
    """A tensor of numbers. NaN is an undefined number.

    data: the numbers in little-endian order, last dimension first, as base64.
    """

    dtype: Literal["float32", "int32", "uint8"]
    shape: tuple[int, ...]
    data: str

    @classmethod
    def of(cls, tensor: Tensor) -> Array:
        dtype: Literal["float32", "int32", "uint8"] = "float32"
        if tensor.dtype in (torch.bool, torch.uint8):
            dtype = "uint8"
        elif not tensor.is_floating_point():
            dtype = "int32"
        numbers = tensor.detach().cpu().to(getattr(torch, dtype)).contiguous().numpy()
        data = base64.b64encode(numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()).decode()
        return cls(dtype, tuple(tensor.shape), data)


@dataclass(frozen=True)
class AboutColumn:
    """An edge column.

    mechanical: whether values are high whatever the parent is, so that they do not speak for an edge. forced_by: why;
    None if not mechanical. of_pair: whether it depends on the parent; if not, it has no places among null pairs.
    defined: which edges have a value, as what follows "where"; empty if all have.
    """

    name: str
    title: str
    unit: str
    description: str
    higher_is_more: bool
    mechanical: bool
    forced_by: ForcedBy | None
    format: Format
    of_pair: bool
    defined: str


@dataclass(frozen=True)
class ErrorAnswer:
    """Any answer with a status of 400 or more. error: one line."""

    error: str
