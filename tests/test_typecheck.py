"""The tests' own checks of types and shapes are in force."""

from __future__ import annotations

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from saeforest.kernels import plain
from saeforest.seeds import seeded
from typecheck import checked, jaxtyped


def test_shapes_that_do_not_agree() -> None:
    with pytest.raises(TypeCheckError, match="rows"):
        plain.gather_dot(torch.ones(2, 3), torch.zeros(4).long(), torch.zeros(5).long(), torch.ones(2, 3))


def test_a_type_beside_shapes() -> None:
    with pytest.raises(TypeCheckError, match="k"):
        plain.top_positive(torch.ones(2, 3), "1")  # pyright: ignore[reportArgumentType]


def test_a_type_without_shapes() -> None:
    with pytest.raises(BeartypeCallHintViolation, match="seed"):
        seeded("1")  # pyright: ignore[reportArgumentType]


@jaxtyped(checked)
def first_rows(x: Float[Tensor, "n d"], n: int, *more: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return x[:n]


def test_a_call_that_looks_like_one_that_passed_is_checked_in_what_differs() -> None:
    x = torch.ones(3, 2)
    for _ in range(2):
        assert torch.equal(first_rows(x, 3, x), x)
        with pytest.raises(TypeCheckError, match="return"):
            first_rows(x, 2, x)
        with pytest.raises(TypeCheckError, match="x"):
            first_rows(x.long(), 3, x)
        with pytest.raises(TypeCheckError, match="n"):
            first_rows(x, "3", x)  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeCheckError, match="more"):
            first_rows(x, 3, x[:2])
    calls: list[int] = []

    @jaxtyped(checked)
    def counted(x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        calls.append(len(calls))
        return x[: len(calls), 0]

    with pytest.raises(TypeCheckError, match="return"):
        counted(x)
    with pytest.raises(TypeCheckError, match="return"):
        counted(x)
    assert counted(x).shape == counted(x).shape == (3,)
    assert calls == [0, 1, 2, 3], "never twice for one call"
