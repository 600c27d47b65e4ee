"""Comparing two SAEs: matches and kept edges against slow oracles, what chance gives, and the answers of the API."""

from __future__ import annotations

import base64
from itertools import permutations
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from explore_cases import SIZES, World, tiny_sae
from saeforest.errors import InputError
from saeforest.explore import Explorer
from saeforest.explore.api import Api, matching
from saeforest.explore.api.compare import Opened
from saeforest.explore.api.matching import Compared, alike, kept_by_chance, kept_edges, nearest, shared
from saeforest.explore.errors import NotFound, Unavailable
from saeforest.saes import TreeConfig, TreeSAE
from saeforest.structure.forest import ROOT, Forest

FOREST = Forest(torch.tensor([-1, -1, 0, 0, 1, -1, 2, 2, 3, 5]), (2, 4, 4))


def directions(n: int, d: int = 6, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_nearest_are_those_of_a_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_ROWS", 3)
    own, other = directions(8), directions(5, seed=1)
    ahead, back = nearest(own, other)
    for one, two, found in ((own, other, ahead), (other, own, back)):
        for row, cos, place in zip(one, *found, strict=True):
            every = [float(row.double() @ column.double()) for column in two]
            assert int(place) == int(np.argmax(every))
            assert float(cos) == pytest.approx(max(every), abs=1e-6)


def by_hand(own: list[int], other: list[int], match: list[int]) -> list[bool]:
    return [parent != ROOT and match[parent] == other[match[c]] for c, parent in enumerate(own)]


def shuffled_every_way(forest: Forest) -> list[list[int]]:
    """Every way to exchange parents within layers, each as often as there are permutations that bring it about."""
    ways = [forest.parent.tolist()]
    for layer in range(len(forest.layer_sizes)):
        children = [c for c in range(forest.d_sae) if forest.layer[c] == layer and forest.parent[c] != ROOT]
        new = []
        for way in ways:
            for order in permutations(children):
                changed = list(way)
                for child, source in zip(children, order, strict=True):
                    changed[child] = int(forest.parent[source])
                new.append(changed)
        ways = new
    return ways


def test_chance_is_the_mean_over_every_shuffle() -> None:
    match = torch.tensor([1, 0, 3, 2, 4, 4, 9, 8, 7, 6])
    ways = shuffled_every_way(FOREST)
    assert len(ways) == prod((6, 24))
    own = FOREST.parent.tolist()
    each = torch.tensor([by_hand(own, way, match.tolist()) for way in ways]).double()
    torch.testing.assert_close(kept_by_chance(FOREST.parent, FOREST, match).double(), each.mean(0))
    kept = kept_edges(FOREST.parent, FOREST.parent, match)
    assert kept.tolist() == by_hand(own, own, match.tolist())
    assert 0 < int(kept.sum()) < 7


def test_an_sae_shares_all_with_itself_renumbered_and_little_with_shuffled_parents() -> None:
    generator = torch.Generator().manual_seed(5)
    sizes = (4, 60, 200)
    middle = torch.randint(0, 4, (60,), generator=generator)
    low = torch.randint(4, 64, (200,), generator=generator)
    parent = torch.cat([torch.full((4,), ROOT), middle, low])
    rows = directions(264, 32)
    to = _within(sizes, generator)
    renumbered = torch.full_like(parent, ROOT)
    renumbered[to] = torch.where(parent == ROOT, ROOT, to[parent.clamp(min=0)])
    there = torch.empty_like(rows)
    there[to] = rows
    alive = torch.arange(264) != 100  # one feature never fires, nor is it a parent
    parent[parent == 100] = ROOT
    own = Compared(rows, Forest(parent, sizes), alive)
    other = Compared(there, Forest(renumbered, sizes), torch.ones(264, dtype=torch.bool))
    found, _ = nearest(rows, there)
    assert torch.equal(found.id, to)
    least, middle, most = shared(own, other, found, seed=0)
    assert (least.n_features, least.matched, most.matched, least.n_both) == (263, 1, 1, least.n_edges)
    assert least.n_edges == int((own.forest.parent != ROOT).sum()) - 1
    assert least.kept == 1
    assert 0.3 > least.matched_chance - 0.2 > middle.matched_chance  # in 32 dimensions
    assert middle.matched_chance < 0.05
    assert least.kept_chance.value is not None
    assert least.kept_chance.interval is not None
    bottom, top = least.kept_chance.interval
    assert bottom < least.kept_chance.value < top < 0.2
    # The null itself is no better than the null.
    lost = Compared(there, Forest(renumbered[_within(sizes, generator)], sizes), other.alive)
    kept = shared(own, lost, found, seed=0)[0].kept
    assert kept is not None
    assert bottom - 0.02 < kept < top + 0.02


def _within(sizes: tuple[int, ...], generator: torch.Generator) -> Tensor:
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    parts = [a + torch.randperm(size, generator=generator) for a, size in zip(starts, sizes, strict=True)]
    return torch.cat(parts)


def test_random_directions_vary_as_the_rows_do() -> None:
    flat = torch.cat([directions(500, 3), torch.zeros(500, 13)], dim=1)
    drawn = alike(flat, 4000, torch.Generator().manual_seed(0))
    assert float(drawn[:, 3:].abs().max()) < 0.02
    torch.testing.assert_close(drawn.T @ drawn / 4000, flat.T @ flat / 500, atol=0.03, rtol=0)
    few = alike(flat[:2], 10, torch.Generator().manual_seed(0))  # fewer rows than dimensions
    assert torch.isfinite(few).all()


@pytest.fixture(scope="module")
def api(tokenizer: PreTrainedTokenizerFast) -> Api:
    world = World(TreeSAE, documents=7)
    second = World(TreeSAE, documents=7)
    with torch.no_grad():
        second.sae.W_dec.copy_(second.sae.W_dec.flip(0))
    indexed = Api(Explorer(second.index, second.sae.forest, tokenizer), sae=second.sae)
    wide = TreeSAE(TreeConfig(layer_sizes=SIZES, k_per_layer=(2, 2, 2)), 5, seed=0)
    others = {
        "second": lambda: Opened(second.sae, second.sae.forest, indexed),
        "bare": lambda: Opened(
            tiny_sae(), tiny_sae().forest, missing="no index; make it with `saeforest index x`"
        ),
        "wide": lambda: Opened(wide, wide.forest),
    }
    return Api(Explorer(world.index, world.sae.forest, tokenizer), sae=world.sae, others=others)


def numbers(value: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["data"]), value["dtype"]).reshape(value["shape"])


