"""The reconstruction score: against float64 arithmetic, and on a tree whose true directions are known."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oracles import pairs as pairs_oracle
from oracles import probes as oracle
from saeforest.errors import InputError
from saeforest.measures import reconstruction_score as module
from saeforest.measures.probes import ProbeConfig, Probes
from saeforest.measures.reconstruction_score import (
    ReconstructionScoreConfig,
    pair_nearness,
    reconstruction_score,
)
from saeforest.measures.record import Record
from saeforest.measures.subject import Subject
from saeforest.saes import TreeConfig, TreeSAE
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import Forest
from saeforest.structure.pairs import PairStatistics
from saeforest.worlds import World
from saeforest.worlds.generators import tree
from subject_cases import but, given

VALUES = {
    "s_res",
    "cos_child",
    "cos_parent",
    "hits",
    "coverage",
    "near_not_covering",
    "lda_s_res",
    "lda_cosine",
}
LDA = ProbeConfig(method="lda")


def seen_of(
    x: Tensor, code: SparseCode, decoder: Tensor, forest: Forest, probe: ProbeConfig = LDA
) -> Subject:
    """An SAE of these decoder rows and this code."""
    sizes = forest.layer_sizes
    sae = TreeSAE(TreeConfig(layer_sizes=sizes, k_per_layer=(1,) * len(sizes)), x.shape[1])
    with torch.no_grad():
        sae.decoder.copy_(decoder)
    pairs = PairStatistics(forest.d_sae)
    pairs.add(code)
    probes = Probes(x, pairs, probe)
    return given(sae, {"model": "none"}, forest=forest, firings=pairs, activations=x, probes=probes)


def on(columns: Tensor) -> SparseCode:
    """The code of a dense matrix of firings."""
    return SparseCode(columns.float(), torch.arange(columns.shape[1]).expand(columns.shape))


# ---- against float64


def small(parent: list[int], seed: int = 0, n: int = 400, **probe: Any) -> Subject:
    """Nine features of falling frequency, child within parent; 7 never fires, 8 always does."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(n, 9, generator=generator) < torch.tensor([0.6, 0.4, 0.6, 0.5, 0.4, 0.5, 0.2, 0, 1.1])
    y[:, 2] &= y[:, 0]
    y[:, 3] &= y[:, 0]
    y[:, 4] &= y[:, 1]
    y[:, 5] &= y[:, 2]
    decoder = F.normalize(torch.randn(9, 5, generator=generator))
    x = y.float() @ decoder + 0.5 * torch.randn(n, 5, generator=generator)
    forest = Forest(torch.tensor(parent), (9,), layered=False)
    return seen_of(x, on(y), decoder, forest, replace(LDA, **probe))


PARENT = [-1, -1, 0, 0, 1, 2, 1, 0, 1]


