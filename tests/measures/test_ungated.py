"""Coverage without the gate (docs/spec/hierarchy.md#ungated), in the measure `coverage`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import saeforest
from oracles import ungated as oracle
from saeforest import Forest, SparseCode
from saeforest.errors import InputError
from saeforest.evaluation.nulls import SEED, fired, with_parents
from saeforest.measures import Record
from saeforest.measures.coverage import CoverageConfig, coverage
from saeforest.measures.own_detectors import detector_thresholds, own_detectors
from saeforest.saes import (
    SAE,
    BatchTopKConfig,
    ExpertHSAEConfig,
    HSAEConfig,
    SAEConfig,
    TopKConfig,
    TreeConfig,
    build,
)
from saeforest.structure.pairs import PairStatistics
from saeforest.structure.shuffled import shuffled_parents
from subject_cases import given

D, SIZES = 8, (5, 8, 11)
NAMES = ("ungated", "lift", "ungated_above_half", "ungated_above_nine_tenths")
CONFIGS: dict[str, SAEConfig] = {
    "tree": TreeConfig(SIZES, (2, 2, 2), normalize_activations="none"),
    "hsae": HSAEConfig(SIZES, (2, 2, 2), normalize_activations="none"),
    "expert_hsae": ExpertHSAEConfig((6, 18), (2, 2), subspace=2, normalize_activations="none"),
    "topk": TopKConfig((24,), (4,), normalize_activations="none", encoder_bias=True),
    "batchtopk": BatchTopKConfig((24,), (4,), normalize_activations="none"),
}  # fmt: skip


def an_sae(name: str) -> SAE:
    """Random weights and biases; encoder and decoder differ."""
    sae = build(CONFIGS[name], D, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in (sae.encoder, sae.b_dec, sae.b_enc):
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
        if not sae.config.encoder_bias:
            sae.b_enc.zero_()
        if name in ("batchtopk", "hsae"):
            sae.get_parameter("threshold").fill_(0.4) if name == "hsae" else sae.get_buffer(
                "threshold"
            ).fill_(0.4)
        if name == "hsae":
            sae.parent[SIZES[0] :] = torch.cat([torch.arange(8) % 5, 5 + torch.arange(11) % 8])
    return sae


def measured(sae: SAE, x: Tensor, forest: Forest | None = None, min_count: int = 5) -> Record:
    pairs = PairStatistics(sae.d_sae, sae.config.activation_threshold)
    pairs.add(sae.encode(x).detach())
    supplied = given(sae, firings=pairs, activations=x, forest=forest or sae.forest)
    return coverage(supplied, CoverageConfig(min_count))


def by_hand(sae: SAE, x: Tensor) -> tuple[oracle.FloatArray, oracle.FloatArray]:
    """Pre-activations in float64 from the weights, and the values of the code."""
    encoder, b_enc, b_dec = (w.detach().double().numpy() for w in (sae.encoder, sae.b_enc, sae.b_dec))
    sizes = sae.config.layer_sizes
    # Each level of an HSAE has its own bias.
    center = np.repeat(b_dec, sizes, axis=0) if b_dec.ndim == 2 else np.tile(b_dec, (sae.d_sae, 1))
    h = np.stack(
        [(x.double().numpy() - c) @ e + b for e, b, c in zip(encoder, b_enc, center, strict=True)], 1
    )
    a = sae.encode(x).detach().dense(sae.d_sae).double().numpy()
    return h, np.where(a > sae.config.activation_threshold, a, 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_oracle(name: str) -> None:
    sae = an_sae(name)
    x = torch.randn(301, D, generator=torch.Generator().manual_seed(3))
    h, a = by_hand(sae, x)
    forest = sae.forest
    if not sae.has_forest:
        forest = Forest(torch.tensor([-1, -1, -1, *(i % 3 for i in range(21))]), (24,), layered=False)
    expected = oracle.ungated(h, a, a > 0, forest.parent.tolist(), 5)
    assert len(expected) > 8
    found = measured(sae, x, forest)
    both = np.array([*expected.values()])
    columns = (*both.T, both[:, 0] > 0.5, both[:, 0] > 0.9)
    for value, column in zip(NAMES, columns, strict=True):
        assert found.value[value] == pytest.approx(column.mean(), abs=1e-6), value
    assert found.value["edges_ungated"] == len(expected)
    assert found.detail["lift_median"] == pytest.approx(np.median(both[:, 1]), abs=1e-6)
    layer = forest.layer if forest.layered else forest.depth
    for entry in found.detail["ungated_by_layer"]:
        mine = [values[0] for c, values in expected.items() if int(layer[c]) == entry["layer"]]
        assert entry["edges"] == len(mine)
        assert entry["ungated"] == pytest.approx(np.mean(mine))
    low, high = found.interval["ungated"] or (1.0, 0.0)
    assert low < (found.value["ungated"] or 0) < high


def test_by_hand() -> None:
    """Child 1 reads the second coordinate; its parent 0 is active where the first is positive."""
    sae = build(TreeConfig((1, 1), (1, 1), normalize_activations="none"), 2, seed=0)
    with torch.no_grad():
        sae.encoder.copy_(torch.eye(2))
        sae.decoder.copy_(torch.eye(2))
    sae.parent[1] = 0
    # Gated values of the child: 1, 2, 3, 4, so its detector is on above 2.5.
    gated = [[1.0, v] for v in (1, 2, 3, 4)]
    x = torch.tensor([*gated, [-1, 5], [-1, 2.4], [1, 2.4], [-1, 0]])
    found = measured(sae, x, min_count=2)
    assert found.value["mean"] == 1  # the gate
    # On at 3, 4 and 5; the parent is active on the first two, and on 5 of the 8 tokens.
    assert found.value["ungated"] == pytest.approx(2 / 3)
    assert found.value["lift"] == pytest.approx(np.log2((2 + 5 / 8) / 4 / (5 / 8)))
    assert (found.value["ungated_above_half"], found.value["ungated_above_nine_tenths"]) == (1, 0)


def test_the_level_leaves_exactly_half_above() -> None:
    pairs = PairStatistics(3, 0.0)
    pairs.add(SparseCode(torch.tensor([[5.0, 1], [1, 2], [4, 3], [2, 4]]), torch.tensor([[0, 1]] * 4)))
    pairs.add(SparseCode(torch.tensor([[3.0]]), torch.tensor([[0]])))
    assert detector_thresholds(pairs, torch.arange(3), 2).tolist() == [3.5, 2.5, torch.inf]
    assert detector_thresholds(pairs, torch.arange(2), 5).tolist() == [3.5, torch.inf]
    assert oracle.level([5, 1, 4, 2, 3]) == 3.5
    assert oracle.level([1, 2, 3, 4]) == 2.5


def test_a_parent_that_only_its_child_brought_in_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = an_sae("tree")
    x = torch.randn(301, D, generator=torch.Generator().manual_seed(3))
    plain = measured(sae, x)

    def only_first_half(x: Tensor) -> SparseCode:
        code = sae.encode(x).detach()
        return code.replace(values=torch.where(torch.arange(len(x))[:, None] < len(x) // 2, code.values, 0))

    monkeypatch.setattr(sae, "encode_alone", only_first_half)
    found = measured(sae, x)
    assert found.value["mean"] == plain.value["mean"] == 1
    assert (found.value["ungated"] or 1) < (plain.value["ungated"] or 0)


def test_a_tree_whose_children_know_their_parents_differs_from_a_shuffled_one() -> None:
    """Children that are parents plus a little: their own detectors find the parent, not another."""
    torch.manual_seed(0)
    tops = torch.eye(6, 16)
    sae = build(TreeConfig((6, 12), (2, 2), normalize_activations="none"), 16, seed=0)
    parent = torch.cat([torch.full((6,), -1), torch.arange(12) % 6])
    own = torch.eye(18, 16, dtype=torch.float32).roll(6, 1)[:12]
    with torch.no_grad():
        sae.encoder.copy_(torch.cat([tops, tops[parent[6:]] + 0.7 * own]))
        sae.parent.copy_(parent)
    x = torch.randn(4000, 16)
    true = measured(sae, x, min_count=20)
    sae.parent[6:] = (parent[6:] + 1) % 6
    shuffled = measured(sae, x, min_count=20)
    assert true.value["mean"] == shuffled.value["mean"] == 1
    assert (true.value["ungated"] or 0) > (shuffled.value["ungated"] or 1) + 0.3
    assert (true.value["lift"] or 0) > 0.5 > (shuffled.value["lift"] or 1)


def test_any_split_and_device_dtype_of_activations_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = an_sae("tree")
    x = torch.randn(64, D).bfloat16()
    parent, child = sae.forest.edges
    level = torch.full((len(child),), 0.5)
    whole = own_detectors(sae, x, parent, child, level)
    monkeypatch.setattr("saeforest.measures.own_detectors.DENSE_ENTRIES", 7 * sae.d_sae)
    parts = own_detectors(sae, x, parent, child, level)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert int(whole.on.sum()) > 0


def test_on_activations_alone() -> None:
    sae = an_sae("tree")
    x = torch.randn(301, D, generator=torch.Generator().manual_seed(3))
    found = saeforest.measure(sae, x, ["coverage"])["coverage"]
    assert found.value["ungated"] == measured(sae, x, min_count=20).value["ungated"]
    assert found.settings["config"] == {"min_count": 20}
    # The values by layer have those of the nulls beside them, of the SAE that is gated by shuffled parents.
    other = with_parents(sae, shuffled_parents(sae.forest, fired(sae, x), SEED))
    by_layer = found.detail["of_nulls"]["shuffled"]["ungated_by_layer"]
    assert by_layer == measured(other, x, min_count=20).detail["ungated_by_layer"]
    assert by_layer != found.detail["ungated_by_layer"]
    counts = [entry["edges"] for entry in by_layer]
    assert len(counts) == 2
    mean = np.average([entry["ungated"] for entry in by_layer], weights=counts)
    assert mean == pytest.approx(found.value["ungated_shuffled"])
    assert found.detail["of_nulls"]["untrained"] == {}  # it is not known how training started


def test_reasons_and_errors() -> None:
    sae = an_sae("tree")
    rare = measured(sae, torch.randn(30, D), min_count=1000)
    assert rare.value["ungated"] is rare.value["lift"] is None
    assert rare.null["ungated"] == "no edge has a child that fired on 1000 or more of the measured tokens"
    assert rare.value["edges_ungated"] == 0
    flat = replace(sae.forest, parent=torch.full((24,), -1))
    assert measured(sae, torch.randn(30, D), flat).null["ungated"].startswith("the forest has no edges")
    with pytest.raises(InputError, match=r"^coverage\.min_count = 1: expected 2 or more$"):
        CoverageConfig(1)
