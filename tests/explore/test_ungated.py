"""Where children would fire without the gate, and how siblings overlap: against loops over a made-up sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from explore_cases import World
from saeforest.activations import ActivationBatch
from saeforest.explore import Explorer
from saeforest.explore.api import Api
from saeforest.explore.api.ungated import DetectorContexts, jaccard
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
    overlap = answer.overlap
    assert overlap.ids == tuple(children)


def test_jaccard_by_hand() -> None:
    a, b, c = (torch.tensor(x, dtype=torch.bool) for x in ([1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]))
    assert jaccard([a, b, c]).tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]]
    assert jaccard([]).shape == (0, 0)