@pytest.mark.parametrize("block", [1 << 24, 20])
def test_record_equals_the_oracle(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", block)
    seen = small(PARENT, method="logistic", epochs=3, batch_size=50)
    record = reconstruction_score(seen, ReconstructionScoreConfig(min_count=20))
    a = (
        seen.pairs.marginals.n[:8] > 0
    ).float()  # the edges of 7, which never, and of 8, which always fires, are out
    assert a.tolist() == [1] * 7 + [0]
    assert [(p["parent"], p["child"]) for p in record.detail["pairs"]] == [
        (0, 2),
        (0, 3),
        (1, 4),
        (2, 5),
        (1, 6),
    ]
    assert record.detail["edges"] == {"all": 7, "measurable": 5, "measured": 5}
    decoder = seen.sae.W_dec.detach().double().numpy()
    children = torch.tensor([p["child"] for p in record.detail["pairs"]])
    trained = seen.probes.directions(children).double().numpy()
    computed = Probes(seen.x, seen.pairs, LDA).directions(children).double().numpy()
    dense = np.zeros((400, 9))
    for f in range(9):
        dense[seen.pairs.firings(f)[0], f] = 1
    for pair, w, lda in zip(record.detail["pairs"], trained, computed, strict=True):
        p, c = pair["parent"], pair["child"]
        assert pair["n"] == dense[:, c].sum()
        assert pair["coverage"] == pytest.approx(pairs_oracle.score("coverage", dense, p, c))
        assert pair["cos_child"] == pytest.approx(oracle.cosine(w, decoder[c]), abs=1e-6)
        assert pair["cos_parent"] == pytest.approx(oracle.cosine(w, decoder[p]), abs=1e-6)
        assert pair["s_res"] == min(pair["cos_child"], pair["cos_parent"])
        others = [f for f in range(9) if f != c]
        nearest = max(others, key=lambda f: oracle.cosine(w, decoder[f]))
        assert pair["nearest_other"] == nearest
        share = pairs_oracle.score("coverage", dense, nearest, c)
        assert pair["coverage_by_nearest_other"] == pytest.approx(share)
        assert (pair["rank_child"], pair["rank_parent"]) == tuple(oracle.rank(w, decoder, i) for i in (c, p))
        lda_score = min(oracle.cosine(lda, decoder[c]), oracle.cosine(lda, decoder[p]))
        assert pair["s_res_lda"] == pytest.approx(lda_score, abs=1e-6)
        score = seen.x.double().numpy() @ w
        assert pair["auroc"] == pytest.approx(oracle.auroc(score, dense[:, c]), abs=1e-4)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    pairs = record.detail["pairs"]
    assert record.value.keys() == VALUES
    for name in ("s_res", "cos_child", "cos_parent", "coverage"):
        assert record.value[name] == pytest.approx(mean([p[name] for p in pairs]), abs=1e-6)
    hits = [float(p["rank_child"] <= 5 and p["rank_parent"] <= 5) for p in pairs]
    assert record.value["hits"] == mean(hits)
    near = [float(p["coverage_by_nearest_other"] < 0.5) for p in pairs]
    assert record.value["near_not_covering"] == pytest.approx(mean(near))
    assert record.value["lda_s_res"] == pytest.approx(mean([p["s_res_lda"] for p in pairs]), abs=1e-6)
    cosines = [oracle.cosine(*both) for both in zip(trained, computed, strict=True)]
    assert record.value["lda_cosine"] == pytest.approx(mean(cosines), abs=1e-6)
    for name, value in record.value.items():
        interval = record.interval[name]
        assert value is not None
        assert interval is not None
        assert interval[0] <= value <= interval[1]
    assert record.edge_scores.keys() == {"s_res", "hits", "near_not_covering", "lda_s_res"}
    expected = {"s_res": [p["s_res"] for p in pairs], "lda_s_res": [p["s_res_lda"] for p in pairs]}
    expected["hits"] = [-max(oracle.rank(w, decoder, p[i]) for i in ("child", "parent"))
                        for p, w in zip(pairs, trained, strict=True)]  # fmt: skip
    expected["near_not_covering"] = [-p["coverage_by_nearest_other"] for p in pairs]
    for name, of_edges in record.edge_scores.items():
        assert of_edges.child.tolist() == [2, 3, 4, 5, 6]
        assert of_edges.score.tolist() == pytest.approx(expected[name], abs=1e-6)
    assert record.settings["probe"]["epochs"] == 3
    assert record.settings["config"]["min_count"] == 20
    assert record.settings["model"] == "none"
    assert record.tokens == 400


def test_ranks_count_all_rows_and_equals_share_the_better_rank() -> None:
    decoder = F.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, 1], [-1, 0]]))
    near = pair_nearness(
        torch.tensor([[1.0, 0], [0, 1]]), decoder, torch.tensor([2, 4]), torch.tensor([0, 3])
    )
    assert near.cos_child.tolist() == pytest.approx([1, 0.5**0.5])
    assert near.cos_parent.tolist() == pytest.approx([0.5**0.5, 0])
    assert near.rank_child.tolist() == [1, 2]
    assert near.rank_parent.tolist() == [2, 4]
    assert near.score.tolist() == pytest.approx([0.5**0.5, 0])
    assert near.hit.tolist() == [True, True]
    none = torch.zeros(0, dtype=torch.int64)
    assert pair_nearness(torch.zeros(0, 2), decoder, none, none).score.shape == (0,)


