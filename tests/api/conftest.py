"""A tree and a flat SAE, trained on a tensor."""

from __future__ import annotations

import pytest

import saeforest
from api_cases import SMALL, activations
from saeforest import TrainedRun


@pytest.fixture(scope="module")
def run() -> TrainedRun:
    return saeforest.train(activations(), **SMALL)


@pytest.fixture(scope="module")
def flat() -> TrainedRun:
    return saeforest.train(activations(), "topk", layer_sizes=16, k_per_layer=3, steps=6)
