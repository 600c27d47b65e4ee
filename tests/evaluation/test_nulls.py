"""Nulls: what a shuffled and an untrained SAE compute, and what a record says of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import saeforest
from saeforest.config import TrainConfig
from saeforest.evaluation import MEASURES, MeasureOptions, measure_run
from saeforest.evaluation import nulls as nulls_module
from saeforest.evaluation import run as run_module
from saeforest.evaluation.null_values import FOREST_FREE, SUFFIXES, auc, with_nulls
from saeforest.evaluation.nulls import (
    NullSAE,
    Sample,
    Start,
    fired,
    make_nulls,
    read_sample,
    start_of,
    untrained,
    with_parents,
)
from saeforest.infer import InferConfig
from saeforest.measures import EdgeScores, Record, Replicates
from saeforest.measures.hierarchy import HierarchyConfig
from saeforest.measures.probes import ProbeConfig
from saeforest.run_folder import RunFolder
from saeforest.saes import (
    AllocationConfig,
    BatchTopKConfig,
    ExpertHSAEConfig,
    HSAEConfig,
    RunLength,
    Setup,
    TopKConfig,
    TreeConfig,
    TreeSAE,
    build,
    start_training,
    training_of,
)
from saeforest.saes.files import TRAINING, training_settings
from saeforest.session import open_reader, read_tokens
from saeforest.structure.forest import ROOT, Forest
from saeforest.structure.shuffled import shuffled_parents
from saeforest.training import run_training

D = 8


def tree(sizes: tuple[int, ...] = (40, 90, 200), seed: int = 0) -> TreeSAE:
    sae = build(TreeConfig(layer_sizes=sizes, k_per_layer=(8,) * len(sizes)), D, seed=seed)
    assert isinstance(sae, TreeSAE)
    return sae.eval()


def activations(n: int = 600, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def test_other_parents_change_what_a_gated_sae_fires_and_nothing_else() -> None:
    sae, x = tree(), activations()
    before = sae.encode(x)
    other = with_parents(sae, shuffled_parents(sae.forest, fired(sae, x)))
    code = other.encode(x)
    fresh = tree()
    fresh.parent.copy_(other.parent)  # the slow way: another SAE that was built with these parents
    expected = fresh.encode(x)
    assert torch.equal(code.ids, expected.ids)
    assert torch.equal(code.values, expected.values)
    on = [c.fired(sae.d_sae, 1e-3) for c in (before, code)]
    assert torch.equal(on[0][:40], on[1][:40])  # the first layer has no gate
    assert not torch.equal(on[0], on[1])
    assert torch.equal(sae.encode(x).ids, before.ids)
    assert other.encoder is sae.encoder
    assert not torch.equal(sae.parent, other.parent)


def test_counts_of_firings_equal_a_loop() -> None:
    sae, x = tree(), activations(50)
    dense = sae.encode(x).dense(sae.d_sae)
    assert torch.equal(fired(sae, x), (dense > 1e-3).sum(0))


CONFIGS: list[Any] = [
    TreeConfig(layer_sizes=(6, 12), k_per_layer=(2, 2)),
    ExpertHSAEConfig(layer_sizes=(6, 24), k_per_layer=(2, 2), subspace=2),
    HSAEConfig((6, 12), (2, 2)),
    TopKConfig((24,), (3,)),
    BatchTopKConfig((24,), (3,)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.architecture)
def test_the_untrained_sae_has_the_first_weights_bit_for_bit(config: Any) -> None:
    x = activations(400)
    settled = replace(config, normalize_activations="none")
    training = start_training(settled, D, RunLength(20, 100), seed=7)
    for part in x.split(100):
        training.step(part)
    sae = training.finish()
    null = untrained(Start(settled, 7), sae, Sample(x, x))
    assert not isinstance(null, str)
    found = null.sae
    assert torch.equal(null.forest.parent, found.parent)
    fresh = build(settled, D, seed=7)
    assert torch.equal(found.encoder, fresh.encoder)
    assert torch.equal(found.decoder, fresh.decoder)
    assert not torch.equal(found.encoder, sae.encoder)
    training_of(fresh, Setup(RunLength(1, 400))).initialize(x, x)
    assert torch.equal(found.b_dec, fresh.b_dec)
    if not isinstance(config, HSAEConfig):  # which has no parents before its first update
        assert torch.equal(found.parent, fresh.parent)
    else:
        assert (found.parent != ROOT).sum() == 10  # all but the 20 % that stay without
    # It can be measured: about as many features are active as should be.
    assert 0.5 < float(fired(found, x).sum()) / len(x) / sum(config.k_per_layer) < 1.5


@pytest.mark.parametrize("selection", ["layer", "closed"])
def test_a_tree_that_starts_without_edges_is_untrained_under_the_parents_it_learned(selection: Any) -> None:
    rule = AllocationConfig(start="root", rule="data")
    config = TreeConfig((6, 12), (2, 2), "none", selection=selection, budget="batch", allocation=rule)
    x = activations(800)
    sae = build(config, D, seed=8).eval()  # as if it were trained: other weights, and parents
    sae.parent[6:16] = torch.arange(10) % 6
    sae.metadata = {"seed": 7, TRAINING: training_settings(config)}
    null = untrained(Start(config, 7), sae, Sample(x, x))
    assert not isinstance(null, str)
    fresh = build(config, D, seed=7)
    assert torch.equal(null.sae.encoder, fresh.encoder)
    assert torch.equal(null.sae.decoder, fresh.decoder)
    assert torch.equal(null.forest.parent, sae.parent)
    assert not (fresh.parent != ROOT).any()
    # It is gated, and its threshold is that of a first batch under this gate.
    fires = null.sae.encode(x).dense(18) > 1e-3
    for child in range(18):
        if (p := int(sae.parent[child])) != ROOT:
            assert not (fires[:, child] & ~fires[:, p]).any()
    fresh.parent.copy_(sae.parent)
    expected = training_of(fresh, Setup(RunLength(1, len(x)))).untrained(x, x)
    assert torch.equal(null.sae.encode(x).values, expected.encode(x).values)

    record = saeforest.measure(sae, x, ["coverage"])["coverage"]
    assert record.value["mean_untrained"] == 1
    assert (
        record.settings["nulls"]["untrained"]
        == "as training starts it, but with the parents that were learned"
    )
    assert record.settings["nulls"]["untrained_seed"] == 7


def test_a_scale_of_the_data_is_folded_in() -> None:
    x = 3 * activations(64)
    config = TreeConfig(layer_sizes=(4, 8), k_per_layer=(2, 1), normalize_activations="dataset_scale")
    sae = build(replace(config, normalize_activations="none"), D)
    found = untrained(Start(config, 0), sae, Sample(x, x))
    assert not isinstance(found, str)
    assert found.sae.config.normalize_activations == "none"


def test_an_unknown_start_is_a_reason() -> None:
    sae = tree()
    assert "random seed" in str(start_of(sae))
    sae.metadata["seed"] = 3
    assert "settings of its training" in str(start_of(sae))
    sae.metadata[TRAINING] = {"layer_sizes": "many"}
    assert "settings of its training" in str(start_of(sae))
    sae.metadata[TRAINING] = training_settings(sae.config)
    assert start_of(sae) == Start(sae.config, 3)
    assert (
        untrained(Start(sae.config, 3), sae, Sample(torch.zeros(0, D), torch.zeros(0, D)))
        == "no token was measured"
    )


def test_a_saved_sae_started_as_its_run_did(tmp_path: Path) -> None:
    # cfg.json has only what a trained SAE needs: not where the parents came from, and not the scale of the data.
    rule = AllocationConfig(start="root", rule="data")
    config = TreeConfig((6, 12), (2, 2), "dataset_scale", allocation=rule)
    run = saeforest.train(activations(400), config, steps=3, seed=5, out=tmp_path / "run")
    start = start_of(saeforest.load(tmp_path / "run"))
    assert isinstance(start, Start)
    assert start.seed == 5
    assert start.config == run.config.sae
    assert start_of(run.sae) == start


def test_a_forest_without_a_gate_is_shuffled_alone() -> None:
    sae, x = build(TopKConfig((30,), (3,)), D), activations()
    forest = Forest(torch.tensor([ROOT] * 5 + [i % 5 for i in range(25)]), (30,), layered=False)
    nulls = make_nulls(sae, forest, Sample(x, x), "no reason", "no reason")
    assert isinstance(nulls.shuffled, NullSAE)
    assert nulls.shuffled.sae is sae
    assert nulls.settings["edges"] == 25
    assert nulls.settings["edges_not_moved"] == 0
    assert nulls.untrained == "no reason"
    assert make_nulls(sae, sae.forest, Sample(x, x), "", "").shuffled == "the forest has no edges"


# -- the values of a record


def brute_auc(own: list[float], null: list[float]) -> float:
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in own for b in null]
    return sum(won) / len(won)


def test_auc_equals_a_loop_over_all_pairs_of_edges() -> None:
    rng = np.random.default_rng(0)
    own, null = rng.integers(0, 6, 40) / 4, rng.integers(-1, 5, 30) / 4
    parent = torch.from_numpy(rng.integers(0, 9, 60))
    a = EdgeScores(torch.arange(40), torch.from_numpy(own))
    b = EdgeScores(torch.arange(20, 50), torch.from_numpy(null))
    found = auc(a, b, parent)
    value = found.value["auc"]
    assert value == pytest.approx(brute_auc(own.tolist(), null.tolist()))
    low, high = found.interval["auc"] or (1, 0)
    assert value is not None
    assert low < value < high
    # The interval by hand: parents are drawn with all their children, their true edges and their shuffled ones.
    families = np.unique(np.concatenate([parent[a.child], parent[b.child]]))
    drawn = np.random.default_rng(0).integers(len(families), size=(1000, len(families)))
    for resample in (0, 7):
        chosen = families[drawn[resample]]
        mine = [s for p in chosen for s in own[parent[a.child].numpy() == p].tolist()]
        theirs = [s for p in chosen for s in null[parent[b.child].numpy() == p].tolist()]
        assert found.replicates["auc"].drawn[resample] == pytest.approx(brute_auc(mine, theirs), rel=1e-5)


def test_auc_is_a_half_for_the_same_scores_and_one_for_larger_ones() -> None:
    parent, scores = torch.arange(10), torch.arange(10).double()
    own = EdgeScores(torch.arange(10), scores)
    assert auc(own, own, parent).value == {"auc": 0.5}
    assert auc(own, EdgeScores(own.child, scores - 20), parent).value == {"auc": 1.0}
    nothing = EdgeScores(own.child[:0], scores[:0])
    assert auc(own, nothing, parent).value == {"auc": None}
    assert auc(nothing, nothing, parent).value == {"auc": None}


def record(value: float | None, drawn: float, units: str = "parents a") -> Record:
    replicates = {"x": Replicates(units, drawn + np.arange(1000) / 1000)} if value is not None else {}
    scores = {"x": EdgeScores(torch.arange(4), torch.full((4,), drawn, dtype=torch.float64))}
    why = {} if value is not None else {"x": "nothing there"}
    detail = {"null": why, "units": {"y": "edges"}}
    numbers = {"x": value, "y": 3.0}
    return Record(
        "some",
        numbers,
        dict.fromkeys(numbers),
        "fraction",
        9,
        {"a": 1},
        detail,
        replicates=replicates,
        edge_scores=scores,
    )


def test_a_record_holds_values_nulls_differences_and_auc() -> None:
    forest = Forest(torch.tensor([ROOT, ROOT, 0, 1]), (2, 2))
    own, shuffled, before = record(0.75, 0.5), record(0.5, 0.25), record(0.25, 0.0, "parents b")
    found = with_nulls(own, ("x", "no such"), shuffled, before, forest, {"seed": 0})
    assert {name: found.value[name] for name in ("x", "y")} == own.value
    assert [found.value["x" + suffix] for suffix in SUFFIXES] == [0.5, 0.25, 0.25, 0.5, 1.0]
    assert set(found.value) == {"x", "y", *("x" + suffix for suffix in SUFFIXES)}
    assert found.interval["x_over_shuffled"] == (0.25, 0.25)  # resample by resample
    low, high = found.interval["x_over_untrained"] or (0, 0)  # independent: other parents
    assert (low, high) == pytest.approx((0.5 - 0.78, 0.5 + 0.78), abs=0.05)
    assert found.detail["paired"] == {"x_over_shuffled": True, "x_over_untrained": False}
    assert found.unit_of("x_auc") == "AUC"
    assert found.unit_of("x_over_shuffled") == "fraction"
    assert found.settings == {"a": 1, "nulls": {"seed": 0}}


def test_details_of_nulls_are_kept() -> None:
    forest = Forest(torch.tensor([ROOT, ROOT, 0, 1]), (2, 2))
    own, other = (replace(record(0.5, x), detail={"null": {}, "curve": [x]}) for x in (0.5, 0.25))
    found = with_nulls(own, ("x",), other, "no seed", forest, {}, detail=("curve",))
    assert found.detail["of_nulls"] == {"shuffled": {"curve": [0.25]}, "untrained": {}}
    assert found.detail["curve"] == [0.5]
    assert "of_nulls" not in with_nulls(own, ("x",), other, "no seed", forest, {}).detail


def test_a_null_that_is_not_there_says_why() -> None:
    forest = Forest(torch.tensor([ROOT, ROOT, 0, 1]), (2, 2))
    found = with_nulls(record(0.75, 0.5), ("x",), "no edges", record(None, 0.0), forest, {})
    why = {"x_shuffled": "no edges", "x_over_shuffled": "no edges", "x_auc": "no edges"}
    why |= {"x_untrained": "nothing there", "x_over_untrained": "nothing there"}
    assert found.null == why
    assert all(found.value[name] is None for name in why)


# -- whole runs

NAMES = ("coverage", "cooccurrence", "hsae", "reconstruction")
OPTIONS = MeasureOptions(
    tokens=1600,
    ce_tokens=0,
    infer_tokens=2000,
    infer=InferConfig(method="coverage", min_score=0.5, min_count=2),
)


def test_eval_shows_every_value_with_its_nulls(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(shutil.copytree(finished_run, tmp_path / "run"))
    records = {r.measure: r for r in measure_run(run, NAMES, OPTIONS)["tree"]}
    plain = {r.measure: r for r in measure_run(run, NAMES, replace(OPTIONS, nulls="no"), again=True)["tree"]}
    for name in NAMES:
        assert plain[name].value.items() <= records[name].value.items()
        assert "nulls" not in plain[name].settings
    coverage = records["coverage"]
    assert {f"ungated{suffix}" for suffix in SUFFIXES} <= coverage.value.keys()
    assert coverage.value["mean_shuffled"] == coverage.value["mean_untrained"] == 1  # the gate makes it so
    assert coverage.value["mean_over_shuffled"] == 0
    assert coverage.value["mean_auc"] == 0.5
    assert records["reconstruction"].value.keys() == plain["reconstruction"].value.keys()

    # By hand: the same measure of the SAE with shuffled parents, and of the one before training.
    config, sae = run.load()
    reader = open_reader(config)
    sample = read_sample(reader, read_tokens(config, reader, "held_out", OPTIONS.tokens))
    other = with_parents(sae, shuffled_parents(sae.forest, fired(sae, sample.x)))
    before = untrained(Start(config.sae, config.seed), sae, sample)
    assert not isinstance(before, str)
    for null, suffix in ((other, "_shuffled"), (before.sae, "_untrained")):
        monkeypatch.setattr(RunFolder, "load", lambda *_, null=null: (config, null))
        alone = {
            r.measure: r for r in measure_run(run, NAMES, replace(OPTIONS, nulls="no"), again=True)["tree"]
        }
        for name, value in (("coverage", "ungated"), ("cooccurrence", "iou"), ("hsae", "p_child_parent")):
            assert records[name].value[value + suffix] == alone[name].value[value]


def test_a_record_is_measured_again_only_if_its_nulls_are_asked_for(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(shutil.copytree(finished_run, tmp_path / "run"))
    samples: list[object] = []
    original = run_module.read_sample
    monkeypatch.setattr(run_module, "read_sample", lambda *given: samples.append(given) or original(*given))
    measure_run(run, NAMES, OPTIONS)
    measure_run(run, NAMES, OPTIONS)
    assert len(samples) == 1
    found = measure_run(run, ["coverage"], replace(OPTIONS, nulls="no"))["tree"][0]
    assert "mean_shuffled" not in found.value
    assert len(samples) == 1
    measure_run(run, ["reconstruction"], OPTIONS)
    assert len(samples) == 1


def test_the_forest_of_an_untrained_flat_sae_is_inferred_once(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: TrainConfig = replace(tiny_config(), sae=TopKConfig((48,), (5,), dead_after_tokens=512))
    run_training(config, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    built: list[object] = []
    start = nulls_module.start_training
    monkeypatch.setattr(nulls_module, "start_training", lambda *a, **b: built.append(a) or start(*a, **b))
    (first,) = measure_run(run, ["coverage"], OPTIONS)["topk"]
    assert len(built) == 1
    assert (run.untrained_forest("topk") / "forest.json").is_file()
    assert first.value["edges_measured"]
    assert first.value["mean_untrained"] is not None or "no edges" in first.null["mean_untrained"]
    assert first.value["mean_shuffled"] is not None
    assert first.value["mean_auc"] is not None
    over = first.value["mean_over_shuffled"]
    assert over is not None
    assert over > 0
    monkeypatch.setattr("saeforest.evaluation.forests._inferred", lambda *_: pytest.fail("inferred again"))
    (again,) = measure_run(run, ["coverage"], OPTIONS, again=True)["topk"]
    assert again.value == first.value


def test_activations_alone_have_nulls_too() -> None:
    x = activations(600)
    trained = saeforest.train(x, "tree", layer_sizes=(6, 12), k_per_layer=(2, 2), steps=20)
    value = saeforest.measure(trained, x, ["cooccurrence"])["cooccurrence"].value
    assert {f"iou{s}" for s in SUFFIXES[:4]} <= value.keys()
    flat = saeforest.train(x, "topk", layer_sizes=16, k_per_layer=3, steps=20)
    forest = Forest(torch.tensor([ROOT] * 4 + [i % 4 for i in range(12)]), (16,), layered=False)
    record = saeforest.measure(flat, x, ["cooccurrence"], forest=forest)["cooccurrence"]
    assert record.value["iou_shuffled"] is not None
    assert "forest was given" in record.null["iou_untrained"]


@pytest.mark.parametrize(
    ("sae", "shuffled"),
    [
        ("tree", {"mcs", "mcs_unconditional", "tree"}),
        ("hsae", {"mcs", "tree"}),
        ("topk", {"tree"}),
    ],
)
def test_what_ignores_the_forest_has_no_shuffled_null(sae: str, shuffled: set[str]) -> None:
    """It would be the value itself, and their difference 0 with an interval of no width."""
    x = activations(1500)
    sizes = {"tree": (6, 18), "hsae": (6, 18), "topk": 24}[sae]
    k = {"tree": (2, 2), "hsae": (3, 3), "topk": 4}[sae]
    trained = saeforest.train(x, sae, layer_sizes=sizes, k_per_layer=k, steps=20).sae
    parent = torch.tensor([ROOT] * 6 + [i % 6 for i in range(18)])
    forest = (
        trained.forest
        if sae == "tree"
        else Forest(parent, (6, 18) if sae == "hsae" else (24,), layered=sae == "hsae")
    )
    options = MeasureOptions(
        measures={"hierarchy": HierarchyConfig(min_count=10, parents=6)}, probes=ProbeConfig(epochs=1)
    )
    (record,) = saeforest.measure(trained, x, ["hierarchy"], forest=forest, options=options).values()
    of_mcs = ("error_rate", "mcs_stratified", "mean_over_parents_mcs", "variant_mcs_correlation")
    same_as = {"mcs": of_mcs, "mcs_unconditional": ("lda_mcs_unconditional",), "tree": ("lda_tree",)}
    for name, others in same_as.items():
        for one in (name, *others):
            why = record.null.get(f"{one}_shuffled", "")
            free = name not in shuffled and not (one == "error_rate" and sae != "topk")
            assert (why == FOREST_FREE) == free, (one, why)


def test_no_score_of_hierarchy_and_no_curve_is_without_its_nulls() -> None:
    x = activations(1500)
    sae = saeforest.train(x, "tree", layer_sizes=(6, 18), k_per_layer=(2, 2), steps=20).sae
    config = HierarchyConfig(min_count=10, parents=6, rank_curve=0)
    options = MeasureOptions(measures={"hierarchy": config}, probes=ProbeConfig(epochs=1))
    record = saeforest.measure(sae, x, ["hierarchy"], options=options)["hierarchy"]
    plain = saeforest.measure(sae, x, ["hierarchy"], options=replace(options, nulls="no"))["hierarchy"]
    own = set(plain.value)
    assert {"error_rate", "mcs_stratified", "variant_mcs_binary"} < own
    assert {name for name in own if f"{name}_shuffled" not in record.value} == {"tree_parents_share"}
    assert "of_nulls" not in plain.detail
    assert record.detail["of_nulls"].keys() == {"shuffled", "untrained"}

    # By hand: the SAE with other parents.
    other = with_parents(sae, shuffled_parents(sae.forest, fired(sae, x[:16_384])))
    alone = saeforest.measure(other, x, ["hierarchy"], options=replace(options, nulls="no"))["hierarchy"]
    assert record.detail["of_nulls"]["shuffled"] == {"curve": alone.detail["curve"]}
    for name in own - {"tree_parents_share"}:
        assert record.value[f"{name}_shuffled"] == alone.value[name]


def test_values_without_scores_of_edges_are_those_that_the_specification_names() -> None:
    """docs/spec/records.md#scores-of-edges; all other values with nulls have the AUC of their edges."""
    without = {
        "coverage": {"ungated_above_half", "ungated_above_nine_tenths"},
        "edges": {"features_in_copies"},
        "hsae": {"hamming", "hamming_per_active"},
        "graph": {
            *(
                "coverage_by_children",
                "children_active",
                "children_active_share",
                "sibling_cosine",
                "in_graph",
            ),
            *(f"{kind}_{of}" for kind in ("pearson", "spearman") for of in ("sum", "max")),
            *("graph_features", "graph_edges"),
        },
    }
    names = (
        "coverage",
        "reconstruction_score",
        "geometry",
        "cooccurrence",
        "mcs",
        "edges",
        "graph",
        "hsae",
        "hierarchy",
    )
    x = activations(1500)
    sae = saeforest.train(x, "tree", layer_sizes=(6, 18), k_per_layer=(2, 2), steps=20).sae
    options = MeasureOptions(
        measures={"hierarchy": HierarchyConfig(min_count=10, parents=6, rank_curve=0, variants=())},
        probes=ProbeConfig(epochs=1),
    )
    for name, record in saeforest.measure(sae, x, names, options=options).items():
        nulls = {value for value in MEASURES[name].nulls if value in record.value}
        found = {value for value in nulls if f"{value}_auc" in record.value}
        if name == "hierarchy":
            assert found == {"tree", "tree_unconditional", "lda_tree", "mean_tree", "s_res_tree"}
        else:
            assert nulls - found == without.get(name, set()), name
        for value in found:
            auc_of = record.value[f"{value}_auc"]
            assert auc_of is None or 0 <= auc_of <= 1