def test_edges_are_drawn_by_the_seed() -> None:
    def pairs(**config: Any) -> list[int]:
        found = reconstruction_score(small(PARENT), ReconstructionScoreConfig(min_count=20, **config))
        assert found.detail["edges"]["measured"] == len(found.detail["pairs"])
        return [pair["child"] for pair in found.detail["pairs"]]

    drawn = [pairs(max_pairs=3, seed=seed) for seed in range(6)]
    assert all(len(children) == 3 and children == sorted(set(children)) for children in drawn)
    assert len({tuple(children) for children in drawn}) > 1
    assert pairs(max_pairs=3, seed=4) == drawn[4]
    assert pairs(max_pairs=5) == [2, 3, 4, 5, 6]


def test_the_record_is_json_and_two_runs_agree(tmp_path: Path) -> None:
    def once() -> Record:
        seen = small(PARENT, method="logistic", epochs=2)
        return reconstruction_score(seen, ReconstructionScoreConfig(min_count=20))

    record = once()
    assert json.dumps(record.to_json(), allow_nan=False) == json.dumps(once().to_json(), allow_nan=False)
    record.write(tmp_path / "record.json")
    assert Record.read(tmp_path / "record.json") == replace(record, settings=json_of(record.settings))


def json_of(data: Any) -> Any:
    return json.loads(json.dumps(data))


# ---- nothing to score


@pytest.mark.parametrize(
    ("parent", "least", "why"),
    [
        ([-1] * 9, 20, "the forest has no edges: every feature hangs from the root"),
        (PARENT, 1000, "no edge has a child that fires 1000 times or more, but not on all activations"),
        ([-1] * 7 + [0, 1], 1, "no edge has a child that fires 1 times or more, but not on all activations"),
    ],
)
def test_nothing_to_score(parent: list[int], least: int, why: str) -> None:
    for method in ("lda", "logistic"):
        seen = small(parent, method=method, epochs=1)
        record = reconstruction_score(seen, ReconstructionScoreConfig(min_count=least))
        assert record.value == dict.fromkeys(VALUES)
        assert record.null == dict.fromkeys(VALUES, why)
        assert record.detail["pairs"] == []


def test_no_activation_at_all() -> None:
    y = torch.zeros(0, 3, dtype=torch.bool)
    forest = Forest(torch.tensor([-1, 0, 0]), (3,), layered=False)
    seen = seen_of(torch.zeros(0, 4), on(y), torch.eye(3, 4), forest)
    record = reconstruction_score(seen, ReconstructionScoreConfig(parents=(0,)))
    assert set(record.null.values()) == {"no token was measured"}
    assert record.detail["focus"][0]["density"] == 0


# ---- parents shown in full