def test_the_answer_matches_both_ways_and_knows_the_other_forest(api: Api) -> None:
    assert api.get("compare")["runs"] == ["second", "bare", "wide"]
    answer = api.get("compare", {"other": "second"})
    back = np.arange(30)[::-1].copy()
    assert numbers(answer["here"]["match"]).tolist() == back.tolist()
    assert numbers(answer["there"]["match"]).tolist() == back.tolist()
    assert [pair["other_id"] for pair in answer["pairs"]] == back.tolist()
    parent = numbers(answer["forest"]["parent"])
    kept = numbers(answer["here"]["kept"]).astype(bool)
    own = api.explorer.forest.parent.tolist()
    assert kept.tolist() == by_hand(own, parent.tolist(), back.tolist())
    alive = api.explorer.index.n_fired > 0
    first = answer["here"]["measures"][0]
    assert (first["threshold"], first["n_features"], first["matched"]) == (0.5, int(alive.sum()), 1)
    labels = answer["forest"]["labels"]
    assert len(labels) > 10
    assert [pair["other_label"] for pair in answer["pairs"]] == [labels.get(str(f)) for f in back]
    feature = api.get("compare/feature", {"other": "second", "id": "3"})
    assert feature["label"] == labels["3"]
    assert feature["top"]


def test_without_an_index_there_are_no_texts(api: Api) -> None:
    answer = api.get("compare", {"other": "bare"})
    assert (answer["forest"]["labels"], answer["forest"]["density"]) == ({}, None)
    assert "saeforest index" in answer["forest"]["missing"]
    assert answer["there"]["measures"][0]["n_features"] == 30
    assert answer["here"]["measures"][0]["kept"] == 1
    with pytest.raises(Unavailable, match="saeforest index"):
        api.get("compare/feature", {"other": "bare", "id": "3"})


@pytest.mark.parametrize(
    ("path", "query", "error", "said"),
    [
        ("compare", {"other": "third"}, NotFound, "--compare"),
        ("compare/feature", {"id": "3"}, NotFound, "--compare"),
        ("compare/feature", {"other": "second"}, NotFound, "expected a number"),
        ("compare/feature", {"other": "second", "id": "30"}, NotFound, "0 to 29"),
        ("compare", {"other": "wide"}, InputError, "same activations"),
    ],
)
def test_bad_questions_are_answered_in_a_line(
    api: Api, path: str, query: dict[str, str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        api.get(path, query)
