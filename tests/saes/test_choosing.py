"""Choosing the k largest features of a token or of a batch, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saeforest.saes.select import above, batch_top_k, exceeding, top_k
from saeforest.sparse_code import SparseCode

# Choosing features


def chosen_by_token(h: np.ndarray, k: int) -> np.ndarray:
    out = np.zeros_like(h)
    for row, kept in zip(h, out, strict=True):
        for i in sorted(range(len(row)), key=lambda i: -row[i])[:k]:
            kept[i] = max(row[i], 0)
    return out


def chosen_by_batch(h: np.ndarray, k: int) -> np.ndarray:
    out = np.zeros_like(h)
    for place in sorted(np.ndindex(*h.shape), key=lambda place: -h[place])[: k * len(h)]:
        out[place] = max(h[place], 0)
    return out


def of_batch(h: torch.Tensor, k: int) -> SparseCode:
    return batch_top_k(
        lambda width: top_k(h, width), lambda rows, bound: exceeding(h[rows], bound), len(h), h.shape[1], k
    )


def pre_activations(kind: str) -> torch.Tensor:
    h = torch.randn(12, 40, generator=torch.Generator().manual_seed(7))
    if kind == "rows that hold far more than 4k":
        h[3] = 10 + h[3].abs()
        h[8, :25] = 20 + h[8, :25].abs()
    elif kind == "one row takes it all":
        h[5] = 10 + h[5].abs()
    elif kind == "fewer positive than wanted":
        h = h - 2
    elif kind == "all negative":
        h = -h.abs() - 0.1
    elif kind == "one row":
        h = h[:1]
    return h


KINDS = [
    "random",
    "rows that hold far more than 4k",
    "one row takes it all",
    "fewer positive than wanted",
    "all negative",
    "one row",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 3, 11, 40])
def test_choosing_equals_brute_force(kind: str, k: int) -> None:
    h = pre_activations(kind)
    floor = torch.linspace(-0.5, 0.8, h.shape[1])
    excess = h.numpy() - floor.numpy()
    for code, wanted in [
        (top_k(h, k), chosen_by_token(h.numpy(), k)),
        (of_batch(h, k), chosen_by_batch(h.numpy(), k)),
        (above(h, floor), np.where(excess > 0, excess, 0)),
    ]:
        np.testing.assert_array_equal(code.dense(h.shape[1]), wanted)
        active = code.active()
        assert int(active.sum()) == int((wanted > 0).sum()), "a feature has one slot"
        assert not code.ids[~active].any()
        assert not code.values[~active].any()
    assert top_k(h, k).ids.shape == (len(h), k)


def test_choosing_is_wide_enough() -> None:
    """The slots are as many as the fullest row needs: more than 4k here, and none to waste."""
    code = of_batch(pre_activations("rows that hold far more than 4k"), 2)
    assert code.ids.shape == (12, 24)
    assert above(pre_activations("all negative"), torch.zeros(40)).ids.shape == (12, 1)
    assert above(torch.zeros(0, 40), torch.zeros(40)).ids.shape == (0, 1)


@pytest.mark.parametrize("seed", range(20))
def test_choosing_among_equals_takes_as_many(seed: int) -> None:
    """In bfloat16 many pre-activations are equal: which of them are chosen is open, how many is not."""
    h = torch.randint(-2, 4, (12, 20), generator=torch.Generator().manual_seed(seed)).float()
    for k in (1, 2, 5):
        code = of_batch(h, k)
        wanted = chosen_by_batch(h.numpy(), k)
        assert int(code.active().sum()) == int((wanted > 0).sum())
        values = code.dense(20)
        assert sorted(values.flatten().tolist()) == sorted(wanted.flatten().tolist())
        assert torch.equal(values[values > 0], h[values > 0])
