"""The Forest against naive walks over its parents, and every forest that is none."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from saeforest import Forest, InputError
from saeforest.structure.forest import flat_forest

SIZES = (2, 3, 4)
# 0 and 1 are layer 0, 2 to 4 layer 1, 5 to 8 layer 2. Feature 7 skips a layer.
PARENT = [-1, -1, 0, 0, -1, 2, 3, 1, -1]


def random_forest(seed: int) -> tuple[list[int], tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (1 + seed % 5,), generator=generator).tolist()
    parent: list[int] = []
    for size in sizes:
        below = len(parent)
        parent += torch.randint(-1, below, (size,), generator=generator).tolist() if below else [-1] * size
    return parent, tuple(sizes)


def ancestors(parent: list[int], feature: int) -> list[int]:
    return [] if parent[feature] == -1 else [parent[feature], *ancestors(parent, parent[feature])]


@pytest.mark.parametrize("seed", range(20))
def test_every_walk_equals_a_naive_one(seed: int) -> None:
    parent, sizes = random_forest(seed)
    forest = Forest(torch.tensor(parent), sizes)
    check_walks(forest, parent, sizes)


def random_unlayered(seed: int) -> tuple[list[int], tuple[int, ...]]:
    """Any feature below any other: a random order of the features, and a parent before each."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (1 + seed % 4,), generator=generator).tolist()
    order = torch.randperm(sum(sizes), generator=generator).tolist()
    # Every other seed makes chains of it, as deep as the forest is large.
    steps = [
        i - 1 if seed % 2 else int(torch.randint(-1, i, (1,), generator=generator))
        for i in range(1, len(order))
    ]
    parent = [-1] * len(order)
    for i, above in enumerate([-1, *steps]):
        parent[order[i]] = order[above] if above >= 0 else -1
    return parent, tuple(sizes)


@pytest.mark.parametrize("seed", range(20))
def test_every_walk_of_an_unlayered_forest_equals_a_naive_one(seed: int) -> None:
    parent, sizes = random_unlayered(seed)
    forest = Forest(torch.tensor(parent), sizes, layered=False)
    check_walks(forest, parent, sizes)


def check_walks(forest: Forest, parent: list[int], sizes: tuple[int, ...]) -> None:
    everyone = range(len(parent))
    assert forest.d_sae == len(parent)
    assert forest.layer.tolist() == [layer for layer, size in enumerate(sizes) for _ in range(size)]
    assert forest.layer_starts == tuple(sum(sizes[:layer]) for layer in range(len(sizes)))
    assert forest.depth.tolist() == [len(ancestors(parent, f)) for f in everyone]
    assert forest.n_children.tolist() == [parent.count(f) for f in everyone]
    assert forest.roots == forest.children(-1) == [f for f in everyone if parent[f] == -1]
    assert forest.edges.T.tolist() == [[parent[f], f] for f in everyone if parent[f] != -1]
    for f in everyone:
        assert forest.children(f) == [c for c in everyone if parent[c] == f]
        assert forest.ancestors(f) == ancestors(parent, f)
        assert forest.path(f) == [*ancestors(parent, f)[::-1], f]
        below = list(forest.subtree(f))
        assert below[0] == f
        assert sorted(below) == [c for c in everyone if c == f or f in ancestors(parent, c)]
        assert all(below.index(parent[c]) < below.index(c) for c in below[1:])


def test_a_small_forest_by_hand() -> None:
    forest = Forest(torch.tensor(PARENT), SIZES)
    assert forest.path(5) == [0, 2, 5]
    assert forest.ancestors(5) == [2, 0]
    assert list(forest.subtree(0)) == [0, 2, 5, 3, 6]
    assert forest.depth.tolist() == [0, 0, 1, 1, 0, 2, 2, 1, 0]
    assert forest.edges.tolist() == [[0, 0, 2, 3, 1], [2, 3, 5, 6, 7]]


def test_a_flat_forest_has_no_edges() -> None:
    forest = flat_forest((3, 2))
    assert forest.roots == [0, 1, 2, 3, 4]
    assert forest.edges.shape == (2, 0)
    assert forest.depth.tolist() == [0] * 5
    assert list(forest.subtree(4)) == forest.path(4) == [4]
    assert forest.ancestors(4) == []


def test_what_the_caller_does_to_its_tensor_does_not_matter() -> None:
    given = torch.tensor(PARENT)
    forest = Forest(given, SIZES)
    given[2] = 1
    assert forest.parent.tolist() == PARENT
    assert forest.children(0) == [2, 3]
    # Nor what it does to the lists that it was given.
    forest.children(0).clear()
    forest.roots.clear()
    assert forest.children(0) == [2, 3]
    assert forest.roots == [0, 1, 4, 8]