def test_focus_shows_the_children_of_highest_coverage() -> None:
    """Feature 6 is in the forest under 1, but 8 covers all; a feature that always fires is no child of any."""
    seen = small(PARENT)
    config = ReconstructionScoreConfig(min_count=20, parents=(0, 8, 7), children=3)
    of_zero, of_eight, of_none = reconstruction_score(seen, config).detail["focus"]
    n = seen.pairs.marginals.n.tolist()
    assert [child["child"] for child in of_zero["children"]] == sorted([2, 3, 5], key=lambda c: (-n[c], c))
    assert [child["child"] for child in of_eight["children"]] == sorted(range(7), key=lambda c: (-n[c], c))[
        :3
    ]
    assert of_eight["density"] == 1
    assert "why" not in of_zero
    assert of_none == {
        "parent": 7,
        "density": 0,
        "children": [],
        "why": "no feature that fires 20 times or more, and not on all activations, is covered to 0.9 or more",
    }
    decoder = seen.sae.W_dec.detach().double().numpy()
    for child in of_zero["children"]:
        c = child["child"]
        w = seen.probes.directions(torch.tensor([c]))[0].double().numpy()
        assert child["n"] == n[c]
        assert child["coverage"] == 1
        assert child["cos_child"] == pytest.approx(oracle.cosine(w, decoder[c]), abs=1e-6)
        assert child["cos_parent"] == pytest.approx(oracle.cosine(w, decoder[0]), abs=1e-6)
        assert (child["rank_child"], child["rank_parent"]) == tuple(
            oracle.rank(w, decoder, i) for i in (c, 0)
        )
        assert child["s_res"] == min(child["cos_child"], child["cos_parent"])
        edges, counts = child["histogram"]["edges"], child["histogram"]["counts"]
        cosines = [oracle.cosine(w, row) for row in decoder]
        wanted = [sum(low <= c < high for c in cosines) for low, high in pairwise(edges)]
        assert counts == wanted
        assert sum(counts) == 9
        assert (edges[0], edges[-1]) == (-1, 1)


def test_focus_by_itself() -> None:
    """The parent with most children that are measured, and the densest that covers another: 8, which always fires."""
    record = reconstruction_score(small(PARENT), ReconstructionScoreConfig(min_count=20))
    assert [focus["parent"] for focus in record.detail["focus"]] == [0, 8]
    record = reconstruction_score(small([-1] * 9), ReconstructionScoreConfig(min_count=20))
    assert [focus["parent"] for focus in record.detail["focus"]] == [8]
    record = reconstruction_score(small(PARENT), ReconstructionScoreConfig(min_count=1000))
    assert record.detail["focus"] == []


