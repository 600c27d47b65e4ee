"""The rule by which families are chosen, on a forest made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from explore_cases import (
    FOREST,
    ROOTS,
    hand_index,
    made_index,
    parents,
    text_tokens,
)
from saeforest.explore import telling_families
from saeforest.structure.forest import Forest


def test_families_are_ordered_by_score_without_relatives() -> None:
    # 3 lies below 0, which has more children; 1 and 2 are equal, the lower id first.
    assert parents(hand_index()) == [0, 1, 2]
    assert parents(hand_index(), n=2) == [0, 1]
    families = telling_families(hand_index(), FOREST)
    assert (families.n_edges, families.n_judged) == (9, 9)
    assert families.shown[0].score == pytest.approx(1.5 * math.log2(1000 / 30))


def test_an_ancestor_of_a_better_family_is_skipped() -> None:
    cosines = [0.5] * 10 + [0.9, 0.9]
    assert parents(hand_index(cos_child=cosines, cos_parent=cosines)) == [3, 1, 2]


def test_dense_parents_are_no_families() -> None:
    assert parents(hand_index(n_fired=[51] + [30] * 11)) == [1, 2, 3]


def test_two_edges_must_pass() -> None:
    assert parents(hand_index(rank_parent=[0] * 3 + [2, 2, 2, 6, 2, 2, 2, 2, 2])) == [0, 2]
    assert parents(hand_index(rank_child=[1] * 6 + [6] + [1] * 5)) == [0, 2]


def test_children_that_all_fire_on_one_token_are_no_family() -> None:
    rows = [[i] for i in range(12)]
    rows[7] = [6 + 26]  # the letter of row 6 again
    assert parents(hand_index(top_row=rows)) == [0, 2]


def test_a_child_that_fires_on_its_parents_token_adds_nothing() -> None:
    rows = [[i] for i in range(12)]
    rows[7] = [1 + 26]  # the letter of row 1, its parent's
    assert parents(hand_index(top_row=rows)) == [0, 2]


def test_a_child_whose_token_tells_nothing_adds_nothing() -> None:
    letter_of_row_7 = ord("h")
    families = telling_families(hand_index(), FOREST, readable=lambda token: token != letter_of_row_7)
    assert [family.parent for family in families.shown] == [0, 2]


def test_a_child_that_fires_on_many_tokens_counts_less() -> None:
    rows = [[i, -1, -1] for i in range(12)]
    rows[7] = [7, 20, 20 + 26]  # two different letters
    index = made_index(text_tokens("abcdefghijklmnopqrstuvwxyz" * 4), rows, **ROOTS)
    by_parent = {f.parent: f.score for f in telling_families(index, FOREST).shown}
    assert by_parent[1] == pytest.approx((0.5 + 0.5 / 2**0.25) * math.log2(1000 / 30))
    assert by_parent[2] == pytest.approx(1.0 * math.log2(1000 / 30))


def test_the_best_three_children_count() -> None:
    forest = Forest(torch.tensor([-1, *[0] * 7]), (1, 7))
    index = made_index(
        text_tokens("abcdefghijklmnopqrstuvwxyz"),
        [[i] for i in range(8)],
        n_fired=[40, 30, 31, 32, 33, 34, 35, 5],
        rank_parent=[0, 1, 1, 1, 1, 1, 1, 0],
        cos_parent=[0.0, 0.3, 0.1, 0.1, 0.4, 0.1, 0.2, 0.0],
    )
    (family,) = telling_families(index, forest).shown
    assert family.children == (6, 5, 4, 3, 2, 1)
    assert family.score == pytest.approx(0.9 * math.log2(1000 / 40))


def test_rare_parents_come_first() -> None:
    # The best three of 0's children weigh more than the two of 1 and 2, but not if they are so much rarer.
    assert parents(hand_index(n_fired=[50, 5, 40] + [30] * 9)) == [1, 0, 2]


def test_a_flat_forest_has_no_families() -> None:
    index = made_index(text_tokens("ab"), [[0], [1]], rank_parent=[0, 0])
    families = telling_families(index, Forest(torch.tensor([-1, -1]), (2,)))
    assert families.shown == ()
    assert families.n_edges == 0


def test_a_parent_that_never_fired_is_no_family() -> None:
    """Where children fire without their parents, as in an inferred forest, their edges are judged all the same."""
    assert parents(hand_index(n_fired=[0] + [30] * 11)) == [1, 2, 3]
