"""HSAE's links against their plain dense reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from saeforest.kernels import (
    dense_link_distance,
    dense_projected_distance,
    link_distance,
    projected_distance,
)

ABOVE, BELOW, D, N = 5, 40, 7, 30


class Entries(NamedTuple):
    rows: Tensor
    ids: Tensor
    values: Tensor


def entries(f: Tensor, features: slice) -> Entries:
    own = torch.zeros_like(f)
    own[:, features] = f[:, features].detach()
    rows, ids = own.nonzero(as_tuple=True)
    return Entries(rows, ids, f[rows, ids])


@pytest.mark.parametrize("crowd", [0, 2, 8])
def test_distance_and_gradients_equal_the_dense_ones(crowd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saeforest.kernels.links._CROWD", crowd)
    compare(link_distance, dense_link_distance)


def test_projected_distance_and_gradients_equal_the_dense_ones() -> None:
    compare(projected_distance, dense_projected_distance)


def test_nothing_fires() -> None:
    nothing = entries(torch.zeros(N, ABOVE + BELOW), slice(None))
    parent, decoder = torch.full((ABOVE + BELOW,), -1), torch.eye(ABOVE + BELOW)
    for distance in (link_distance, projected_distance):
        assert distance(nothing, nothing, parent, decoder) == 0


def compare(distance: Callable[..., Tensor], dense_distance: Callable[..., Tensor]) -> None:
    """Families of up to a dozen active siblings, orphans, and features without children."""
    generator = torch.Generator().manual_seed(0)
    f = torch.rand(N, ABOVE + BELOW, generator=generator, dtype=torch.float64)
    f = (f * (torch.rand(f.shape, generator=generator) < 0.5)).requires_grad_()
    decoder = torch.randn(ABOVE + BELOW, D, generator=generator, dtype=torch.float64, requires_grad=True)
    parent = torch.full((ABOVE + BELOW,), -1)
    parent[ABOVE:] = torch.randint(-1, ABOVE - 1, (BELOW,), generator=generator)
    sparse = distance(entries(f, slice(0, ABOVE)), entries(f, slice(ABOVE, None)), parent, decoder)
    dense = dense_distance(f, parent, decoder)
    torch.testing.assert_close(sparse, dense)
    on = f.detach() > 0
    for found, expected in zip(
        torch.autograd.grad(sparse, (f, decoder)), torch.autograd.grad(dense, (f, decoder)), strict=True
    ):
        if found.shape == f.shape:
            found, expected = found[on], expected[on]
        torch.testing.assert_close(found, expected)