def test_a_parent_that_is_none() -> None:
    for parent in (9, -1):
        with pytest.raises(
            InputError, match=f"^reconstruction_score.parents: feature {parent}: expected 0 to 8$"
        ):
            reconstruction_score(small(PARENT), ReconstructionScoreConfig(parents=(0, parent)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_count": 0}, "min_count = 0: expected 1 or more"),
        ({"max_pairs": 0}, "max_pairs = 0: expected 1 or more"),
        ({"seed": -1}, r"seed = -1: expected 0 to 2\*\*63 - 1"),
        ({"children": 0}, "children = 0: expected 1 or more"),
        ({"min_coverage": 0.0}, "min_coverage = 0.0: expected more than 0, and 1 or less"),
        ({"min_coverage": 1.5}, "min_coverage = 1.5: expected more than 0, and 1 or less"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^reconstruction_score.{message}$"):
        ReconstructionScoreConfig(**changes)


# ---- a known tree

NOISE, ROWS = 0.4, 20_000


def known_world(seed: int = 0) -> World:
    """30 + 90 edges. Half of the parents add little where they fire: they cover their children, and hardly point there.

    Nothing lies between: an edge that is nearly a hit would be one by chance.
    """
    world = tree(seed, depth=3, branching=3, roots=10, p_root=0.1, p_child=0.25, magnitude_std=0.0)
    weak = torch.rand(world.m, generator=torch.Generator().manual_seed(seed)) < 0.5
    inner = world.forest.n_children > 0
    strength = torch.where(inner, torch.where(weak, 0.05, 0.7), 1.0)
    return replace(world, spec=replace(world.spec, mean=strength))


def true_directions(world: World) -> Tensor:
    """d*_c of every feature: where c fires, x is larger on average by `sum_i (P(i | c) - P(i)) mean_i d_i`.

    That is c's own vector and, as they always fire with it, those of its ancestors: the concept as the world has it.
    The noise is larger than what the rare features add to it, so that this is what tells c from the rest, too.
    """
    parent, p = world.forest.parent.tolist(), world.spec.p.tolist()

    def line(i: int) -> list[int]:
        return [i, *(line(parent[i]) if parent[i] >= 0 else [])]

    lines = [line(i) for i in range(world.m)]
    prior = np.array([np.prod([p[j] for j in above]) for above in lines])
    shift = np.zeros((world.m, world.m))
    for c, of_c in enumerate(lines):
        for i, of_i in enumerate(lines):
            if i in of_c:
                given_c = 1.0
            elif c in of_i:
                given_c = prior[i] / prior[c]
            else:  # siblings exclude each other, different trees know nothing of each other
                given_c = 0.0 if of_i[-1] == of_c[-1] else prior[i]
            shift[c, i] = given_c - prior[i]
    return F.normalize(torch.from_numpy(shift).float() * world.spec.mean.float() @ world.vectors)


@pytest.mark.parametrize("method", ["logistic", "lda", "mean_difference"])
def test_a_known_tree_scores_by_probes_as_by_its_true_directions(method: Any) -> None:
    """The ideal SAE: true vectors, true code. And a feature that covers everything and has to do with nothing."""
    world = known_world()
    sample = world.held_out(ROWS)
    dense = world.m
    generator = torch.Generator().manual_seed(2)
    everywhere = torch.rand(ROWS, generator=generator) < 0.9
    everywhere |= sample.code.active().any(1)
    decoder = torch.block_diag(
        world.vectors, torch.ones(1, 1)
    )  # the dense feature has a dimension of its own
    x = torch.cat([sample.x, everywhere[:, None].float()], 1)
    x += NOISE * torch.randn(x.shape, generator=generator)
    code = SparseCode(
        torch.cat([sample.code.values, everywhere[:, None].float()], 1),
        torch.cat([sample.code.ids, torch.full((ROWS, 1), dense)], 1),
    )
    forest = Forest(torch.cat([world.forest.parent, torch.tensor([-1])]), (dense + 1,), layered=False)
    probe = ProbeConfig(method=method, epochs=20, batch_size=512)
    seen = seen_of(x, code, decoder, forest, probe)
    record = reconstruction_score(seen, ReconstructionScoreConfig(min_count=50))

    parents, children = forest.edges
    true = F.pad(true_directions(world)[children], (0, 1))  # the dense one hardly depends on c
    truth = pair_nearness(true, decoder, parents, children)
    wanted, n = float(truth.hit.float().mean()), len(children)
    assert n == record.detail["edges"]["measured"] == 120
    assert 0.3 < wanted < 0.7
    error = (wanted * (1 - wanted) / n) ** 0.5
    hits, s_res = record.value["hits"], record.value["s_res"]
    assert hits is not None
    assert s_res is not None
    assert abs(hits - wanted) < 2 * error
    assert abs(s_res - float(truth.score.mean())) < 2 * float(truth.score.std()) / n**0.5
    differ = [
        (pair["rank_child"] <= 5 and pair["rank_parent"] <= 5) != hit
        for pair, hit in zip(record.detail["pairs"], truth.hit.tolist(), strict=True)
    ]
    assert sum(differ) < 0.1 * n
    assert record.value["coverage"] == 1
    assert float((seen.probes.directions(children) * true).sum(1).mean()) > 0.9

    # The control: all children hang from the feature that is always there.
    control = but(seen, forest=Forest(torch.where(forest.parent < 0, -1, dense), (dense + 1,), layered=False))
    spurious = reconstruction_score(control, ReconstructionScoreConfig(min_count=50, parents=(dense,)))
    assert spurious.value["coverage"] == 1
    assert spurious.value["hits"] == 0
    assert not bool(pair_nearness(true, decoder, torch.full_like(children, dense), children).hit.any())
    cos_parent = spurious.value["cos_parent"]
    assert cos_parent is not None
    assert cos_parent < 0.1  # a trained probe also uses what is always there as a bias, a negative one
    shown = spurious.detail["focus"][0]["children"]
    assert len(shown) == 10
    assert all(child["rank_parent"] > 5 and child["coverage"] == 1 for child in shown)
