"""The measure `hsae`: Hamming distance and conditional probabilities (docs/spec/hierarchy.md#levels)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oracles.hsae_levels import conditional, hamming
from saeforest import Forest, SparseCode
from saeforest.measures.hsae import HSAELinks
from saeforest.measures.measure import EvalBatch
from saeforest.saes import SAE, HSAEConfig, TopKConfig, build
from saeforest.structure.forest import flat_forest

SIZES, D = (3, 5, 9), 6


def batch(sae: SAE, active: torch.Tensor, first: int = 0) -> EvalBatch:
    """Two windows of the given activity, with values that a reconstruction can be made of."""
    n, d_sae = active.shape
    values, ids = (active * (0.5 + torch.rand(n, d_sae))).topk(d_sae, dim=1)
    code = SparseCode(values, torch.where(values > 0, ids, 0))
    x = torch.randn(n, D)
    rows = first + torch.arange(n)
    windows = torch.tensor([first // n * 2, first // n * 2 + 1])
    window = windows.repeat_interleave((n + 1) // 2)[:n]
    x_hat = sae.decode(code, sae.normalize(x)[1])
    return EvalBatch(x=x, rows=rows, window=window, windows=windows, code=code, x_hat=x_hat)


def a_sae() -> SAE:
    return build(HSAEConfig(SIZES, (1, 1, 1), normalize_activations="none"), D, seed=0)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_oracle(seed: int) -> None:
    torch.manual_seed(seed)
    sae, starts = a_sae(), (0, 3, 8, 17)
    parent = torch.full((17,), -1)
    for level in (1, 2):
        features = slice(starts[level], starts[level + 1])
        parent[features] = torch.randint(starts[level - 1], starts[level], (SIZES[level],))
        parent[features][torch.rand(SIZES[level]) < 0.3] = -1
    active = torch.rand(24, 17) < torch.rand(17)
    active[:, 16] = False  # one never fires
    measure = HSAELinks(sae, Forest(parent, SIZES))
    batches = [batch(sae, part, first) for first, part in ((0, active[:12]), (12, active[12:]))]
    for part in batches:
        measure.update(part)
    record = measure.record({})
    on, up = active.numpy(), parent.numpy()
    for name, everyone in (("hamming", True), ("hamming_with_children", False)):
        expected = hamming(on, up, SIZES, all_parents=everyone)
        assert [record.value[f"{name}_{level}"] for level in (0, 1)] == pytest.approx(expected)
        assert record.value[name] == pytest.approx(np.mean(expected))
    for name, pairs in zip(("p_parent_child", "p_child_parent"), conditional(on, up, SIZES), strict=True):
        assert record.value[name] == pytest.approx(np.mean([share for *_, share in pairs]))
        child, score = record.edge_scores[name]
        expected = {c: share for _, c, share in pairs}
        assert dict(zip(child.tolist(), score.tolist(), strict=True)) == pytest.approx(expected)
        for level in (0, 1):
            of_level = [share for p, _, share in pairs if starts[level] <= p < starts[level + 1]]
            assert record.value[f"{name}_{level}"] == (pytest.approx(np.mean(of_level)) if of_level else None)
    x = torch.cat([b.x for b in batches]).double().numpy()
    for level in range(3):
        decoded = [sae.decode(b.code, sae.normalize(b.x)[1], level) for b in batches]
        residual = np.square(x - torch.cat(decoded).detach().double().numpy()).sum()
        fve = 1 - residual / np.square(x - x.mean(0)).sum()
        assert record.value[f"fve_level_{level}"] == pytest.approx(fve)
    # A copy of its parent is left out of the values without copies.
    copy = next(c for p, c, _ in conditional(on, up, SIZES)[0] if on[:, p].any())
    sae.decoder.data[copy] = sae.decoder.data[parent[copy]] * 1.5
    again = HSAELinks(sae, Forest(parent, SIZES))
    for part in batches:
        again.update(part)
    without = again.record({})
    assert without.detail["copies"] == 1
    for name, pairs in zip(("p_parent_child", "p_child_parent"), conditional(on, up, SIZES), strict=True):
        assert without.value[name] == record.value[name]
        kept = [share for _, c, share in pairs if c != copy]
        assert len(kept) == len(pairs) - 1
        assert without.value[f"{name}_without_copies"] == pytest.approx(np.mean(kept))
        child, score = without.edge_scores[f"{name}_without_copies"]
        assert copy not in child.tolist()
        assert sorted(score.tolist()) == pytest.approx(sorted(kept))


def test_hand_worked() -> None:
    """docs/spec/test-vectors.md#levels: parents A with children a1 and a2, and B without."""
    sae = build(HSAEConfig((2, 3), (1, 1), normalize_activations="none"), D, seed=0)
    forest = Forest(torch.tensor([-1, -1, 0, 0, -1]), (2, 3))
    first, second = torch.tensor([[1, 1, 1, 0, 0]]) > 0, torch.tensor([[0, 0, 0, 1, 0]]) > 0
    measure = HSAELinks(sae, forest)
    measure.update(batch(sae, torch.cat([first, second])))
    value = measure.record({}).value
    assert value["hamming"] == pytest.approx((1 + 1) / 2)
    assert value["hamming_with_children"] == pytest.approx((0 + 1) / 2)
    assert value["p_parent_child"] == pytest.approx((1 + 0) / 2)

    n_both, n_child, n_parent = 3, 4, 6
    active = torch.zeros(7, 5) > 0
    active[:n_parent, 0] = True
    active[n_parent - n_both : n_parent - n_both + n_child, 2] = True
    measure = HSAELinks(sae, Forest(torch.tensor([-1, -1, 0, -1, -1]), (2, 3)))
    measure.update(batch(sae, active))
    value = measure.record({}).value
    assert (value["p_parent_child"], value["p_child_parent"]) == (0.75, 0.5)


def test_a_flat_sae_has_reasons_instead_of_values() -> None:
    sae = build(TopKConfig((4,), (2,), normalize_activations="none"), D, seed=0)
    measure = HSAELinks(sae, flat_forest((4,)))
    measure.update(batch(sae, torch.ones(4, 4) > 0))
    record = measure.record({})
    assert record.value["hamming"] is None
    assert record.value["p_parent_child"] is None
    assert record.null["hamming"] == "the forest has one level"
