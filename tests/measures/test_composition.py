"""Feature composition against slow float64 arithmetic and known decoders."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles import absorption as oracle
from saeforest.measures.composition import CompositionConfig, composition, max_cosines, random_floor
from saeforest.measures.subject import Subject
from saeforest.saes import SAE, TreeConfig, TreeSAE
from saeforest.sparse_code import SparseCode
from saeforest.structure.pairs import PairStatistics
from subject_cases import given

# The package has a function of the same name.
module = sys.modules[composition.__module__]


def an_sae(rows: Tensor, layer_sizes: tuple[int, ...]) -> SAE:
    sae = TreeSAE(
        TreeConfig(layer_sizes=layer_sizes, k_per_layer=tuple(1 for _ in layer_sizes)), rows.shape[1]
    )
    sae.decoder.data = rows
    return sae


def subject_of(sae: SAE, fired: list[list[int]]) -> Subject:
    """`fired`: the features active on each token of the text that was seen."""
    pairs = PairStatistics(sae.d_sae)
    for features in fired:
        ids = torch.tensor([features or [0]])
        pairs.add(SparseCode(torch.full(ids.shape, float(bool(features))), ids))
    return given(sae, {"model": "m"}, firings=pairs)


def random_rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


# docs/spec/test-vectors.md#composition; the rows' lengths must not matter
VECTOR = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.3, 0.4]])


def test_known_decoder() -> None:
    torch.testing.assert_close(max_cosines(VECTOR), torch.tensor([0.6, 0.8, 0.8]).double())
    record = composition(subject_of(an_sae(VECTOR, (3,)), []), CompositionConfig())
    assert record.value["mean"] == pytest.approx(0.7333, abs=5e-5)
    assert record.value["median"] == pytest.approx(0.8)
    assert record.settings["model"] == "m"
    assert record.tokens == 0


def test_opposite_is_not_near() -> None:
    assert max_cosines(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 1.0]])).tolist() == pytest.approx(
        [-math.sqrt(0.5), math.sqrt(0.5), math.sqrt(0.5)]
    )


@pytest.mark.parametrize("entries", [1, 50, 1 << 20])
def test_against_the_oracle(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    monkeypatch.setattr(module, "_BLOCK_ENTRIES", entries)
    rows = random_rows(23, 6) * torch.linspace(0.5, 3, 23)[:, None]
    expected = oracle.max_cosines(rows.double().numpy())
    np.testing.assert_allclose(max_cosines(rows).numpy(), expected, atol=1e-6)


def test_groups_and_intervals() -> None:
    rows = random_rows(20, 6, seed=1)
    cosines = np.array(oracle.max_cosines(rows.double().numpy()))
    fired = [[0, 7], [7, 8], [19]]
    record = composition(subject_of(an_sae(rows, (4, 16)), fired), CompositionConfig())
    expected = {
        "mean": cosines.mean(),
        "alive": cosines[[0, 7, 8, 19]].mean(),
        "by_layer_0": cosines[:4].mean(),
        "by_layer_1": cosines[4:].mean(),
        "median": np.median(cosines),
        "random_floor": random_floor(20, 6),
    }
    assert record.value == pytest.approx(expected, abs=1e-6)
    assert record.null == {}
    assert record.tokens == 3
    for name in expected.keys() - {"random_floor"}:
        interval = record.interval[name]
        assert interval is not None
        assert interval[0] <= expected[name] + 1e-6
        assert interval[1] >= expected[name] - 1e-6
        assert interval[0] < interval[1]


@pytest.mark.parametrize("n", [5, 6])
def test_median_of_a_resample(n: int) -> None:
    cosines = np.random.default_rng(n).random(n)
    counts = np.random.default_rng(0).multinomial(n, np.ones(n) / n, size=40).astype(np.float64)
    found = module._means(cosines, {}, counts)["median"]
    expected = [np.median(np.repeat(cosines, row.astype(int))) for row in counts]
    np.testing.assert_allclose(found, expected)


def test_random_floor_is_what_random_directions_have() -> None:
    """The usual approximation is a little above it."""
    n, d = 200, 16
    sampled = [float(max_cosines(random_rows(n, d, seed)).mean()) for seed in range(20)]
    assert random_floor(n, d) == pytest.approx(np.mean(sampled), abs=0.004)
    large = random_floor(24_576, 768)
    assert 0.14 < large < math.sqrt(2 * math.log(24_576) / 768)


def test_undefined_values_say_why() -> None:
    silent = composition(subject_of(an_sae(random_rows(4, 3), (4,)), [[], []]), CompositionConfig())
    assert silent.null == {"alive": "no feature fired on the measured text"}
    single = composition(subject_of(an_sae(torch.ones(1, 3), (1,)), []), CompositionConfig())
    assert set(single.value.values()) == {None}
    narrow = composition(subject_of(an_sae(torch.ones(3, 1), (3,)), [[0]]), CompositionConfig())
    assert list(narrow.null) == ["random_floor"]
    assert narrow.value["mean"] == 1
