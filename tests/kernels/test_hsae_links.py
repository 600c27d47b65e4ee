"""HSAE's links against their plain dense reference."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from saeforest.kernels import dense_link_distance, link_distance

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
    """Families of up to a dozen active siblings, orphans, and features without children."""
    monkeypatch.setattr("saeforest.kernels.links._CROWD", crowd)
    generator = torch.Generator().manual_seed(0)
    f = torch.rand(N, ABOVE + BELOW, generator=generator, dtype=torch.float64)
    f = (f * (torch.rand(f.shape, generator=generator) < 0.5)).requires_grad_()
    decoder = torch.randn(ABOVE + BELOW, D, generator=generator, dtype=torch.float64, requires_grad=True)
    parent = torch.full((ABOVE + BELOW,), -1)
    parent[ABOVE:] = torch.randint(-1, ABOVE - 1, (BELOW,), generator=generator)
    sparse = link_distance(entries(f, slice(0, ABOVE)), entries(f, slice(ABOVE, None)), parent, decoder)
    dense = dense_link_distance(f, parent, decoder)
    torch.testing.assert_close(sparse, dense)
    on = f.detach() > 0
    for found, expected in zip(
        torch.autograd.grad(sparse, (f, decoder)), torch.autograd.grad(dense, (f, decoder)), strict=True
    ):
        if found.shape == f.shape:
            found, expected = found[on], expected[on]
        torch.testing.assert_close(found, expected)
