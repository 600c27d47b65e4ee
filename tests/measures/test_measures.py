"""Measures against slow float64 arithmetic, the specification's vectors, and what must hold of any record."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from measure_cases import (
    CONTEXT,
    EOS,
    LAYER,
    N_WINDOWS,
    SIZES,
    SOURCE,
    ce,
    close,
    code_of,
    doubles,
    eval_batch,
    keep_by_hand,
    measured,
    on_flat_forest,
    random_batches,
    shuffled,
)
from oracles import measures as oracle
from saeforest.activations import ActivationReader
from saeforest.errors import InputError
from saeforest.evaluation import (
    SETS,
    evaluate,
    read_windows,
)
from saeforest.lm import LanguageModel
from saeforest.measures import measure as measure_module
from saeforest.saes import TreeSAE
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import Forest, flat_forest
from saeforest.text import Tokens

# -- reconstruction


def test_reconstruction_equals_the_oracle(sae: TreeSAE) -> None:
    batches = [*random_batches(3, 4), *random_batches(1, 2, seed=1)]
    found = measured("reconstruction", sae, batches)
    pairs = doubles(batches)
    x, x_hat = (np.concatenate(part) for part in zip(*pairs, strict=True))
    assert found.tokens == len(x)
    assert close(found.value["fve"], oracle.fve(x, x_hat))
    assert close(found.value["fve_legacy"], oracle.fve_legacy(pairs))
    assert close(found.value["fve_tree"], oracle.fve_tree(pairs))
    assert close(found.value["fvu_uncentred"], oracle.fvu_uncentred(x, x_hat))
    assert close(found.value["saebench_explained_variance"], oracle.saebench_explained_variance(pairs))
    assert close(found.value["cosine"], oracle.cosine(x, x_hat))
    assert close(found.value["norm_ratio"], oracle.norm_ratio(x, x_hat))


def test_definitions_of_fve_order_as_in_the_specification(sae: TreeSAE) -> None:
    """Vector 11: on data with a mean, legacy < proper < per-token own mean < uncentred."""
    value = measured("reconstruction", sae, random_batches(2, 10, per_window=20, d=64)).value
    legacy, fve, tree, fvu = (value[n] for n in ("fve_legacy", "fve", "fve_tree", "fvu_uncentred"))
    assert legacy is not None
    assert fve is not None
    assert tree is not None
    assert fvu is not None
    assert legacy < fve < tree < 1 - fvu < 1


def test_saebench_explains_more_than_everything(sae: TreeSAE) -> None:
    """Where the mean square of an activation's entries exceeds its width (docs/spec/reconstruction.md#fve)."""
    batches = [replace(b, x=40 * b.x, x_hat=40 * b.x_hat) for b in random_batches(2, 4)]
    value = measured("reconstruction", sae, batches).value["saebench_explained_variance"]
    assert close(value, oracle.saebench_explained_variance(doubles(batches)))
    assert value is not None
    assert value > 1


def test_fve_of_a_perfect_and_of_a_constant_reconstruction(sae: TreeSAE) -> None:
    batches = random_batches(1, 4)
    perfect = measured("reconstruction", sae, [replace(b, x_hat=b.x) for b in batches])
    assert perfect.value["fve"] == perfect.value["fve_legacy"] == perfect.value["fve_tree"] == 1
    assert perfect.value["fvu_uncentred"] == 0
    x = batches[0].x
    mean = measured("reconstruction", sae, [replace(batches[0], x_hat=x.mean(0).expand_as(x))])
    assert close(mean.value["fve"], 0, 1e-6)


def test_fve_survives_a_mean_much_larger_than_the_variance(sae: TreeSAE) -> None:
    batches = [replace(b, x=b.x + 3000, x_hat=b.x_hat + 3000) for b in random_batches(1, 4)]
    (pair,) = doubles(batches)
    assert close(measured("reconstruction", sae, batches).value["fve"], oracle.fve(*pair), 1e-7)


