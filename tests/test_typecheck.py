"""The tests' own checks of types and shapes are in force, and refuse what jaxtyping refuses."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Bool, Float, Float32, Int, Shaped
from torch import Tensor

import typecheck
from saeforest.kernels import plain
from saeforest.seeds import seeded


def test_shapes_that_do_not_agree() -> None:
    with pytest.raises(BeartypeCallHintViolation, match=r"ids.* size of dimension m is 5 .* value of 4"):
        plain.gather_dot(torch.ones(2, 3), torch.zeros(4).long(), torch.zeros(5).long(), torch.ones(2, 3))


def test_a_type_beside_shapes() -> None:
    with pytest.raises(BeartypeCallHintViolation, match="k"):
        plain.top_positive(torch.ones(2, 3), "1")  # pyright: ignore[reportArgumentType]


def test_a_type_without_shapes() -> None:
    with pytest.raises(BeartypeCallHintViolation, match="seed"):
        seeded("1")  # pyright: ignore[reportArgumentType]


PAIRS = [
    ("n d", "n d"),
    ("n d", "d n"),
    ("n n", "n"),
    ("n 3", "n"),
    ("n _", "_ n"),
    ("*n d", "*n"),
    ("*n d", "d *n"),
    ("... d", "d"),
    ("n d", "#n d"),
    ("n", "n+1"),
    ("", "n"),
]
SHAPES = [(), (1,), (3,), (2, 3), (3, 3), (3, 2), (3, 4), (2, 3, 3), (2, 0, 3)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_shapes_are_taken_and_refused_as_by_jaxtyping(first: str, second: str) -> None:
    """Two arguments of a call, of which the second must agree with the first; both twice, as of a kind seen before."""
    a, b = Float[Tensor, first], Float[Tensor, second]

    def passed(check: Any, x: Tensor, y: Tensor) -> tuple[bool, ...]:
        with _jaxtyped("context"):
            if not check(a, x):  # what is refused may not leave sizes behind
                return (False, check(a, torch.zeros(3, 3)), check(b, y))
            return (True, check(b, y), check(a, x))

    for shapes in [*itertools.product(SHAPES, repeat=2)] * 2:
        x, y = (torch.zeros(shape) for shape in shapes)
        if second == "n+1" and len(shapes[0]) != 1:
            continue  # jaxtyping cannot compute it without n
        assert passed(typecheck._is_instance, x, y) == passed(typecheck._by_jaxtyping, x, y), shapes


_jaxtyped: Any = typecheck._with_shapes


@pytest.mark.parametrize("annotation", [Float, Float32, Int, Bool, Shaped])
def test_kinds_are_taken_and_refused_as_by_jaxtyping(annotation: Any) -> None:
    hints = [annotation[Tensor, "n"], annotation[np.ndarray, "n"], annotation[Any, "n"]]
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.bool)
    tensors = [torch.zeros(2, dtype=dtype) for dtype in dtypes]
    arrays = [np.zeros(2, dtype) for dtype in ("f4", "f8", "i8", "u1", "?", "O")]
    for value in [*tensors, torch.nn.Parameter(torch.zeros(2)), *arrays, 1.0, None, [0.0, 0.0]] * 2:
        for hint in hints:
            assert isinstance(value, hint) == typecheck._by_jaxtyping(hint, value), (hint, value)


def test_a_call_within_a_call_has_sizes_of_its_own() -> None:
    @typecheck.jaxtyped(None)
    def inner(x: Float[Tensor, "n d"]) -> Float[Tensor, "d n"]:
        return x.T

    @typecheck.jaxtyped(None)
    def outer(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
        return x @ inner(x[:1].repeat(len(x), 1))

    assert outer(torch.ones(2, 3)).shape == (2, 2)

    @typecheck.jaxtyped(None)
    def wrong(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
        return x

    with pytest.raises(BeartypeCallHintViolation, match=r"(?s)return .* size of dimension n is 3"):
        wrong(torch.ones(2, 3))


def test_fields_of_a_dataclass() -> None:
    @typecheck.jaxtyped(None)
    @dataclass
    class Pair:
        x: Float[Tensor, "n"]
        y: Int[Tensor, "n"]

    Pair(torch.zeros(2), torch.zeros(2).long())
    with pytest.raises(BeartypeCallHintViolation, match="size of dimension n is 3"):
        Pair(torch.zeros(2), torch.zeros(3).long())


def test_a_name_that_is_not_there_hides_no_shape() -> None:
    @typecheck.jaxtyped(None)
    def f(it: OnlyForTypeCheckers, x: Float[Tensor, "n"], *, y: Int[Tensor, "n"] | None = None) -> None:  # pyright: ignore[reportUndefinedVariable]
        assert it == "anything"

    f("anything", torch.zeros(2), y=torch.zeros(2).long())
    f("anything", torch.zeros(2))
    with pytest.raises(BeartypeCallHintViolation, match="n=2"):
        f("anything", torch.zeros(2), y=torch.zeros(3).long())
