"""What can be asked of an index and its forest: cards against the tensors that they are made of, and search."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from explore_cases import FOREST, ROOTS, World, hand_index, made_index, text_tokens
from saeforest.errors import InputError
from saeforest.explore import Explorer
from saeforest.explore.queries.search import words
from saeforest.structure.forest import ROOT, Forest


@pytest.fixture
def explorer(world: World, tokenizer: PreTrainedTokenizerFast) -> Explorer:
    return Explorer(world.index, world.sae.forest, tokenizer)


def by_hand(tokenizer: PreTrainedTokenizerFast, **columns: list) -> Explorer:
    return Explorer(hand_index(**columns), FOREST, tokenizer)


# -- cards


def test_an_overview_counts_the_whole(world: World, explorer: Explorer) -> None:
    card = explorer.overview()
    assert (card.n_features, card.n_tokens, card.layer_sizes) == (30, len(world.rows), (6, 10, 14))
    assert card.n_alive == int((world.fires.sum(0) > 0).sum())
    assert card.n_edges == int((world.sae.parent != ROOT).sum())
    assert card.n_judged == int(world.index.measured.sum())
    places = world.index.column_places.values()
    assert card.n_placed == sum(any(p[c].isfinite() for p in places) for c in range(world.sae.d_sae)) > 0


def test_a_feature_says_what_was_measured(world: World, explorer: Explorer) -> None:
    for feature in range(world.sae.d_sae):
        card, fires = explorer.feature(feature), world.fires[:, feature]
        assert (card.id, card.n_fired, card.alive) == (feature, int(fires.sum()), bool(fires.any()))
        assert card.density == pytest.approx(float(fires.double().mean()))
        assert card.path[-1] == feature
        assert card.depth == len(card.path) - 1
        assert card.layer == (0 if feature < 6 else 1 if feature < 16 else 2)
        if card.alive:
            active = world.f[fires, feature]
            assert card.value_max == pytest.approx(float(active.max()))
            assert card.value_mean == pytest.approx(float(active.mean()))
        else:
            assert (card.value_max, card.value_mean, card.contexts) == (None, None, ())
        children = (world.sae.parent == feature).nonzero().flatten().tolist()
        assert {edge.child for edge in card.children} == {c for c in children if world.fires[:, c].any()}
        assert len(card.children) + card.n_silent == len(children)
        counts = [edge.n_child for edge in card.children]
        assert counts == sorted(counts, reverse=True)
        parent = int(world.sae.parent[feature])
        assert card.edge == (None if parent == ROOT else explorer.edge(parent, feature))


def test_contexts_are_the_strongest_activations(world: World, explorer: Explorer) -> None:
    flat = world.tokens.ids.flatten()
    at_row = {row: i for i, row in enumerate(world.rows.tolist())}
    for feature in range(world.sae.d_sae):
        contexts = explorer.feature(feature).contexts
        values = [context.value for context in contexts]
        assert values == sorted(values, reverse=True)
        for context in contexts:
            assert context.value == pytest.approx(float(world.f[at_row[context.row], feature]))
            assert context.share == pytest.approx(context.value / float(world.f[:, feature].max()))
            document = int(world.tokens.document_of(torch.tensor([context.row])))
            assert context.document == world.tokens.names[document]
            if 33 <= (byte := int(flat[context.row])) < 127:
                assert context.passage.token == chr(byte)


def test_an_edge_says_how_often_the_two_fire_together(world: World, explorer: Explorer) -> None:
    for child in range(world.sae.d_sae):
        if (parent := int(world.sae.parent[child])) == ROOT:
            continue
        edge, fires = explorer.edge(parent, child), world.fires
        both = int((fires[:, parent] & fires[:, child]).sum())
        assert (edge.n_parent, edge.n_child) == (int(fires[:, parent].sum()), int(fires[:, child].sum()))
        assert edge.n_both == both
        for rate, n, name in (
            (edge.p_child, edge.n_parent, "p_child"),
            (edge.p_parent, edge.n_child, "p_parent"),
        ):
            assert rate == (pytest.approx(both / n) if n else None)
            assert (rate is None) == (name in edge.null)
        if edge.s_res is None:
            assert set(edge.null) >= {
                "s_res",
                "cos_child",
                "cos_parent",
                "rank_child",
                "rank_parent",
                "passes",
            }
            assert "a direction needs 20" in edge.null["s_res"]
        else:
            assert edge.cos_child is not None
            assert edge.cos_parent is not None
            assert edge.s_res == min(edge.cos_child, edge.cos_parent)
            assert edge.passes == bool(world.index.passes[child])


def test_families_are_cards_of_the_rule(tokenizer: PreTrainedTokenizerFast) -> None:
    ranks = [0] * 3 + [2, 2, 6, 2, 2, 2, 2, 2, 2]
    first, *others = by_hand(tokenizer, rank_parent=ranks).families(3)
    assert (first.parent.id, first.passing) == (0, (3, 4))
    assert [edge.child for edge in first.children] == [3, 4, 5]  # those that pass come first
    assert [edge.passes for edge in first.children] == [True, True, False]
    assert [family.parent.id for family in others] == [1, 2]
    assert first.score >= others[0].score >= others[1].score
    assert len(by_hand(tokenizer, **ROOTS).families(1)) == 1


def test_cards_are_data(explorer: Explorer, tokenizer: PreTrainedTokenizerFast) -> None:
    def plain(data: Any) -> None:
        if isinstance(data, dict):
            assert all(type(key) is str for key in data)
            for value in data.values():
                plain(value)
        elif isinstance(data, tuple | list):
            for value in data:
                plain(value)
        else:
            assert data is None or type(data) in (bool, int, float, str)

    edges = [edge for f in range(30) for edge in explorer.feature(f).children]
    families = by_hand(tokenizer, **ROOTS).families(2)
    found = by_hand(tokenizer).search("a")
    cards = [explorer.overview(), *map(explorer.feature, range(30)), *edges, *families, *found]
    assert len({type(card) for card in cards}) == 5
    for card in cards:
        data = card.to_dict()
        plain(data)
        assert json.loads(json.dumps(data, allow_nan=False)).keys() == data.keys()


def test_text_is_without_markup(tokenizer: PreTrainedTokenizerFast) -> None:
    index = made_index(text_tokens("<b>[bold]x[/]</b>"), [[9]])
    (context,) = Explorer(index, Forest(torch.tensor([-1]), (1,)), tokenizer).feature(0).contexts
    assert context.passage.text == "<b>[bold]x[/]</b>"


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda e: e.feature(12), "feature 12: expected 0 to 11"),
        (lambda e: e.feature(-1), "feature -1: expected 0 to 11"),
        (lambda e: e.edge(0, 12), "feature 12: expected 0 to 11"),
        (lambda e: e.edge(1, 3), "features 1 and 3: the forest has no such edge"),
        (lambda e: e.edge(-1, 0), "features -1 and 0: the forest has no such edge"),
        (lambda e: e.search(" "), "expected some text"),
    ],
)
def test_what_there_is_not_is_one_line(tokenizer: PreTrainedTokenizerFast, ask: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        ask(by_hand(tokenizer))


def test_an_index_of_another_size_is_noticed(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="the index has 12 features, the forest 1"):
        Explorer(hand_index(), Forest(torch.tensor([-1]), (1,)), tokenizer)


# -- search


TEXT = "The cat sat. A dog, the cat! More cattle"


def animals(tokenizer: PreTrainedTokenizerFast, labels: dict[int, str] | None = None) -> Explorer:
    """Feature 0 fires on the t of cat twice, 1 on one t and on a g, 2 on the l of cattle, 3 never."""
    rows = [
        [TEXT.index("t sat"), TEXT.index("t!")],
        [TEXT.index("t!"), TEXT.index("g,")],
        [TEXT.index("le"), -1],
    ]
    index = made_index(text_tokens(TEXT, "dogs are elsewhere"), [*rows, [-1, -1]], n_fired=[2, 2, 1, 0])
    return Explorer(index, Forest(torch.tensor([-1] * 4), (4,)), tokenizer, labels)


def test_search_finds_tokens_then_the_text_around(tokenizer: PreTrainedTokenizerFast) -> None:
    explorer = animals(tokenizer)
    found = explorer.search("T")  # capitals do not matter
    assert [(r.feature, r.matched) for r in found] == [(0, "token"), (1, "token"), (2, "text")]
    assert [r.context.passage.token for r in found if r.context] == ["t", "t", "l"]
    assert [(r.feature, r.matched) for r in explorer.search("g")] == [
        (1, "token"), (0, "text"), (2, "text"),
    ]  # fmt: skip
    (first, *_) = explorer.search("the cat!")
    assert (first.query, first.matched) == ("the cat!", "text")
    assert first.context is not None
    assert "the cat!" in first.context.passage.text


def test_search_does_not_look_into_another_document(tokenizer: PreTrainedTokenizerFast) -> None:
    """It stands in the same window, but in no passage."""
    assert animals(tokenizer).search("elsewhere") == []
    assert animals(tokenizer).search("nowhere at all") == []


def test_search_finds_labels_first(tokenizer: PreTrainedTokenizerFast) -> None:
    explorer = animals(tokenizer, {3: "Pets that bark", 1: "letters"})
    found = explorer.search("bark")
    assert [(r.feature, r.matched, r.label, r.context) for r in found] == [
        (3, "label", "Pets that bark", None)
    ]
    assert explorer.feature(1).label == "letters"
    assert [(r.feature, r.matched) for r in explorer.search("t")][:3] == [
        (1, "label"), (3, "label"), (0, "token"),
    ]  # fmt: skip


def test_given_labels_come_first_then_those_of_features_that_fire_on_it_most(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    labels = dict.fromkeys(range(4), "Little")
    hits = animals(tokenizer).searching.hits(words("l")[0], labels, places=("label",), given={3})
    assert [feature for _, feature, _ in hits] == [3, 2, 0, 1]


def test_search_ends_where_enough_is_found(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(animals(tokenizer).search("t", n=2)) == 2
    assert animals(tokenizer).search("t", n=0) == []


def test_every_token_is_found_in_an_index(world: World, explorer: Explorer) -> None:
    for feature in range(world.sae.d_sae):
        for context in explorer.feature(feature).contexts:
            byte = int(world.tokens.ids.flatten()[context.row])
            if 33 <= byte < 127:
                found = explorer.search(chr(byte), n=world.sae.d_sae)
                assert ("token", feature) in {(r.matched, r.feature) for r in found}
