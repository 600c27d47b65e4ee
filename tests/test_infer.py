"""Pair statistics and inferred forests: against dense float64 oracles, by hand, and on a planted hierarchy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import pairs as oracle
from saeforest import InputError, spill
from saeforest.infer import METHODS, InferConfig, InferredForest, infer_forest
from saeforest.saes import TreeConfig, TreeSAE
from saeforest.sparse_code import SparseCode
from saeforest.structure import pairs as pairs_module
from saeforest.structure.directions import RIDGE
from saeforest.structure.pairs import SCORES, PairStatistics, Score, first_best

THRESHOLD = 1e-3


def code_of(rows: list[dict[int, float]]) -> SparseCode:
    """A code with the given values by feature on each token; unused slots are 0, also between used ones."""
    k = 1 + max((len(row) for row in rows), default=0)
    values, ids = torch.zeros(len(rows), k), torch.zeros(len(rows), k, dtype=torch.int64)
    for t, row in enumerate(rows):
        for slot, (i, value) in enumerate(row.items()):
            # Odd tokens leave the first slot free, even ones the last.
            values[t, slot + t % 2], ids[t, slot + t % 2] = value, i
    return SparseCode(values, ids)


def random_code(seed: int, n: int = 60, d_sae: int = 9) -> SparseCode:
    """Features of different frequencies; the last never fires, the first always does; values of every size."""
    rng = np.random.default_rng(seed)
    on = rng.random((n, d_sae)) < np.linspace(0.9, 0.05, d_sae)
    on[:, 0], on[:, -1] = True, False
    on[:, 4] &= on[:, 2]
    on[:, 5] = on[:, 3]
    size = np.where(rng.random((n, d_sae)) < 0.1, THRESHOLD / 2, 3 * rng.random((n, d_sae)) + 2 * THRESHOLD)
    size[:, 6] = 0.5  # of no variance
    return code_of([{i: float(size[t, i]) for i in rng.permutation(d_sae) if on[t, i]} for t in range(n)])


def above_threshold(code: SparseCode, d_sae: int) -> np.ndarray:
    a = code.dense(d_sae).double().numpy()
    return np.where(a > THRESHOLD, a, 0)


def statistics(code: SparseCode, d_sae: int, *cuts: int) -> PairStatistics:
    found = PairStatistics(d_sae, THRESHOLD)
    n = len(code.values)
    for first, last in pairwise([0, *cuts, n]):
        found.add(SparseCode(code.values[first:last], code.ids[first:last]))
    return found


def scores(found: PairStatistics, kind: Score, role: Literal["child", "parent"]) -> Tensor:
    return torch.cat([s for _, s in found.scores(kind, torch.arange(found.d_sae), role)])


# ---- pair statistics


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", SCORES)
def test_scores_equal_the_oracle(kind: Score, seed: int) -> None:
    code = random_code(seed)
    a = above_threshold(code, 9)
    found = statistics(code, 9)
    wanted = np.array([[oracle.score(kind, a, p, c) for p in range(9)] for c in range(9)])
    by_child, by_parent = scores(found, kind, "child"), scores(found, kind, "parent")
    np.testing.assert_allclose(by_child, wanted, atol=1e-12)
    np.testing.assert_allclose(by_parent.T, wanted, atol=1e-12)
    assert np.abs(wanted[wanted > 0]).mean() > 0.1


def test_marginals() -> None:
    code = random_code(0)
    a = above_threshold(code, 9)
    n, total, square, largest = statistics(code, 9, 7, 7, 30).marginals
    assert n.tolist() == (a > 0).sum(0).tolist()
    np.testing.assert_allclose(total, a.sum(0), rtol=1e-12)
    np.testing.assert_allclose(square, (a**2).sum(0), rtol=1e-12)
    assert largest.tolist() == a.max(0).tolist()


def test_coverage_by_hand() -> None:
    """docs/spec/test-vectors.md#coverage. The child that never fires scores 0 where the reference code has NaN."""
    rows = [{0: 1.0, 1: 1.0}, {0: 1.0, 2: 1.0}, {1: 1.0}, {0: 1.0, 1: 1.0}]
    found = statistics(code_of(rows), 4)
    coverage = scores(found, "coverage", "child")
    assert coverage[1, 0].item() == 2 / 3
    assert coverage[2, 0].item() == 1
    assert coverage[3].tolist() == [0, 0, 0, 0]
    top = found.top_children("coverage", torch.tensor([0]), 3, min_count=1)
    assert top.ids.tolist() == [[2, 1, -1]]
    assert top.score.tolist() == [[1, 2 / 3, 0]]


