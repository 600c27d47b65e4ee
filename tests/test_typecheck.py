"""The tests' own checks of types and shapes are in force."""

from __future__ import annotations

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from saeforest.kernels import plain
from saeforest.seeds import seeded


def test_shapes_that_do_not_agree() -> None:
    with pytest.raises(TypeCheckError, match="rows"):
        plain.gather_dot(torch.ones(2, 3), torch.zeros(4).long(), torch.zeros(5).long(), torch.ones(2, 3))


def test_a_type_beside_shapes() -> None:
    with pytest.raises(TypeCheckError, match="k"):
        plain.top_positive(torch.ones(2, 3), "1")  # pyright: ignore[reportArgumentType]


def test_a_type_without_shapes() -> None:
    with pytest.raises(BeartypeCallHintViolation, match="seed"):
        seeded("1")  # pyright: ignore[reportArgumentType]
