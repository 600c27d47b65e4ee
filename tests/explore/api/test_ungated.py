"""Where children would fire without the gate, and how siblings overlap: against loops over a made-up sample."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from explore_cases import World
from saeforest.activations import ActivationBatch
from saeforest.explore import Explorer
from saeforest.explore.answers.parts import Array
from saeforest.explore.api import Api
from saeforest.explore.api.overlap import hypergeometric, jaccard, null_overlap
from saeforest.explore.api.ungated import DetectorContexts
from saeforest.saes import TreeSAE


class Reader:
    """Reads the activations of a world, whatever windows are wanted."""

    def __init__(self, world: World) -> None:
        self._world = world

    def batches(self, tokens: object, windows: object) -> list[tuple[ActivationBatch, int]]:
        return [(ActivationBatch(self._world.x, self._world.rows), len(self._world.rows))]


def test_contexts_where_the_detector_is_on_and_the_parent_silent(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saeforest.explore.api.ungated.check_site", lambda sae, reader: None)
    world = World(TreeSAE, documents=7)
    api = Api(Explorer(world.index, world.sae.forest, tokenizer), sae=world.sae)
    detectors = DetectorContexts(world.sae, world.index, api.features.contexts, lambda: Reader(world))  # pyright: ignore[reportArgumentType]
    parent = max(range(world.sae.d_sae), key=lambda f: len(api.features.live_children(f)[0]))
    children, _ = api.features.live_children(parent)
    assert children
    assert detectors.known(parent) is None
    answer = detectors.answer(parent, children)
    assert detectors.known(parent) is answer
    assert answer.n_tokens == len(world.rows)
    for entry in answer.ungated:
        with torch.no_grad():
            on = world.sae.detect(world.x, torch.tensor([entry.child]))[:, 0].double()
        values = world.f[:, entry.child]
        # The histogram has 32 bins, so the level is known within one of them.
        bin_width = float(world.index.value_max[entry.child]) / 32
        median = float(np.median(values[values > 1e-3].numpy()))
        for context in entry.contexts:
            (place,) = (world.rows == context.row).nonzero().flatten().tolist()
            assert not world.fires[place, parent]
            assert context.value == pytest.approx(float(on[place]), abs=1e-3)
            assert context.value > median - 1.01 * bin_width
            assert context.values[context.at] == pytest.approx(context.value, abs=1e-3)
            assert all(value == 0 or value > median - 1.01 * bin_width for value in context.values)
    overlap = answer.overlap
    assert overlap.ids == tuple(children)
    fires = [world.fires[:, child] for child in children]
    expected, place = null_overlap(fires, world.fires[:, parent])
    assert overlap.matrix == Array.of(jaccard(fires))
    assert overlap.expected == Array.of(expected)
    assert overlap.place == Array.of(place)


def test_jaccard_by_hand() -> None:
    a, b, c = (torch.tensor(x, dtype=torch.bool) for x in ([1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]))
    assert jaccard([a, b, c]).tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]]
    assert jaccard([]).shape == (0, 0)


@pytest.mark.parametrize(("n", "a", "b"), [(6, 3, 2), (6, 5, 4), (5, 0, 3), (4, 4, 4), (0, 0, 0)])
def test_shared_tokens_of_random_sets_by_counting_all_sets(n: int, a: int, b: int) -> None:
    counts = np.zeros(min(a, b) + 1)
    for first in combinations(range(n), a):
        for second in combinations(range(n), b):
            counts[len({*first} & {*second})] += 1
    np.testing.assert_allclose(hypergeometric(n, a, b), counts / counts.sum(), atol=1e-12)


def test_overlap_by_chance_is_that_of_all_ways_to_place_the_firings() -> None:
    """Each child keeps its firings with and without the parent. Also of a feature that fires without its parent."""
    parent = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0], dtype=torch.bool)
    fires = [
        torch.tensor(row, dtype=torch.bool)
        for row in ([1, 1, 0, 0, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0, 1, 0], [0] * 8, [1, 0, 0, 1, 0, 0, 0, 0])
    ]
    expected, place = null_overlap(fires, parent)
    for i, j in combinations((0, 1, 3), 2):
        pairs = product(placements(fires[i], parent), placements(fires[j], parent))
        found = [len(first & second) / len(first | second) for first, second in pairs]
        seen = float(jaccard([fires[i], fires[j]])[0, 1])
        below = np.mean([(x < seen - 1e-6) + (abs(x - seen) < 1e-6) / 2 for x in found])
        assert float(expected[i, j]) == float(expected[j, i]) == pytest.approx(np.mean(found))
        assert float(place[i, j]) == float(place[j, i]) == pytest.approx(below)
    undefined = torch.eye(4, dtype=torch.bool)
    undefined[2], undefined[:, 2] = True, True
    assert torch.equal(expected.isnan(), undefined)
    assert torch.equal(place.isnan(), undefined)


def placements(on: torch.Tensor, parent: torch.Tensor) -> list[set[int]]:
    """All ways to place the firings of a child that keep how many are with its parent, and how many are without."""
    inside, outside = parent.nonzero().flatten().tolist(), (~parent).nonzero().flatten().tolist()
    return [
        {*first, *second}
        for first in combinations(inside, int((on & parent).sum()))
        for second in combinations(outside, int((on & ~parent).sum()))
    ]
