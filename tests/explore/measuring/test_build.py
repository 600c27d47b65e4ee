"""The index of a run against dense float64 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from explore_cases import (
    MIN_COUNT,
    N_CONTEXTS,
    D,
    Ungated,
    World,
    text_tokens,
    tiny_sae,
)
from saeforest.activations import ActivationBatch
from saeforest.errors import InputError
from saeforest.explore import build_index
from saeforest.explore.measuring.strongest import Strongest, passages
from saeforest.saes import TreeSAE
from saeforest.structure import directions as directions_module
from saeforest.structure.directions import RIDGE
from saeforest.text import Tokens


def test_counts_sums_and_maxima(world: World) -> None:
    index, fires = world.index, world.fires
    assert index.about.n_tokens == len(world.rows)
    torch.testing.assert_close(index.n_fired, fires.sum(0))
    assert index.n_fired[1] == 0
    active = torch.where(fires, world.f, 0)
    torch.testing.assert_close(index.value_sum, active.sum(0), rtol=1e-12, atol=0)
    assert torch.equal(index.value_max, active.amax(0).float())
    assert float(index.density[0]) == int(fires[:, 0].sum()) / len(world.rows)


def test_an_edge_counts_tokens_with_both(world: World) -> None:
    parent = world.sae.parent
    both = [
        int((world.fires[:, c] & world.fires[:, p]).sum()) if p >= 0 else 0
        for c, p in enumerate(parent.tolist())
    ]
    assert world.index.n_with_parent.tolist() == both
    gated = world.index.n_with_parent[parent >= 0] == world.index.n_fired[parent >= 0]
    assert bool(gated.all()) == (type(world.sae) is TreeSAE)


def test_strongest_activations_come_from_different_passages(world: World) -> None:
    unit, passage = passages(world.tokens)
    assert unit == world.index.about.contexts_from
    assert unit == ("document" if len(world.tokens.names) == 150 else "window")
    of_row = passage(world.rows).tolist()
    for feature in range(world.sae.d_sae):
        best: dict[int, tuple[float, int]] = {}
        for value, row, where in zip(world.f[:, feature].tolist(), world.rows.tolist(), of_row, strict=True):
            if value > 1e-3:
                best[where] = min(best.get(where, (0.0, 0)), (-value, row))
        wanted = sorted(best.values())[:N_CONTEXTS]
        rows = world.index.top_row[feature].tolist()
        assert rows == [row for _, row in wanted] + [-1] * (N_CONTEXTS - len(wanted))
        values = world.index.top_value[feature].tolist()
        assert values == [-value for value, _ in wanted] + [0.0] * (N_CONTEXTS - len(wanted))


def test_directions_and_ranks(world: World) -> None:
    index, parent = world.index, world.sae.parent.numpy()
    x = world.x.double().numpy()
    u = (x - x.mean(1, keepdims=True)) / (x.std(1, ddof=1, keepdims=True) + 1e-5)
    covariance = np.cov(u.T, bias=True)
    regular = covariance + RIDGE * np.trace(covariance) / D * np.eye(D)
    decoder = world.sae.W_dec.detach().double().numpy()
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    judged = 0
    for c in range(world.sae.d_sae):
        fires = world.fires[:, c].numpy()
        if fires.sum() < MIN_COUNT:
            assert torch.isnan(torch.stack([index.cos_child[c], index.cos_parent[c], index.s_res[c]])).all()
            assert index.rank_child[c] == index.rank_parent[c] == 0
            continue
        w = np.linalg.solve(regular, u[fires].mean(0) - u.mean(0))
        cosine = decoder @ w / np.linalg.norm(w)
        assert float(index.cos_child[c]) == pytest.approx(cosine[c], abs=1e-5)
        assert index.rank_child[c] == 1 + (cosine > cosine[c]).sum()
        if parent[c] == -1:
            assert torch.isnan(index.cos_parent[c])
            assert index.rank_parent[c] == 0
            continue
        judged += 1
        assert float(index.cos_parent[c]) == pytest.approx(cosine[parent[c]], abs=1e-5)
        assert index.rank_parent[c] == 1 + (cosine > cosine[parent[c]]).sum()
        assert float(index.s_res[c]) == pytest.approx(min(cosine[c], cosine[parent[c]]), abs=1e-5)
        assert index.passes[c] == (max(index.rank_child[c], index.rank_parent[c]) <= 5)
    assert judged == index.measured.sum() > 5


def test_the_overall_covariance_gives_the_direction_of_the_one_within_classes(world: World) -> None:
    # What the docstring of `directions` claims: LDA's own formula differs in length only.
    x = world.x.double().numpy()
    fires = world.fires[:, int(world.index.n_fired.argmax())].numpy()
    p, shift = fires.mean(), x[fires].mean(0) - x[~fires].mean(0)
    within = p * np.cov(x[fires].T, bias=True) + (1 - p) * np.cov(x[~fires].T, bias=True)
    lda = np.linalg.solve(within + 0.1 * np.eye(D), shift)
    ours = np.linalg.solve(np.cov(x.T, bias=True) + 0.1 * np.eye(D), x[fires].mean(0) - x.mean(0))
    assert lda @ ours / np.linalg.norm(lda) / np.linalg.norm(ours) == pytest.approx(1)


def test_small_blocks_and_slices_change_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions_module, "_BLOCK_ENTRIES", 2 * world.sae.d_sae)
    monkeypatch.setattr("saeforest.explore.measuring.build._SLICE", 7)
    index = world.build()
    assert torch.equal(index.top_row, world.index.top_row)
    assert torch.equal(index.rank_parent, world.index.rank_parent)
    torch.testing.assert_close(index.s_res, world.index.s_res, equal_nan=True)


def test_a_feature_that_fires_on_every_token_has_no_direction() -> None:
    sae = tiny_sae(Ungated)
    x = torch.randn(50, D)
    x[:, 0] += 50
    with torch.no_grad():
        sae.encoder[0] = torch.eye(D)[0] * 10
    tokens = Tokens(torch.zeros(10, 5, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), ("a",))
    index = build_index(sae, sae.forest, [ActivationBatch(x, torch.arange(50))], tokens, total=50)
    assert index.n_fired[0] == 50
    assert index.rank_child[0] == 0


def test_nothing_to_index() -> None:
    with pytest.raises(InputError, match="no activations"):
        build_index(tiny_sae(), tiny_sae().forest, [], text_tokens("a"), total=0)


def test_strongest_breaks_ties_by_row_whatever_the_order() -> None:
    for rows in ([9, 5, 1, 6], [1, 5, 6, 9]):
        kept = Strongest(1, 2, lambda r: r // 4, torch.device("cpu"))
        for row in rows:
            kept.add(torch.tensor([0]), torch.tensor([2.0]), torch.tensor([row]))
        assert kept.row.tolist() == [[1, 5]]


def test_a_passage_that_dropped_out_comes_back() -> None:
    kept = Strongest(1, 1, lambda r: r // 4, torch.device("cpu"))
    for row, value in ((0, 1.0), (4, 2.0), (1, 3.0), (5, 2.5)):
        kept.add(torch.tensor([0]), torch.tensor([value]), torch.tensor([row]))
    assert (kept.row.tolist(), kept.value.tolist()) == ([[1]], [[3.0]])