def test_undefined_reconstruction_is_null_with_a_reason(sae: TreeSAE) -> None:
    same = torch.ones(8, 3)
    found = measured("reconstruction", sae, [eval_batch(same, 0.9 * same, None, n_windows=4)])
    assert found.value["fve"] is found.value["fve_legacy"] is None
    assert found.interval["fve"] is None
    assert "variance" in found.null["fve"]
    assert "mean of its batch" in found.null["fve_legacy"]
    zero = torch.zeros(4, 3)
    nothing = measured("reconstruction", sae, [eval_batch(zero, zero, None)])
    assert "zero" in nothing.null["fvu_uncentred"]
    assert "zero" in nothing.null["saebench_explained_variance"]


# -- sparsity and dead features


def test_sparsity_and_dead_equal_the_oracle(sae: TreeSAE, reader: ActivationReader, tokens: Tokens) -> None:
    records = evaluate(sae, reader, tokens, ["sparsity", "dead"], SOURCE, ce(0))
    batch = read_windows(reader, tokens, torch.arange(N_WINDOWS)).through(sae)
    on = (batch.code.dense(sae.d_sae) > 1e-3).numpy()
    starts = np.cumsum([0, *SIZES])
    sparsity, dead = records["sparsity"].value, records["dead"].value
    assert close(sparsity["l0"], oracle.l0(on))
    assert close(dead["dead"], (~on.any(0)).sum())
    assert close(dead["dead_share"], (~on.any(0)).mean())
    for layer in range(3):
        part = on[:, starts[layer] : starts[layer + 1]]
        assert close(sparsity[f"l0_layer_{layer}"], oracle.l0(part))
        assert close(dead[f"dead_layer_{layer}"], (~part.any(0)).sum())
        assert close(dead[f"dead_share_layer_{layer}"], (~part.any(0)).mean())


def test_a_feature_at_the_threshold_is_not_active() -> None:
    sae = on_flat_forest((2, 2))
    code = SparseCode(torch.tensor([[1e-3, 2e-3]]), torch.tensor([[0, 1]]))
    batch = eval_batch(None, None, code)
    assert measured("sparsity", sae, [batch]).value["l0"] == 1
    assert measured("dead", sae, [batch]).value["dead"] == 3


def test_more_features_than_k_break_an_identity() -> None:
    batch = eval_batch(None, None, code_of([[0, 1, 2]]))
    with pytest.raises(RuntimeError, match="l0 <= the sum of k_per_layer"):
        measured("sparsity", on_flat_forest((2, 2)), [batch])


# -- coverage


def test_coverage_vector() -> None:
    """Vector 3: S_cov(0,1) = 2/3, S_cov(0,2) = 1; a child that never fires has none."""
    rows = [[0, 1], [0, 2], [1], [0, 1]]
    forest = Forest(torch.tensor([-1, 0, 0, 0]), (1, 3))
    found = measured("coverage", on_flat_forest((1, 3)), [eval_batch(None, None, code_of(rows))], forest)
    expected = {"min": 2 / 3, "mean": (2 / 3 + 1) / 2, "edges_measured": 2, "edges_unmeasured": 1}
    assert {name: found.value[name] for name in expected} == expected
    assert found.null["ungated"].startswith("no edge has a child that fired on 20 or more")
    assert found.detail["worst_edges"] == [{"parent": 0, "child": 1, "coverage": 2 / 3, "fired": 3}]


def test_coverage_of_a_tree_is_one_and_of_another_forest_is_not(
    sae: TreeSAE, reader: ActivationReader, tokens: Tokens
) -> None:
    own = evaluate(sae, reader, tokens, ["coverage"], SOURCE, ce(0))["coverage"]
    assert own.value["min"] == own.value["mean"] == 1
    assert own.interval["mean"] == (1, 1)
    edges = int((sae.parent >= 0).sum())
    measured_edges, others = own.value["edges_measured"], own.value["edges_unmeasured"]
    assert measured_edges is not None
    assert others is not None
    assert measured_edges > 5
    assert measured_edges + others == edges

    forest = shuffled(sae.forest)
    other = evaluate(sae, reader, tokens, ["coverage"], SOURCE, ce(0), forest=forest)["coverage"]
    batch = read_windows(reader, tokens, torch.arange(N_WINDOWS)).through(sae)
    on = (batch.code.dense(sae.d_sae) > 1e-3).numpy()
    expected = oracle.coverage(on, forest.parent.tolist())
    assert other.value["edges_measured"] == len(expected)
    assert close(other.value["min"], min(expected.values()))
    assert close(other.value["mean"], float(np.mean(list(expected.values()))))
    assert min(expected.values()) < 0.9
    low, high = other.interval["mean"] or (0, 0)
    assert low < np.mean(list(expected.values())) < high


