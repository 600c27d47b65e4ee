"""Settings of flat SAEs that cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from saeforest import InputError
from saeforest.saes import (
    AuxConfig,
    BatchTopKConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    ThresholdConfig,
    TopKConfig,
)

# A user's mistakes

BAD: dict[str, tuple[Callable[[], object], str]] = {
    "k above the layer": (lambda: TopKConfig((4,), (5,)), "expected 1 to 4"),
    "k of 0": (lambda: BatchTopKConfig((4,), (0,)), "expected 1 to 4"),
    "two layers, topk": (lambda: TopKConfig((4, 4), (2, 2)), "one layer; give one size, such as 8"),
    "two layers, batchtopk": (
        lambda: BatchTopKConfig((4, 4), (2, 2)),
        "an SAE of architecture batchtopk has one layer",
    ),
    "two layers, matching pursuit": (
        lambda: MatchingPursuitConfig((4, 4), (2, 2)),
        "an SAE of architecture matching_pursuit has one layer",
    ),
    "two k": (lambda: TopKConfig((4,), (2, 2)), "one k for each layer"),
    "no layers": (lambda: TopKConfig((), ()), "at least one layer"),
    "an empty layer": (lambda: MatryoshkaConfig((4, 0), (2,)), "at least one layer, each of 1 or more"),
    "matryoshka, no layers": (lambda: MatryoshkaConfig((), (2,)), "at least one layer"),
    "matryoshka, two k": (lambda: MatryoshkaConfig((4, 4), (2, 3)), "give one number, such as 5"),
    "matryoshka, k above all layers": (lambda: MatryoshkaConfig((4, 4), (9,)), "expected 1 to 8"),
    "matryoshka, weights": (
        lambda: MatryoshkaConfig((4, 4), (2,), prefix_weights=(1.0,)),
        "expected 2 numbers, one for each layer",
    ),
    "threshold start": (lambda: ThresholdConfig(start=0), "step 1 or later"),
    "threshold momentum 1": (lambda: ThresholdConfig(momentum=1.0), "less than 1"),
    "threshold momentum below 0": (lambda: ThresholdConfig(momentum=-0.1), "0 or more"),
    "threshold momentum NaN": (lambda: ThresholdConfig(momentum=math.nan), "less than 1"),
    "aux k": (lambda: AuxConfig(k=0), "1 or more"),
    "aux coefficient": (lambda: AuxConfig(coefficient=-0.1), "0 or more"),
    "residual tolerance": (lambda: MatchingPursuitConfig((4,), (2,), residual_tolerance=-1.0), "0 or more"),
    "matching pursuit, k": (lambda: MatchingPursuitConfig((4,), (5,)), "expected 1 to 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configuration(name: str) -> None:
    make, words = BAD[name]
    with pytest.raises(InputError, match=words) as error:
        make()
    assert "\n" not in str(error.value)
    assert "sae." in str(error.value), "it names the key"