def test_fields_cannot_be_set() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Forest(torch.tensor(PARENT), SIZES).parent = torch.tensor(PARENT)  # pyright: ignore[reportAttributeAccessIssue]


def test_parent_becomes_int64_on_the_cpu() -> None:
    forest = Forest(torch.tensor(PARENT, dtype=torch.int32), SIZES)
    assert forest.parent.dtype == torch.int64
    assert forest.parent.tolist() == PARENT


@pytest.mark.parametrize(
    ("feature", "parent"),
    [
        (1, 0),
        (0, 0),
        (0, 1),
        (2, 2),
        (2, 3),
        (3, 2),
        (2, 5),
        (8, 7),
        (8, 8),
        (5, 9),
        (5, 1000),
        (4, -2),
        (0, -9),
    ],
)
def test_an_invalid_parent_is_named(feature: int, parent: int) -> None:
    """The same layer, the feature itself, a later layer, out of range, below -1."""
    bad = list(PARENT)
    bad[feature] = parent
    with pytest.raises(InputError, match=rf"^parent\[{feature}\] = {parent}: expected -1 \(root\)") as error:
        Forest(torch.tensor(bad), SIZES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("parent", "named"),
    [
        ([0, -1, -1], 0),  # itself
        ([-1, 2, 1], 1),
        ([1, 2, 0], 0),
        ([-1, 2, 3, 4, 2], 2),  # 1 leads into the cycle but is not in it
        ([-1, 0, 1, 5, 3, 4], 3),
        ([6, 0, 1, 2, 3, 4, 5, -1], 0),
        ([3, 0, 1, 2, *range(3, 40)], 0),  # a long way to it
    ],
)
def test_a_feature_of_a_cycle_is_named(parent: list[int], named: int) -> None:
    with pytest.raises(InputError) as error:
        Forest(torch.tensor(parent), (len(parent),), layered=False)
    assert str(error.value) == (
        f"parent[{named}] = {parent[named]}: feature {named} is its own ancestor; "
        "expected parents that lead to the root (-1)"
    )


@pytest.mark.parametrize(("feature", "parent"), [(0, 9), (5, 1000), (4, -2)])
def test_an_unlayered_forest_has_no_parent_out_of_range(feature: int, parent: int) -> None:
    bad = list(PARENT)
    bad[feature] = parent
    with pytest.raises(InputError, match=rf"^parent\[{feature}\] = {parent}: .* another feature, 0 to 8$"):
        Forest(torch.tensor(bad), SIZES, layered=False)


def test_only_an_unlayered_forest_has_a_parent_in_a_later_layer() -> None:
    later = [5, -1, 0, 0, -1, -1, 3, 1, 7]
    forest = Forest(torch.tensor(later), SIZES, layered=False)
    assert forest.path(6) == [5, 0, 3, 6]
    assert forest.layer.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    with pytest.raises(
        InputError, match=r"^parent\[0\] = 5: expected -1 \(root\) or a feature of a layer before"
    ):
        Forest(torch.tensor(later), SIZES)


def test_depth_of_a_long_chain() -> None:
    n = 3000
    forest = Forest(torch.tensor([*range(1, n), -1]), (n,), layered=False)
    assert forest.depth.tolist() == list(range(n - 1, -1, -1))


@pytest.mark.parametrize("sizes", [(2, 3), (2, 3, 5), (2, 3, 4, 1), (9, 9)])
def test_sizes_must_add_up(sizes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=rf"add up to {sum(sizes)}, but parent has 9 entries"):
        Forest(torch.tensor(PARENT), sizes)


@pytest.mark.parametrize("sizes", [(), (0, 9), (9, 0), (10, -1)])
def test_sizes_must_be_positive(sizes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected at least one layer, each of 1 or more"):
        Forest(torch.tensor(PARENT), sizes)


@pytest.mark.parametrize("feature", [-2, 9, 100])
def test_a_feature_that_is_none_is_an_input_error(feature: int) -> None:
    forest = Forest(torch.tensor(PARENT), SIZES)
    for walk in (forest.children, forest.path, forest.ancestors, lambda f: list(forest.subtree(f))):
        with pytest.raises(InputError, match=f"feature {feature}"):
            walk(feature)


def test_the_root_has_children_but_no_path() -> None:
    forest = Forest(torch.tensor(PARENT), SIZES)
    for walk in (forest.path, forest.ancestors):
        with pytest.raises(InputError, match="feature -1: expected 0 to 8"):
            walk(-1)