def test_a_child_without_its_parent_breaks_an_identity_of_tree_saes() -> None:
    sae = on_flat_forest((1, 2))
    sae.parent[1] = 0
    with pytest.raises(RuntimeError, match="S_cov = 1"):
        measured("coverage", sae, [eval_batch(None, None, code_of([[0, 1], [1]]))])


def test_coverage_without_edges_is_null() -> None:
    silent = Forest(torch.tensor([-1, 0, 0]), (1, 2))
    batch = eval_batch(None, None, code_of([[0], [0]]))
    none = measured("coverage", on_flat_forest((1, 2)), [batch])
    assert none.value["mean"] is None
    assert none.null["mean"] == "the forest has no edges: every feature hangs from the root"
    never = measured("coverage", on_flat_forest((1, 2)), [batch], silent)
    assert "never fired" in never.null["min"]
    assert never.value["edges_unmeasured"] == 2


# -- co-occurrence


def test_cooccurrence_vector() -> None:
    """Vector 5: firing sets {1,2}, {2,3}, {4} of three siblings."""
    forest = Forest(torch.tensor([-1, 0, 0, 0]), (1, 3))
    rows = [[1], [1, 2], [2], [3]]
    found = measured("cooccurrence", on_flat_forest((1, 3)), [eval_batch(None, None, code_of(rows))], forest)
    assert close(found.value["iou"], (2 / 3) / 6)
    assert found.value["iou"] == found.value["iou_alive"] == found.value["iou_layer_1"]


