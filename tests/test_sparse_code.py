"""SparseCode against its dense matrix."""

from __future__ import annotations

import pytest
import torch

from saeforest import SparseCode
from saeforest.sparse_code import concat_slots

D_SAE = 11


def random_code(*shape: int, k: int = 4, seed: int = 0) -> SparseCode:
    """Distinct features in each row; about a third of the slots are unused (value 0, id 0)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(*shape, D_SAE, generator=generator).argsort(-1)[..., :k]
    values = torch.rand(*shape, k, generator=generator)
    unused = torch.rand(*shape, k, generator=generator) < 1 / 3
    return SparseCode(values.masked_fill(unused, 0), ids.masked_fill(unused, 0))


def dense_by_hand(code: SparseCode) -> torch.Tensor:
    k = code.values.shape[-1]
    out = torch.zeros(code.values[..., 0].numel(), D_SAE)
    for row, (values, ids) in enumerate(
        zip(code.values.reshape(-1, k).tolist(), code.ids.reshape(-1, k).tolist(), strict=True)
    ):
        for value, i in zip(values, ids, strict=True):
            out[row, i] += value
    return out.reshape(*code.values.shape[:-1], D_SAE)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0, 3)])
def test_dense_holds_every_value_at_its_feature(shape: tuple[int, ...]) -> None:
    code = random_code(*shape)
    assert torch.equal(code.dense(D_SAE), dense_by_hand(code))


def test_an_unused_slot_does_not_overwrite_feature_0() -> None:
    code = SparseCode(torch.tensor([[0.7, 0.0, 0.0]]), torch.tensor([[0, 0, 0]]))
    assert code.dense(3).tolist() == [[pytest.approx(0.7), 0, 0]]
    assert code.fired(3).tolist() == [1, 0, 0]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 2.0])
def test_fired_counts_the_rows_above_the_threshold(threshold: float) -> None:
    code = random_code(4, 7)
    fired = code.fired(D_SAE, threshold)
    assert fired.tolist() == (dense_by_hand(code) > threshold).sum((0, 1)).tolist()
    assert fired.sum() == code.active(threshold).sum()


def test_a_value_at_the_threshold_is_not_active() -> None:
    code = SparseCode(torch.tensor([[0.5, 0.0]]), torch.tensor([[1, 2]]))
    assert code.active().tolist() == [[True, False]]
    assert code.active(0.5).tolist() == [[False, False]]


def test_reshape_moves_rows_and_keeps_slots() -> None:
    code = random_code(6)
    assert torch.equal(code.reshape(2, 3).dense(D_SAE), code.dense(D_SAE).reshape(2, 3, D_SAE))
    back = code.reshape(3, 2).reshape(-1)
    assert torch.equal(back.values, code.values)
    assert torch.equal(back.ids, code.ids)


def test_detach_keeps_values_and_drops_the_graph() -> None:
    code = random_code(3)
    code.values.requires_grad_()
    loose = code.detach()
    assert code.values.requires_grad
    assert not loose.values.requires_grad
    assert torch.equal(loose.values, code.values)


def test_concatenated_slots_add_up() -> None:
    a, b = random_code(5, k=2, seed=1), random_code(5, k=3, seed=2)
    both = concat_slots([a, b])
    assert both.values.shape == both.ids.shape == (5, 5)
    assert torch.equal(both.ids[:, :2], a.ids)
    torch.testing.assert_close(both.dense(D_SAE), a.dense(D_SAE) + b.dense(D_SAE))


def test_slots_whose_parent_is_active() -> None:
    g = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(9, generator=g)[:4] for _ in range(50)])
    values = torch.rand(50, 4, generator=g) * (torch.rand(50, 4, generator=g) < 0.7)
    parent = torch.tensor([-1, -1, -1, 0, 0, 1, 2, 3, -1])
    expected = [
        [
            v > 0.1 and int(parent[i]) in {int(j) for j, w in zip(row, vals, strict=True) if w > 0.1}
            for i, v in zip(row, vals, strict=True)
        ]
        for row, vals in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    found = SparseCode(values, ids).with_parent(parent, 0.1)
    assert found.tolist() == expected
    assert found.any()
