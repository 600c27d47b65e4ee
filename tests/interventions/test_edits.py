"""Edits of codes against what they mean: value by value, and feature by feature up the tree."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from saeforest.errors import InputError
from saeforest.interventions import Edit, ablate, add, clamp, edited, scale, set_to
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import Forest

# Two trees: 0 > 2, 3; 2 > 5; 5 > 7; and 1 > 4 > 6.
FOREST = Forest(torch.tensor([-1, -1, 0, 0, 1, 2, 4, 5]), (2, 3, 2, 1))
D_SAE = FOREST.d_sae


def code_of(rows: Sequence[dict[int, float]], slots: int = 6) -> SparseCode:
    """A code with unused slots, which hold feature 0 and the value 0, between the used ones."""
    values, ids = torch.zeros(2, len(rows), slots, dtype=torch.float64)
    for i, row in enumerate(rows):
        for place, (feature, value) in enumerate(row.items()):
            ids[i, slots - 1 - place], values[i, slots - 1 - place] = feature, value
    return SparseCode(values, ids.long())


def by_hand(row: dict[int, float], edits: Sequence[Edit], forest: Forest | None) -> list[float]:
    """The dense code after edits, one feature at a time."""
    dense = [row.get(f, 0.0) for f in range(D_SAE)]
    for edit in edits:
        silenced = []
        for f in edit.features:
            v = dense[f]
            if v == 0 and edit.where_active:
                continue
            new = min(max(edit.factor * v + edit.plus, edit.low), edit.high)
            if v != 0 and new == 0:
                silenced.append(f)
            dense[f] = new
        if forest is not None:
            for f in silenced:
                for below in forest.subtree(f):
                    # What this edit itself made active cannot be: it silences what it is given.
                    dense[below] = 0.0
    return dense


def random_row(rng: random.Random) -> dict[int, float]:
    return {f: rng.choice([0.25, 1.0, 2.0, 5.0]) for f in rng.sample(range(D_SAE), rng.randint(0, 5))}


def random_edit(rng: random.Random) -> Edit:
    features, (a, b) = rng.sample(range(D_SAE), rng.randint(1, 4)), rng.choices([-1.5, 0.0, 0.5, 3.0], k=2)
    where_active = rng.random() < 0.5
    return rng.choice(
        [
            scale(features, a),
            set_to(features, a, where_active=where_active),
            add(features, a, where_active=where_active),
            clamp(features, min(a, b), max(a, b), where_active=where_active),
            ablate(features),
        ]
    )


@pytest.mark.parametrize("closed", [True, False])
def test_edits_against_a_loop(closed: bool) -> None:
    rng = random.Random(0)
    for _ in range(150):
        rows = [random_row(rng) for _ in range(3)]
        edits = [random_edit(rng) for _ in range(rng.randint(1, 3))]
        check(rows, edits, closed)


def check(rows: list[dict[int, float]], edits: list[Edit], closed: bool) -> None:
    code = code_of(rows)
    found = edited(edits, FOREST.parent if closed else None)(code)
    expected = torch.tensor(
        [by_hand(row, edits, FOREST if closed else None) for row in rows], dtype=torch.float64
    )
    torch.testing.assert_close(found.dense(D_SAE), expected, rtol=0, atol=0)
    assert torch.equal(found.ids[:, : code.ids.shape[1]], code.ids)
    # No feature has two slots.
    for values, ids in zip(found.values, found.ids, strict=True):
        used = ids[values != 0].tolist()
        assert len(used) == len(set(used))


def dense(
    edits: Edit | list[Edit], row: dict[int, float], parent: Tensor | None = FOREST.parent
) -> dict[int, float]:
    given = [edits] if isinstance(edits, Edit) else edits
    found = edited(given, parent)(code_of([row])).dense(D_SAE)[0]
    return {i: float(v) for i, v in enumerate(found) if v}


def test_a_silenced_parent_silences_all_below_it() -> None:
    row = {0: 2.0, 2: 1.0, 5: 1.0, 7: 1.0, 1: 3.0, 4: 1.0}
    assert dense(ablate(0), row) == {1: 3.0, 4: 1.0}
    assert dense(ablate(2), row) == {0: 2.0, 1: 3.0, 4: 1.0}
    assert dense(scale(2, 0.0), row) == dense(clamp(2, high=0.0), row) == dense(ablate(2), row)
    # Without a gate each feature is on its own.
    assert dense(ablate(0), row, None) == {f: v for f, v in row.items() if f != 0}
    # A parent of less value, or of a value below zero, is not silent.
    assert dense(scale(0, -0.5), row) == row | {0: -1.0}


def test_a_child_set_while_its_parent_is_silent_stays_alone() -> None:
    assert dense(set_to(5, 4.0), {1: 3.0}) == {1: 3.0, 5: 4.0}
    # With its ancestors it has the code that the SAE would have given.
    assert dense(set_to(FOREST.path(5), 4.0), {1: 3.0}) == {1: 3.0, 0: 4.0, 2: 4.0, 5: 4.0}


def test_the_order_of_edits_decides() -> None:
    row = {0: 2.0, 2: 1.0}
    assert dense([ablate(0), set_to(2, 9.0)], row) == {2: 9.0}
    assert dense([set_to(2, 9.0), ablate(0)], row) == {}
    # A parent that was silent before is not silenced, so its child stays.
    assert dense([set_to(2, 9.0), ablate(0)], {1: 1.0}) == {1: 1.0, 2: 9.0}


def test_selections_of_a_forest() -> None:
    assert FOREST.siblings(2) == [3]
    assert FOREST.siblings(0) == [1]
    assert FOREST.siblings(6) == []
    assert list(FOREST.in_layer(1)) == [2, 3, 4]
    assert [f for layer in range(4) for f in FOREST.in_layer(layer)] == list(range(D_SAE))
    for select in (lambda: FOREST.in_layer(4), lambda: FOREST.in_layer(-1), lambda: FOREST.siblings(8)):
        with pytest.raises(InputError):
            select()
    assert ablate(FOREST.subtree(0)).features == (0, 2, 3, 5, 7)
    assert ablate(torch.tensor([3, 1, 3])).features == ablate([1, 3]).features == (1, 3)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: ablate([]), "no features"),
        (lambda: ablate(-1), "feature -1"),
        (lambda: scale(1, math.nan), "factor = nan"),
        (lambda: add(1, math.inf), "plus = inf"),
        (lambda: clamp(1, 2.0, 1.0), "low = 2.0, high = 1.0"),
    ],
)
def test_what_edits_refuse(make: object, part: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=part):
        make()


def test_as_json() -> None:
    assert scale(3, 2).to_json() == {"features": [3], "factor": 2.0, "plus": 0.0, "where_active": False}
    assert clamp(3, 0, 2).to_json()["high"] == 2