@pytest.mark.parametrize("comparisons", [1, 1 << 24])
def test_cooccurrence_equals_the_oracle(comparisons: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With families across layers, single children, root children, and dead siblings alone and in pairs."""
    monkeypatch.setattr(measure_module, "_COMPARISONS", comparisons)
    generator = torch.Generator().manual_seed(0)
    sizes = (4, 20, 30)
    parent = [torch.full((4,), -1), *(torch.randint(-1, 4, (n,), generator=generator) for n in sizes[1:])]
    forest = Forest(torch.cat(parent), sizes)
    on = torch.rand(60, 54, generator=generator) < 0.2
    families = [[c for c in range(4, 24) if int(forest.parent[c]) == p] for p in range(4)]
    small, large = sorted(families, key=len)[-2:]
    assert len(small) > 3
    on[:, large[0]] = False  # one dead sibling: IoU 0
    on[:, small[:2]] = False  # two: 0/0
    code = code_of([row.nonzero().flatten().tolist() for row in on])
    batches = [
        eval_batch(None, None, SparseCode(code.values[part], code.ids[part]))
        for part in (slice(0, 25), slice(25, 60))
    ]
    found = measured("cooccurrence", on_flat_forest(sizes), batches, forest)
    for name, alive_only in (("iou", False), ("iou_alive", True)):
        args = on.numpy(), forest.parent.tolist(), forest.layer.tolist()
        expected = oracle.cooccurrence(*args, alive_only=alive_only)
        assert len(expected) == 2
        for layer, value in expected.items():
            assert close(found.value[f"{name}_layer_{layer}"], value)
        assert close(found.value[name], float(np.mean(list(expected.values()))))
        of_edges = dict(zip(*(part.tolist() for part in found.edge_scores[name]), strict=True))
        assert of_edges == pytest.approx(oracle.overlap_with_siblings(*args, alive_only=alive_only))
        assert len(of_edges) > 20
    assert found.value["iou"] != found.value["iou_alive"]
    assert found.detail["families_left_out_for_0/0"] == 1
    low, high = found.interval["iou_alive"] or (1, 0)
    assert low < (found.value["iou_alive"] or 0) < high


def test_cooccurrence_without_siblings_is_null() -> None:
    batch = eval_batch(None, None, code_of([[0, 1], [2]]))
    for forest in (flat_forest((1, 2)), Forest(torch.tensor([-1, 0, -1]), (1, 2)), flat_forest((3,))):
        sae = on_flat_forest(forest.layer_sizes)
        found = measured("cooccurrence", sae, [batch], forest)
        assert set(found.value.values()) == {None}
        assert "two children" in found.null["iou"]


# -- the pass


def test_batch_holds_the_kept_rows(
    sae: TreeSAE, lm: LanguageModel, reader: ActivationReader, tokens: Tokens
) -> None:
    windows = torch.tensor([3, 4, 6])
    batch = read_windows(reader, tokens, windows, n_losses=2).through(sae)
    expected = reader.read(tokens, windows)
    assert torch.equal(batch.rows, expected.rows)
    torch.testing.assert_close(batch.x, expected.x)
    # Each of these windows has one document, so it is one part; its number is that of its first position.
    assert torch.equal(batch.windows, windows * CONTEXT)
    assert torch.equal(batch.window, batch.rows // CONTEXT * CONTEXT)
    assert batch.origin is not None
    assert torch.equal(batch.origin[:, 0], windows)
    torch.testing.assert_close(batch.x_hat, sae(expected.x))
    assert batch.losses is not None
    assert len(batch.losses.count) == 2
    assert torch.equal(batch.sums(torch.ones(len(batch))), keep_by_hand(tokens)[windows].sum(1).double())


def test_excluded_positions_are_neither_measured_nor_replaced(
    sae: TreeSAE, lm: LanguageModel, reader: ActivationReader, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first position of every window is made huge: no measure moves, and the splice leaves it as it is."""
    plain = evaluate(sae, reader, tokens, SETS["fast"], SOURCE, ce(0))
    assert len(reader.shared_blocks) == LAYER + 1  # found by passes of its own
    site, module = reader.site, lm.model.get_submodule(f"model.layers.{LAYER}")
    spliced = []

    def huge(_module: Any, _args: Any, output: Any) -> Any:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        x[:, 0] = 1e6
        return (x, *output[1:]) if isinstance(output, tuple) else x

    original = LanguageModel.logits

    def spy(self: LanguageModel, ids: Tensor, hooks: Any = None) -> Tensor:
        def watched(x: Tensor) -> Tensor | None:
            new = hooks[site](x)
            spliced.append((x.clone(), x.clone() if new is None else new.clone()))
            return new

        return original(self, ids, {site: watched} if hooks else None)

    monkeypatch.setattr(LanguageModel, "logits", spy)
    with module.register_forward_hook(huge):
        batch = read_windows(reader, tokens, torch.arange(N_WINDOWS), n_losses=N_WINDOWS).through(sae)
        found = evaluate(sae, reader, tokens, ["reconstruction", "sparsity"], SOURCE, ce(0))
    assert reader.site == site
    for name, record in found.items():
        assert record.value == plain[name].value
    (x, looked), (_, ablated), (_, new) = spliced
    keep = keep_by_hand(tokens)
    assert torch.equal(x, looked)
    assert bool((x[:, 0] == 1e6).all())
    assert torch.equal(new[~keep], x[~keep])
    assert torch.equal(new[keep], batch.x_hat)
    assert not bool(ablated.any())


def test_measures_do_not_depend_on_the_batches(
    sae: TreeSAE, reader: ActivationReader, tokens: Tokens
) -> None:
    """But for the definitions that say so."""
    found = []
    for reader.batch_size in (3, N_WINDOWS):
        found.append(evaluate(sae, reader, tokens, SETS["fast"], SOURCE, ce(4 * CONTEXT)))
    by_batch = {"fve_legacy", "fve_tree", "saebench_explained_variance"}
    for name, first in found[0].items():
        second = found[1][name]
        for key, value in first.value.items():
            other = second.value[key]
            if key in by_batch:
                assert value != other
            else:
                assert (value is None and other is None) or close(value, other or 0, 1e-5), (name, key)
                pairs = zip(first.interval[key] or (), second.interval[key] or (), strict=True)
                assert all(close(a, b, 1e-4) for a, b in pairs)


def test_two_runs_are_identical(sae: TreeSAE, reader: ActivationReader, tokens: Tokens) -> None:
    first, second = (
        {
            name: record.to_json()
            for name, record in evaluate(sae, reader, tokens, SETS["fast"], SOURCE, ce(9 * CONTEXT)).items()
        }
        for _ in range(2)
    )
    assert first == second


def test_no_token_measured_gives_reasons_not_numbers(
    sae: TreeSAE, reader: ActivationReader, tokens: Tokens
) -> None:
    nothing = replace(tokens, ids=torch.full((3, CONTEXT), EOS, dtype=torch.int32))
    for record in evaluate(sae, reader, nothing, SETS["fast"], SOURCE, ce(CONTEXT)).values():
        assert record.tokens == 0
        for name, value in record.value.items():
            assert value is None or name.startswith("edges"), (record.measure, name)


def test_activation_that_is_not_a_number_is_the_users_error(
    sae: TreeSAE, lm: LanguageModel, reader: ActivationReader, tokens: Tokens
) -> None:
    def spoil(_module: Any, _args: Any, output: Any) -> Any:
        return output * torch.nan if isinstance(output, Tensor) else (output[0] * torch.nan, *output[1:])

    with (
        lm.model.get_submodule("model.layers.0").register_forward_hook(spoil),
        pytest.raises(InputError, match="NaN or infinite in document 'document'"),
    ):
        evaluate(sae, reader, tokens, ["reconstruction"], SOURCE, ce(0))


# -- intervals


def test_intervals_hold_the_value_and_shrink_with_more_windows(sae: TreeSAE) -> None:
    few = measured("reconstruction", sae, random_batches(2, 6))
    many = measured("reconstruction", sae, random_batches(20, 12))
    for name, value in many.value.items():
        widths = []
        for record in (few, many):
            low, high = record.interval[name] or (1, 0)
            assert low < (record.value[name] or math.inf) < high
            widths.append(high - low)
        assert widths[1] < 0.5 * widths[0]
        assert value is not None


def test_interval_covers_the_truth_about_as_often_as_it_says(sae: TreeSAE) -> None:
    """The true FVE of the test's data is 1 - 0.3^2."""
    hits = 0
    for seed in range(60):
        low, high = measured("reconstruction", sae, random_batches(1, 40, seed=seed)).interval["fve"] or (
            1,
            0,
        )
        hits += low < 1 - 0.09 < high
    assert hits >= 50


def test_interval_equals_resampling_by_hand(sae: TreeSAE) -> None:
    batches = random_batches(2, 5)
    (low, high) = measured("reconstruction", sae, batches).interval["fve"] or (1, 0)
    x, x_hat = (np.concatenate(part) for part in zip(*doubles(batches), strict=True))
    window = torch.cat([b.window for b in batches]).numpy()
    generator, values = np.random.default_rng(0), []
    for _ in range(1000):
        rows = np.concatenate([np.flatnonzero(window == w) for w in generator.integers(10, size=10)])
        values.append(oracle.fve(x[rows], x_hat[rows]))
    np.testing.assert_allclose((low, high), np.percentile(values, (2.5, 97.5)), rtol=1e-9)


def test_one_window_has_no_interval(sae: TreeSAE, reader: ActivationReader, tokens: Tokens) -> None:
    one = replace(tokens, ids=tokens.ids[:1])
    records = evaluate(sae, reader, one, SETS["fast"], SOURCE, ce(CONTEXT))
    for name in ("reconstruction", "cross_entropy", "sparsity", "dead"):
        assert set(records[name].interval.values()) == {None}
        assert None not in records[name].value.values()