def test_binary_mcs_is_the_root_of_coverage_and_the_correlation_by_hand() -> None:
    """docs/spec/test-vectors.md#mcs."""
    found = statistics(random_code(3), 9)
    torch.testing.assert_close(scores(found, "mcs_binary", "child") ** 2, scores(found, "coverage", "child"))
    found = statistics(code_of([{0: 1.0, 1: 1.0}, {0: 2.0, 1: 1.0}, {1: 2.0}]), 2)
    assert scores(found, "mcs_correlation", "child")[1, 0].item() == pytest.approx(3 / 30**0.5)
    assert scores(found, "mcs_correlation_scaled", "child")[1, 0].item() == pytest.approx(3 / 30**0.5)
    found = statistics(code_of([{0: 4.0, 1: 1.0}]), 2)
    assert scores(found, "mcs_binary_scaled", "child")[1, 0].item() == 1 / 4
    assert scores(found, "mcs_correlation_scaled", "child")[1, 0].item() == 1 / 4
    assert scores(found, "mcs_correlation_scaled", "child")[0, 1].item() == 1  # min(4, 1) / 1


@pytest.mark.parametrize("kind", SCORES)
def test_cuts_and_parts_change_nothing(kind: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    code = random_code(1)
    whole = scores(statistics(code, 9), kind, "child")
    assert torch.equal(scores(statistics(code, 9, 1, 1, 20, 59), kind, "child"), whole)
    monkeypatch.setattr(pairs_module, "_SLOTS", 23)
    monkeypatch.setattr(pairs_module, "_BLOCK_ENTRIES", 20)
    found = statistics(code, 9, 13)
    assert [len(block) for block, _ in found.scores(kind, torch.arange(9))] == [2, 2, 2, 2, 1]
    torch.testing.assert_close(scores(found, kind, "child"), whole, rtol=1e-12, atol=1e-12)


def test_firings_in_files_are_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    code = random_code(1)
    whole = statistics(code, 9, 20)
    monkeypatch.setattr(spill, "WAITING", 40)
    monkeypatch.setattr(pairs_module, "_SORTED", 23)
    monkeypatch.setattr(pairs_module, "_COPIED", 11)
    filed = statistics(code, 9, 20)
    assert not filed._ids.in_memory
    for role in ("child", "parent"):
        for kind in SCORES:
            assert torch.equal(scores(filed, kind, role), scores(whole, kind, role)), (kind, role)
    for a, b in zip(filed.marginals, whole.marginals, strict=True):
        assert torch.equal(a, b)
    for feature in range(9):
        for a, b in zip(filed.firings(feature), whole.firings(feature), strict=True):
            assert torch.equal(a, b)
    pairs = torch.combinations(torch.arange(9)).T
    assert torch.equal(filed.together(*pairs), whole.together(*pairs))
    assert torch.equal(
        scores(filed.part(10, 40), "pearson", "child"), scores(whole.part(10, 40), "pearson", "child")
    )


def test_tokens_may_come_after_a_look() -> None:
    code = random_code(2)
    found = PairStatistics(9, THRESHOLD)
    found.add(SparseCode(code.values[:30], code.ids[:30]))
    assert found.marginals.n[0] <= 30
    found.add(SparseCode(code.values[30:].view(5, 6, -1), code.ids[30:].view(5, 6, -1)))
    assert found.n_tokens == 60
    assert torch.equal(scores(found, "pearson", "child"), scores(statistics(code, 9), "pearson", "child"))


@pytest.mark.parametrize("kind", SCORES)
def test_top_lists_equal_a_sort(kind: Score) -> None:
    a = above_threshold(random_code(5), 9)
    found = statistics(random_code(5), 9)
    n = (a > 0).sum(0).tolist()
    parents = found.top_parents(kind, torch.tensor([8, 4, 7]), 10)
    children = found.top_children(kind, torch.tensor([0, 5]), 10, min_count=10)
    for row, c in enumerate([8, 4, 7]):
        rank = {
            p: (-np.float32(s), n[p], p) for p in range(9) if p != c and (s := oracle.score(kind, a, p, c))
        }
        wanted = sorted(rank, key=lambda p: rank[p])
        assert parents.ids[row].tolist() == wanted + [-1] * (10 - len(wanted))
    for row, p in enumerate([0, 5]):
        rank = {
            c: (-np.float32(s), -n[c], c)
            for c in range(9)
            if c != p and n[c] >= 10 and (s := oracle.score(kind, a, p, c))
        }
        wanted = sorted(rank, key=lambda c: rank[c])
        assert children.ids[row].tolist() == wanted + [-1] * (10 - len(wanted))
        assert 0 < len(wanted) < 8


def test_scores_that_agree_in_float32_tie() -> None:
    score = torch.tensor([[0.5, 0.5 + 1e-12, 0.5 - 1e-12], [0.5, 0.5 + 1e-6, 0.5]], dtype=torch.float64)
    every = torch.ones(2, 3, dtype=torch.bool)
    assert first_best(score, every, torch.tensor([2, 0, 1])).tolist() == [2, 1]
    assert first_best(score, every, torch.tensor([0, 1, 2])).tolist() == [0, 1]
    assert first_best(score, every & False, torch.tensor([0, 1, 2])).tolist() == [-1, -1]


@pytest.mark.parametrize("rows", [[], [{}, {}], [{0: 1e-4}]])
def test_no_firing_at_all(rows: list[dict[int, float]]) -> None:
    found = statistics(code_of(rows), 3)
    for kind in SCORES:
        assert not scores(found, kind, "child").any()
        assert found.top_parents(kind, torch.arange(3), 2).ids.tolist() == [[-1, -1]] * 3
    assert PairStatistics(3).marginals.n.tolist() == [0, 0, 0]


def test_tiny_and_huge_values_stay_finite() -> None:
    found = PairStatistics(3, 0.0)
    found.add(code_of([{0: 1e-30, 1: 1e-30, 2: 1e30}, {0: 2e-30, 1: 1e-30, 2: 3e30}]))
    for kind in SCORES:
        assert torch.isfinite(scores(found, kind, "child")).all()
    assert scores(found, "mcs_correlation", "child")[1, 0].item() == pytest.approx(3 / 10**0.5)


def test_a_threshold_that_is_none() -> None:
    with pytest.raises(InputError, match=r"^activation threshold -1.0: expected 0 or more$"):
        PairStatistics(3, -1.0)


# ---- forests


class Given(TreeSAE):
    """An SAE whose activations are its code: x in R^d_sae, a feature a coordinate, and any decoder."""

    gated = False

    def encode_normalized(self, u: Tensor, precision: torch.dtype) -> SparseCode:
        values = u[:, : self.d_sae].relu()
        return SparseCode(values, torch.arange(self.d_sae).expand_as(values).contiguous())


def given(*sizes: int, d_in: int | None = None, normalize: Literal["none", "layer_norm"] = "none") -> Given:
    config = TreeConfig(layer_sizes=sizes, k_per_layer=(1,) * len(sizes), normalize_activations=normalize)
    sae = Given(config, d_in or sum(sizes))
    with torch.no_grad():
        sae.decoder.copy_(torch.eye(sum(sizes), d_in or sum(sizes)))
    return sae


def from_code(code: SparseCode, *sizes: int, **config: Any) -> InferredForest:
    x = code.dense(sum(sizes))
    return infer_forest(given(*sizes), x.split(17), InferConfig(**config))


def firing(*features: list[int]) -> Tensor:
    """Activations on which the features fire with value 1: given are the tokens of each feature."""
    x = torch.zeros(1 + max(t for tokens in features for t in tokens), len(features))
    for i, tokens in enumerate(features):
        x[tokens, i] = 1
    return x


@pytest.mark.parametrize("order", ["frequency", "layers"])
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("seed", range(3))
def test_every_score_alone_equals_brute_force(kind: Score, seed: int, order: str) -> None:
    code = random_code(seed)
    least = {"coverage": 0.8, "mcs_binary": 0.9, "mcs_binary_scaled": 0.3, "pearson": 0.05}.get(kind, 0.5)
    found = from_code(code, 2, 3, 4, method=kind, min_score=least, min_count=4, order=order)
    a = above_threshold(code, 9)
    layer = [0, 0, 1, 1, 1, 2, 2, 2, 2]
    wanted = oracle.infer(kind, a, least=least, min_count=4, order=order, layer=layer)
    assert found.forest.parent.tolist() == wanted
    assert sum(p >= 0 for p in wanted) > 1
    assert found.forest.layered == (order == "layers")
    assert found.forest.layer_sizes == (2, 3, 4)
    edge = [oracle.score(kind, a, p, c) if p >= 0 else 0 for c, p in enumerate(wanted)]
    np.testing.assert_allclose(found.score, edge, rtol=1e-6)
    assert found.s_res is None
    assert found.n_fired.tolist() == (a > 0).sum(0).tolist()
    assert found.n_tokens == 60


@pytest.mark.parametrize("order", ["frequency", "layers"])
@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("seed", range(4))
def test_reconstruction_equals_brute_force(
    seed: int, normalize: Literal["none", "layer_norm"], order: str
) -> None:
    code = random_code(seed, n=150)
    generator = torch.Generator().manual_seed(seed)
    sae = given(2, 3, 4, d_in=12, normalize=normalize)
    with torch.no_grad():
        # Related rows, so that there are S_res on both sides of the bound; of any length, as nothing forbids it.
        sae.decoder.copy_(torch.randn(9, 12, generator=generator) + 0.5 + 2 * torch.eye(9, 12))
    x = torch.randn(150, 12, generator=generator)
    x[:, :9] = code.dense(9)
    bounds: dict[str, Any] = {"min_count": 5, "min_reconstruction": 0.02, "order": order}
    found = infer_forest(sae, [x], InferConfig(min_score=0.5, **bounds))
    decoder = sae.W_dec.detach().double().numpy()
    wanted, s_res = oracle.infer_by_reconstruction(
        above_threshold(sae.encode(x), 9),
        sae.normalize(x)[0].double().numpy(),
        decoder / np.linalg.norm(decoder, axis=1, keepdims=True),
        least=0.5,
        ridge=RIDGE,
        layer=[0, 0, 1, 1, 1, 2, 2, 2, 2],
        **bounds,
    )
    assert found.forest.parent.tolist() == wanted
    assert found.s_res is not None
    np.testing.assert_allclose(found.s_res, s_res, atol=1e-5)
    assert any(p >= 0 for p in wanted)


CHAIN = ([*range(40)], [*range(20)], [*range(10)], [*range(5)])


@pytest.mark.parametrize("method", [m for m in SCORES if m != "pearson"])
@pytest.mark.parametrize("places", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_of_a_chain_the_nearest_ancestor_is_taken(method: Score, places: list[int]) -> None:
    """All ancestors score 1."""
    x = firing(*(CHAIN[i] for i in places), [41])
    found = infer_forest(given(5), [x], InferConfig(method=method, min_score=1, min_count=5))
    feature = {depth: places.index(depth) for depth in range(4)}
    assert found.forest.path(feature[3]) == [feature[0], feature[1], feature[2], feature[3]]
    assert found.score.tolist() == [1.0 if depth else 0.0 for depth in places] + [0.0]


def test_by_layers_the_rarest_of_equals_is_taken_too() -> None:
    x = firing(*CHAIN[:2], CHAIN[1], CHAIN[2], CHAIN[3])
    found = infer_forest(given(3, 2), [x], InferConfig("coverage", min_count=5, order="layers"))
    # 1 and 2 are equal: the lower index. 3 covers 4 but is of its layer.
    assert found.forest.parent.tolist() == [-1, -1, -1, 1, 1]


def test_features_that_always_fire_together_make_no_cycle() -> None:
    x = firing([*range(30)], [*range(30)], [*range(30)], [*range(12)])
    found = infer_forest(given(4), [x], InferConfig("coverage"))
    assert found.forest.parent.tolist() == [-1, 0, 0, -1]  # 3 fires too rarely
    found = infer_forest(given(4), [x], InferConfig("coverage", min_count=12))
    assert found.forest.parent.tolist() == [-1, 0, 0, 0]


def test_bounds_are_included() -> None:
    x = firing([*range(9), *range(10, 30)], [*range(10)])
    for least, parent in ((0.9, 0), (0.9000001, -1)):
        found = infer_forest(given(2), [x], InferConfig("coverage", min_score=least, min_count=10))
        assert found.forest.parent.tolist() == [-1, parent]
    found = infer_forest(given(2), [x], InferConfig("coverage", min_count=11))
    assert found.forest.parent.tolist() == [-1, -1]


# ---- a planted hierarchy

N_PARENTS, N_CHILDREN, D = 4, 3, 64
SPURIOUS = N_PARENTS * (1 + N_CHILDREN)
PLANTED = [-1] * N_PARENTS + [p for p in range(N_PARENTS) for _ in range(N_CHILDREN)] + [-1]


class Planted(TreeSAE):
    """Reads the features off activations made of orthonormal directions."""

    gated = False

    def encode_normalized(self, u: Tensor, precision: torch.dtype) -> SparseCode:
        values = u @ self.encoder.T
        values = torch.where(values > 0.5, values, 0)
        return SparseCode(values, torch.arange(self.d_sae).expand_as(values).contiguous())


def planted(n: int = 4000) -> tuple[Planted, Tensor]:
    """Concepts v_c, one or two on a token, each made of its parent's direction and one of its own (Appendix H).

    The last feature fires on every token, and its direction is unrelated to every concept (section 2.2).
    """
    generator = torch.Generator().manual_seed(0)
    d_sae = SPURIOUS + 1
    directions = torch.linalg.qr(torch.randn(D, D, generator=generator))[0][:d_sae]
    config = TreeConfig(layer_sizes=(d_sae,), k_per_layer=(1,), normalize_activations="none")
    sae = Planted(config, D)
    with torch.no_grad():
        sae.encoder.copy_(directions)
        sae.decoder.copy_(directions)
    of_parent = directions[:N_PARENTS].repeat_interleave(N_CHILDREN, 0)
    concepts = (of_parent + directions[N_PARENTS:SPURIOUS]) / 2**0.5
    on = torch.rand(n, len(concepts), generator=generator) < 0.06
    x = (on * (1.5 + torch.rand(on.shape, generator=generator))) @ concepts
    x += (1 + torch.rand(n, 1, generator=generator)) * directions[SPURIOUS]
    return sae, x + 0.05 * torch.randn(n, D, generator=generator)


def test_reconstruction_finds_a_planted_hierarchy_and_no_spurious_parent() -> None:
    sae, x = planted()
    found = infer_forest(sae, x.split(1000))
    assert found.forest.parent.tolist() == PLANTED
    assert found.forest.depth.tolist() == [int(p >= 0) for p in PLANTED]
    assert found.s_res is not None
    child = torch.tensor(PLANTED) >= 0
    assert found.s_res[child].min() > 0.15
    assert found.score[child].tolist() == [1.0] * int(child.sum())


def test_coverage_takes_the_feature_that_always_fires_for_everyones_parent() -> None:
    sae, x = planted()
    by_coverage = infer_forest(sae, [x], InferConfig("coverage")).forest
    # The children's real parents cover them too, and are nearer; the real parents have none but the spurious one.
    assert by_coverage.parent.tolist() == [SPURIOUS] * N_PARENTS + PLANTED[N_PARENTS:]
    # Where the real parent is missing, reconstruction gives none.
    rest = [i for i in range(SPURIOUS + 1) if i != 0]
    with torch.no_grad():
        sae.encoder[0] = 0
    orphans = infer_forest(sae, [x], InferConfig("coverage")).forest
    assert orphans.children(SPURIOUS) == [1, 2, 3, 4, 5, 6]
    by_both = infer_forest(sae, [x])
    assert by_both.forest.parent[rest].tolist() == [-1 if p == 0 else p for p in PLANTED[1:]]


def test_order_of_batches_changes_nothing_for_coverage() -> None:
    sae, x = planted(500)
    one = infer_forest(sae, [x], InferConfig("coverage"))
    other = infer_forest(sae, x.flip(0).split(33), InferConfig("coverage"))
    assert torch.equal(one.forest.parent, other.forest.parent)
    assert torch.equal(one.score, other.score)


# ---- whatever the SAE


@pytest.mark.parametrize("method", METHODS)
def test_a_tree_sae_in_a_flat_reading(method: Any) -> None:
    sae = TreeSAE(TreeConfig(layer_sizes=(6, 10, 14), k_per_layer=(2, 2, 2)), 12, seed=3)
    x = torch.randn(600, 12, generator=torch.Generator().manual_seed(0))
    config = InferConfig(method, min_score=0.1 if method == "mcs_binary_scaled" else None)
    found = infer_forest(sae, [x], config)
    assert torch.isfinite(found.score).all()
    if method == "coverage":
        # Its own parents cover their children, so every child that fires often enough has a parent.
        often = (found.n_fired >= 20) & (sae.parent >= 0)
        assert often.sum() > 5
        own = sae.parent[often]
        assert bool(
            (found.forest.parent[often] >= 0).sum() >= (found.n_fired[own] > found.n_fired[often]).sum()
        )


@pytest.mark.parametrize("method", METHODS)
def test_features_that_fire_rarely_or_always_break_nothing(method: Any) -> None:
    rare = firing([0, 30], [0], [1], [2, 0], [])
    alike = torch.ones(50, 5)
    cases: list[tuple[Tensor, dict[str, Any]]] = [
        (rare, {}),
        (rare, {"min_count": 1}),
        (alike, {}),
        (torch.zeros(50, 5), {"min_count": 1}),
        (rare[:1], {"min_count": 1}),
    ]
    for x, config in cases:
        found = infer_forest(given(5), [x], InferConfig(method, min_score=0.5, **config))
        assert torch.isfinite(found.score).all()
        assert found.s_res is None or torch.isfinite(found.s_res).all()
        if not config and x is rare:
            assert found.forest.edges.shape == (2, 0)


def test_bad_batches() -> None:
    sae = given(3)
    with pytest.raises(InputError, match=r"^no activations to infer a forest from; give at least one batch"):
        infer_forest(sae, [])
    with pytest.raises(InputError, match="no activations"):
        infer_forest(sae, [torch.zeros(0, 3)])
    with pytest.raises(InputError, match=r"^a batch of activations has shape \[5, 4\]: expected \[n, 3\]$"):
        infer_forest(sae, [torch.zeros(5, 4)])
    with pytest.raises(InputError, match=r"shape \[5, 1, 3\]: expected \[n, 3\]$"):
        infer_forest(sae, [torch.zeros(5, 1, 3)])
    with pytest.raises(InputError, match="NaN or infinite values"):
        infer_forest(sae, [torch.tensor([[0.0, 1.0, torch.inf]])])
    with pytest.raises(InputError, match=r"^infer\.order = 'layers': this SAE has one layer only"):
        infer_forest(sae, [torch.zeros(5, 3)], InferConfig(order="layers"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "mcs_binary_scaled"}, r"^infer\.min_score is missing: method mcs_binary_scaled has no"),
        ({"min_score": 0.0}, r"^infer\.min_score = 0\.0: expected a number above 0 and at most 1$"),
        ({"min_score": 1.1}, r"^infer\.min_score = 1\.1"),
        ({"min_score": float("nan")}, r"^infer\.min_score = nan"),
        ({"min_count": 0}, r"^infer\.min_count = 0: expected 1 or more$"),
        ({"min_reconstruction": 1.5}, r"^infer\.min_reconstruction = 1\.5: expected a cosine, -1 to 1$"),
        ({"min_reconstruction": float("nan")}, r"^infer\.min_reconstruction = nan"),
    ],
)
def test_bad_knobs(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        InferConfig(**values)


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [("method", "mcs", "coverage, mcs_binary, .*reconstruction"), ("order", "size", "frequency, layers")],
)
def test_knobs_of_an_unknown_name(name: str, value: str, known: str) -> None:
    config = InferConfig()
    object.__setattr__(config, name, value)  # the type checker of the tests would refuse it otherwise
    with pytest.raises(InputError, match=rf"^infer\.{name} = '{value}': expected one of {known}$"):
        config.__post_init__()
