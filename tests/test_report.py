"""The report: what it reads, how it judges, and that what it writes is whole, escaped and of the right numbers."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saeforest.config import MemberConfig, OptimConfig, TrainConfig, save_config
from saeforest.errors import UserError
from saeforest.measures import Record
from saeforest.report import claims, compare, curves, figures, paper
from saeforest.report.gallery import compare_figures
from saeforest.report.load import Setting, Value, load_runs, settings_of
from saeforest.report.page import build_page, finding_text, number
from saeforest.report.style import styled
from saeforest.report.verdict import (
    Claim,
    Difference,
    Side,
    Verdict,
    check,
    difference,
    judge,
    together,
)
from saeforest.report.write import markdown
from saeforest.saes import (
    AllocationConfig,
    HierarchyConfig,
    HSAEConfig,
    MatchingPursuitConfig,
    MatryoshkaConfig,
    SystemConfig,
    TopKConfig,
    TreeConfig,
)

TREE = TreeConfig(layer_sizes=(4, 12), k_per_layer=(3, 1))
TOPK = TopKConfig(layer_sizes=(16,), k_per_layer=(4,))
MATRYOSHKA = MatryoshkaConfig(layer_sizes=(4, 12), k_per_layer=(4,))
PURSUIT = MatchingPursuitConfig(layer_sizes=(16,), k_per_layer=(4,))
HSAE = HSAEConfig(layer_sizes=(4, 12), k_per_layer=(4, 4))
BASELINE = replace(HSAE, constraint=0.0, perturbation=0.0, hierarchy=HierarchyConfig(updates="after"))

# name of a value -> the value, with half the width of its interval
Given = Mapping[str, float | tuple[float, float] | str]


def record(measure: str, values: Given, tokens: int = 1000, **detail: Any) -> Record:
    """A text instead of a number says why there is none."""
    value: dict[str, float | None] = {}
    interval: dict[str, Any] = {}
    null: dict[str, str] = {}
    for name, given in values.items():
        if isinstance(given, str):
            value[name], interval[name], null[name] = None, None, given
        elif isinstance(given, tuple):
            value[name], interval[name] = given[0], (given[0] - given[1], given[0] + given[1])
        else:
            value[name], interval[name] = given, None
    settings = {"model": "m", "tokens_read": tokens, "interval_method": "95% percentile bootstrap"}
    return Record(measure, value, interval, "fraction", tokens, settings, {"null": null, **detail})


def make_run(
    folder: Path,
    saes: Mapping[str, tuple[SystemConfig, int, Sequence[Record]]],
    logs: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    **config: Any,
) -> Path:
    """A run folder with SAEs by name: system, seed, records. The single SAE of a run has an empty name."""
    base = TrainConfig(
        model="gpt-tiny",
        tokens=4096,
        epochs=2,
        optim=OptimConfig(batch_size=64, precision="float32"),
        **config,
    )
    folder.mkdir(parents=True)
    if "" in saes:
        system, seed, _ = saes[""]
        base = replace(base, sae=system, seed=seed)
    else:
        base = replace(base, saes={n: MemberConfig(s, base.optim, seed) for n, (s, seed, _) in saes.items()})
    save_config(base, folder / "config.yaml")
    for name, (_, _, records) in saes.items():
        for made in records:
            place = folder / "eval" / name / f"{made.measure}.json"
            place.parent.mkdir(parents=True, exist_ok=True)
            made.write(place)
    for name, lines in (logs or {}).items():
        place = (folder / "logs" / name if name else folder) / "log.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def settings_in(
    folder: Path, saes: Mapping[str, tuple[SystemConfig, int, Sequence[Record]]]
) -> list[Setting]:
    return settings_of(load_runs([make_run(folder, saes)]))


def hierarchy(tree: float | None, mcs: float, half: float = 0.05, **detail: Any) -> Record:
    values: dict[str, Any] = {"mcs": (mcs, half), "mcs_unconditional": (mcs * 0.8, half)}
    values["tree"] = "flat" if tree is None else (tree, half)
    return record("hierarchy", values, **detail)


def sparsity(l0: float) -> Record:
    return record("sparsity", {"l0": l0})


LOG = [
    {"event": "harvest", "step": 0},
    {"step": 1, "tokens": 64, "dead": [0, 0]},
    {"event": "reallocation", "step": 5, "layer": 1, "moved": 3},
    {"event": "reallocation", "step": 6, "layer": 1, "moved": 0},
    {"step": 10, "tokens": 640, "dead": [1, 6]},
    {"event": "root_reset", "step": 15, "layer": 1, "moved": 2},
    {"step": 20, "tokens": 1280, "dead": [0, 3]},
]


@pytest.fixture(autouse=True)
def in_style() -> Iterator[None]:
    with styled():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several systems with most of what a report can show. Shared: copy it before changing anything in it."""
    tmp_path = tmp_path_factory.mktemp("module")
    detail = {
        "curve": {"tree": [[1, 1.0], [10, 0.9], [40, 0.7]], "mcs": [[1, 1.0], [10, 0.5], [50, 0.3]]},
        "rank_curve": {"parents": 7, "cos_parent": list(np.linspace(0.5, 0.1, 20)), "hit": []},
        "variants": {
            name: {"value": value, "interval": [value - 0.03, value + 0.03], "pairs": 9}
            for name, value in (("mcs_binary", 0.6), ("mcs_correlation", 0.3))
        },
    }
    return make_run(
        tmp_path / "runs" / "<script>alert(1)<script> & `x` | $y$",
        {
            "tree": (TREE, 0, [sparsity(3.9), hierarchy(0.8, 0.5, **detail), record("mcs", {"k_all_pairs": 0.04})]),
            "topk": (TOPK, 0, [sparsity(4.0), hierarchy(None, 0.1, **detail)]),
            "mp": (PURSUIT, 0, [sparsity(3.8), hierarchy(None, 0.01)]),
        },
        {"tree": LOG},
    )  # fmt: skip


# -- verdicts


def test_the_interval_of_a_difference_is_zous() -> None:
    d = difference(Value(0.8, (0.7, 0.85)), Value(0.5, (0.46, 0.62)))
    assert d.value == pytest.approx(0.3)
    assert d.lower == pytest.approx(0.3 - math.sqrt(0.1**2 + 0.12**2))
    assert d.upper == pytest.approx(0.3 + math.sqrt(0.05**2 + 0.04**2))
    assert difference(Value(2.0), Value(0.5, (0.4, 0.7))) == pytest.approx((1.5, 1.3, 1.6))


@pytest.mark.parametrize(
    ("d", "relation", "margin", "verdict"),
    [
        ((0.3, 0.1, 0.5), ">", 0.0, Verdict.HOLDS),
        ((0.3, 0.1, 0.5), "<", 0.0, Verdict.FAILS),
        ((-0.3, -0.5, -0.1), "<", 0.0, Verdict.HOLDS),
        ((-0.3, -0.5, -0.1), ">", 0.0, Verdict.FAILS),
        ((0.3, -0.1, 0.5), ">", 0.0, Verdict.UNDECIDED),
        ((0.0, 0.0, 0.0), ">", 0.0, Verdict.UNDECIDED),  # a tie of exact values
        ((0.0, 0.0, 0.0), "<", 0.0, Verdict.UNDECIDED),
        ((0.002, -0.005, 0.009), "=", 0.01, Verdict.HOLDS),
        ((0.002, -0.005, 0.011), "=", 0.01, Verdict.UNDECIDED),
        ((0.02, 0.015, 0.025), "=", 0.01, Verdict.FAILS),
        ((-0.02, -0.025, -0.015), "=", 0.01, Verdict.FAILS),
    ],
)
def test_a_verdict_follows_from_the_interval(
    d: tuple[float, float, float], relation: Any, margin: float, verdict: Verdict
) -> None:
    assert judge(Difference(*d), relation, margin) is verdict


def test_several_pairs_must_agree() -> None:
    holds, fails, open_ = Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED
    assert together([]) is Verdict.MISSING
    assert together([holds, holds]) is holds
    assert together([fails, fails]) is fails
    assert together([holds, open_]) is open_
    assert together([fails, open_]) is open_
    assert together([holds, fails, open_]) is Verdict.MIXED


HIGHER = Claim(
    "t", "trees are higher", "Tree SAE paper, Figure 4",
    Side("tree", "hierarchy", "tree"), ">", Side("topk", "hierarchy", "mcs"),
)  # fmt: skip


def test_a_claim_is_checked_on_the_nearest_l0_with_the_papers_numbers(tmp_path: Path) -> None:
    settings = settings_in(
        tmp_path / "run",
        {
            "tree": (TREE, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
            "near": (TOPK, 0, [sparsity(4.2), hierarchy(None, 0.1)]),
            "far": (replace(TOPK, k_per_layer=(8,)), 0, [sparsity(8.0), hierarchy(None, 0.95)]),
        },
    )
    result = check(HIGHER, settings)
    assert result.verdict is Verdict.HOLDS
    (finding,) = result.findings
    assert finding.right is not None
    assert finding.right.label == "near"
    assert finding.difference == pytest.approx(
        (0.7, 0.7 - math.hypot(0.05, 0.05), 0.7 + math.hypot(0.05, 0.05))
    )
    assert result.paper == (  # of 2 layers, as here
        "0.7, 0.63, 0.58, 0.8 (2 layers) against 0.17, 0.12, 0.08, 0.22, at L0 32, 48, 64, 80"
    )
    three = replace(TREE, layer_sizes=(4, 4, 8), k_per_layer=(2, 1, 1))
    other = settings_in(
        tmp_path / "other",
        {
            "tree": (three, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
            "topk": (TOPK, 0, [sparsity(4.0), hierarchy(None, 0.1)]),
        },
    )
    assert check(HIGHER, other).verdict is Verdict.HOLDS
    assert check(HIGHER, other).paper == ""  # nothing of 3 layers


def test_what_is_not_comparable_is_undecided(tmp_path: Path) -> None:
    bigger = replace(TOPK, layer_sizes=(32,))
    for i, (system, l0, why) in enumerate(
        [(TOPK, 8.0, "L0 4.0 and 8.0"), (bigger, 4.0, "16 and 32 features")]
    ):
        settings = settings_in(
            tmp_path / str(i),
            {
                "tree": (TREE, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
                "topk": (system, 0, [sparsity(l0), hierarchy(None, 0.1)]),
            },
        )
        result = check(HIGHER, settings)
        assert result.verdict is Verdict.UNDECIDED
        assert result.findings[0].note == f"not comparable: {why}"


HOW: dict[str, Any] = {
    "reading": "recommended",
    "positions": {"exclude_first": True},
    "data": "packaged",
    "split": "held_out",
    "tokens_read": 1000,
    "context": 128,
    "lm_dtype": "float32",
    "config": {"parents": 100, "seed": 0, "judge": {"timeout": 1}},
    "probe": {"epochs": 5, "seed": 0},
    "judge": "a",
    "seed": 0,
    "sae": "sae/a",
    "forest": "its own",
    "version": "1",
    "key": "a",
    "batch": "16 windows",
}


def measured_as(made: Record, **how: Any) -> Record:
    return replace(made, settings={**made.settings, **HOW, **how})


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("reading", "ref_tree_sae"),
        ("positions", {"exclude_first": False}),
        ("data", "other"),
        ("split", "train"),
        ("tokens_read", 2000),
        ("context", 64),
        ("lm_dtype", "bfloat16"),
        ("config", {"parents": 50, "seed": 0}),
        ("probe", {"epochs": 6, "seed": 0}),
        ("judge", "b"),
    ],
)
def test_values_measured_differently_are_not_compared(tmp_path: Path, key: str, other: Any) -> None:
    trees = {
        f"tree-seed-{seed}": (TREE, seed, [sparsity(4.0), measured_as(hierarchy(0.8, 0.5), **how)])
        for seed, how in enumerate(({}, {key: other}))
    }
    topk = {"topk": (TOPK, 0, [sparsity(4.0), measured_as(hierarchy(None, 0.1), **{key: other})])}
    one = settings_in(tmp_path / "one", {"tree": trees["tree-seed-0"], **topk})
    result = check(HIGHER, one)
    assert result.verdict is Verdict.UNDECIDED
    assert result.findings[0].note == f"not comparable: measured differently ({key})"
    seeds = settings_in(tmp_path / "seeds", trees)[0].value("hierarchy", "tree")
    assert (seeds.value, seeds.why) == (
        None,
        f"not comparable: the seeds were measured differently ({key})",
    )


def test_what_names_the_sae_does_not_keep_it_from_being_compared(tmp_path: Path) -> None:
    names = ("seed", "sae", "forest", "version", "key", "batch")
    config = {"parents": 100, "seed": 7, "judge": {"timeout": 2}}
    other = measured_as(hierarchy(None, 0.1), **dict.fromkeys(names, "other"), config=config)
    saes = {
        "tree": (TREE, 0, [sparsity(4.0), measured_as(hierarchy(0.8, 0.5))]),
        "topk": (TOPK, 0, [sparsity(4.0), other]),
    }
    assert check(HIGHER, settings_in(tmp_path / "run", saes)).verdict is Verdict.HOLDS


def test_losses_on_more_of_the_text_are_not_compared(tmp_path: Path) -> None:
    saes = {
        name: (system, 0, [sparsity(4.0), measured_as(record("cross_entropy", {"spliced": (loss, 0.1)}, tokens))])
        for name, system, loss, tokens in (("tree", TREE, 3.0, 500), ("topk", TOPK, 4.0, 900))
    }  # fmt: skip
    left, right = (Side(kind, "cross_entropy", "spliced") for kind in ("tree", "topk"))
    lower = replace(HIGHER, left=left, relation="<", right=right)
    (finding,) = check(lower, settings_in(tmp_path / "run", saes)).findings
    assert finding.note == "not comparable: measured differently (tokens)"


def test_what_is_not_comparable_does_not_count_beside_what_is(tmp_path: Path) -> None:
    big = replace(TREE, layer_sizes=(8, 24))
    saes = {
        "tree": (TREE, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
        "big": (big, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
        "topk": (TOPK, 0, [sparsity(4.0), hierarchy(None, 0.1)]),
    }
    result = check(HIGHER, settings_in(tmp_path / "run", saes))
    assert [f.verdict for f in result.findings] == [Verdict.HOLDS, Verdict.UNDECIDED]
    assert result.verdict is Verdict.HOLDS
    text = finding_text(result.findings[1], several=True)
    assert text.endswith(" undecided: not comparable: 32 and 16 features.")


@pytest.mark.parametrize(
    ("end", "verdict", "note"),
    [
        (0.2, Verdict.HOLDS, "a count, one seed each"),
        (0.09, Verdict.UNDECIDED, "a count, one seed each; too little below 0.01"),
        (0.08, Verdict.UNDECIDED, "a count, one seed each; too little below 0.01"),
        (0.01, Verdict.FAILS, "a count, one seed each"),
    ],
)
def test_counts_of_one_seed_must_differ_by_something(
    tmp_path: Path, end: float, verdict: Verdict, note: str
) -> None:
    fixed = replace(TREE, allocation=AllocationConfig(first=0))
    saes = {
        "with": (TREE, 0, [record("dead_training", {"end": 0.085})]),
        "without": (fixed, 0, [record("dead_training", {"end": end})]),
    }
    (claim,) = (c for c in claims.CLAIMS if c.left.measure == "dead_training")
    result = check(claim, settings_in(tmp_path / "run", saes))
    assert (result.verdict, result.findings[0].note) == (verdict, note)


def test_hsaes_variance_explained_is_the_papers(tmp_path: Path) -> None:
    """SPEC 6.2: explained_variance_legacy."""
    saes = {
        name: (system, 0, [
            sparsity(8.0), record("reconstruction", {"fve": (0.5, 0.001), "fve_legacy": (legacy, 0.001)}),
            record("hsae", {"hamming": (3.0, 0.1)}),
        ])
        for name, system, legacy in (("h", HSAE, 0.711), ("b", BASELINE, 0.714))
    }  # fmt: skip
    run = make_run(tmp_path / "run", saes)
    (claim,) = (c for c in claims.CLAIMS if c.left.kind == "hsae" and c.left.measure == "reconstruction")
    (finding,) = check(claim, settings_of(load_runs([run]))).findings
    assert finding.left_value.value == 0.711
    assert "explained_variance_legacy" in claim.text
    page, _ = build_page(load_runs([run]), [run], tmp_path / "out")
    (table,) = (t for t in page.paper_tables if "Levels" in t.title)
    assert [row[2].text for row in table.rows[:2]] == ["0.7110", "0.7140"]
    assert "explained_variance_legacy" in table.note
    assert paper.numbers("reconstruction", "fve_legacy", ("hsae", 1))[1] == 0.713
    assert paper.numbers("reconstruction", "fve", ("hsae", 1)) == ()


def test_missing_systems_and_values_are_named(tmp_path: Path) -> None:
    alone = settings_in(tmp_path / "a", {"tree": (TREE, 0, [hierarchy(0.8, 0.5)])})
    assert (check(HIGHER, alone).verdict, check(HIGHER, alone).why) == (
        Verdict.MISSING,
        "no TopK among the runs",
    )
    unmeasured = settings_in(
        tmp_path / "b", {"tree": (TREE, 0, [hierarchy(0.8, 0.5)]), "topk": (TOPK, 0, [sparsity(4.0)])}
    )
    assert check(HIGHER, unmeasured).why == "topk: hierarchy was not measured"
    undefined = settings_in(
        tmp_path / "c",
        {
            "tree": (TREE, 0, [record("hierarchy", {"tree": "no parent has a child"})]),
            "topk": (TOPK, 0, [hierarchy(None, 0.1)]),
        },
    )
    assert check(HIGHER, undefined).why == "tree: no parent has a child"


def test_claims_within_one_sae_and_against_a_number(tmp_path: Path) -> None:
    variants = {
        "mcs_binary": {"value": 0.6, "interval": [0.5, 0.7]},
        "mcs_correlation": {"value": 0.3, "interval": None},
    }
    settings = settings_in(
        tmp_path / "run",
        {
            "tree": (TREE, 0, [hierarchy(0.8, 0.6, variants=variants), record("cooccurrence", {"iou": (0.02, 0.004)})]),
            "topk": (TOPK, 0, [hierarchy(None, 0.1, rank_curve={"cos_parent": [0.5, 0.4, 0.3, 0.2, 0.15, 0.1]})]),
        },
    )  # fmt: skip
    found = {(r.claim.left.value, r.claim.source): r for r in claims.check_all(settings) if r.findings}
    assert found["iou", "Tree SAE paper, Table 3"].verdict is Verdict.HOLDS
    trend = found["rank_trend", "Tree SAE paper, Figure 13"]
    assert trend.findings[0].left_value.value == pytest.approx(-1)
    assert (trend.verdict, trend.findings[0].note) == (Verdict.UNDECIDED, "no interval")
    variant = found["variant_mcs_binary", "Tree SAE paper, Figure 16"]
    assert variant.findings[0].difference == pytest.approx((0.3, 0.2, 0.4))
    assert variant.paper.startswith("0.74, 0.66, 0.53, 0.48 (2 layers) against 0.56")


def test_the_papers_own_numbers_bear_out_its_claims() -> None:
    """Averaged over L0, as its text reads its figures; but TopK's variance explained is below Matryoshka's nowhere."""
    checked = 0
    for claim in claims.CLAIMS:
        if not claim.in_paper or not isinstance(claim.right, Side) or claim.left.kind in paper.HSAE_TABLE:
            continue
        a, b = (
            paper.numbers(
                side.measure, side.value, (side.kind, 4 if side.kind in ("tree", "matryoshka") else 1)
            )
            for side in (claim.left, claim.right)
        )
        if not a or not b:
            continue
        checked += 1
        d = float(np.mean(a) - np.mean(b))
        holds = {">": d > 0, "<": d < 0, "=": abs(d) < claim.margin}[claim.relation]
        assert holds, claim.text
    assert checked >= 20


# -- seeds


def test_seeds_are_averaged_and_their_spread_widens_the_interval(tmp_path: Path) -> None:
    values = (0.70, 0.80, 0.84)
    saes = {f"tree-seed-{i}": (TREE, i, [hierarchy(v, 0.5)]) for i, v in enumerate(values)}
    (setting,) = settings_in(tmp_path / "run", saes)
    assert setting.label == "tree (3 seeds)"
    found = setting.value("hierarchy", "tree")
    assert found.value == pytest.approx(np.mean(values))
    assert found.each == pytest.approx(values)
    spread = 4.302653 * np.std(values, ddof=1) / math.sqrt(3)  # Student's t, 2 degrees of freedom
    assert found.interval is not None
    assert found.interval[0] == pytest.approx(np.mean(values) - math.hypot(0.05, spread))
    assert found.interval[1] == pytest.approx(np.mean(values) + math.hypot(0.05, spread))


def test_the_same_seed_twice_is_one_seed(tmp_path: Path) -> None:
    records = [hierarchy(0.8, 0.5)]
    twice = [make_run(tmp_path / name, {"": (TREE, 0, records)}) for name in ("a", "b")]
    (setting,) = settings_of(load_runs(twice))
    assert setting.label == "a"
    assert setting.value("hierarchy", "tree") == setting.first.value("hierarchy", "tree")
    other = make_run(tmp_path / "c", {"": (TREE, 1, [hierarchy(0.7, 0.5)])})
    (setting,) = settings_of(load_runs([*twice, other]))
    assert setting.label == "a (2 seeds)"
    assert setting.value("hierarchy", "tree").each == (0.8, 0.7)


def test_a_mean_of_fewer_seeds_says_so(tmp_path: Path) -> None:
    saes: dict[str, tuple[SystemConfig, int, list[Record]]] = {
        f"tree-seed-{i}": (TREE, i, [sparsity(4.0), *([hierarchy(0.8, 0.5)] if i < 2 else [])])
        for i in range(3)
    }
    saes["topk"] = (TOPK, 0, [sparsity(4.0), hierarchy(None, 0.1)])
    run = make_run(tmp_path / "run", saes)
    page, results = build_page(load_runs([run]), [run], tmp_path / "out")
    block = next(table for table in page.summary if table.title.startswith("Hierarchy"))
    (mean,) = (row for row in block.rows if row[0].tone == "mean")
    assert mean[0].text == "mean of 3 seeds"
    assert mean[1].small.endswith("; of 2 of 3 seeds")
    sparse = next(table for table in page.summary if table.title.startswith("Reconstruction"))
    (whole,) = (row for row in sparse.rows if row[0].tone == "mean")
    assert "seeds" not in whole[1].small
    finding = next(r.findings[0] for r in results if r.findings)
    assert finding_text(finding).startswith("tree (3 seeds), of 2 of 3 seeds and topk: ")


def test_only_seeds_make_one_setting(tmp_path: Path) -> None:
    other = replace(TREE, allocation=AllocationConfig(first=0))
    saes = {"a": (TREE, 0, [sparsity(4.0)]), "b": (TREE, 1, []), "c": (other, 0, [])}
    settings = settings_in(tmp_path / "run", saes)
    assert [len(s.entries) for s in settings] == [2, 1]
    assert [s.system.title for s in settings] == [
        "Tree SAE, 2 layers",
        "Tree SAE without reallocation, 2 layers",
    ]
    assert settings[0].value("sparsity", "l0").value == 4.0  # of the one seed that has it


def test_systems_are_told_apart(tmp_path: Path) -> None:
    saes = {
        "h": (HSAE, 0, [sparsity(8.0)]),
        "b": (BASELINE, 0, []),
        "m": (MATRYOSHKA, 0, []),
        "p": (PURSUIT, 0, []),
    }
    settings = settings_in(tmp_path / "run", saes)
    assert [s.system.kind for s in settings] == ["hsae", "hsae-baseline", "matryoshka", "matching_pursuit"]


# -- reading


def test_labels_name_one_sae_each(tmp_path: Path) -> None:
    saes = {"tree": (TREE, 0, [sparsity(4.0)]), "topk": (TOPK, 0, [])}
    one, two = make_run(tmp_path / "x" / "run", saes), make_run(tmp_path / "y" / "run", saes)
    labels = [entry.label for entry in load_runs([one, two, tmp_path / "x" / ".." / "x" / "run"])]
    assert labels == ["x/run/tree", "x/run/topk", "y/run/tree", "y/run/topk"]
    assert [entry.label for entry in load_runs([one])] == ["tree", "topk"]
    single = make_run(tmp_path / "single", {"": (TREE, 0, [sparsity(4.0)])})
    assert [entry.label for entry in load_runs([single])] == ["single"]


def test_what_cannot_be_compared_is_one_clear_line(tmp_path: Path, run: Path) -> None:
    bare = make_run(tmp_path / "bare", {"": (TREE, 0, [])})
    with pytest.raises(UserError, match=r"bare: nothing was measured yet; first run `saeforest eval .*bare`"):
        compare([bare], tmp_path / "out")
    with pytest.raises(UserError, match=r"no config\.yaml; expected a run folder"):
        compare([tmp_path], tmp_path / "out")
    with pytest.raises(UserError, match="one run folder or more"):
        compare([], tmp_path / "out")
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        compare([run], used)
    assert [path.name for path in used.iterdir()] == ["file"]
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "eval" / "tree" / "hierarchy.json").write_text('{"measure": "hierarchy"}')
    with pytest.raises(UserError, match=r"hierarchy\.json: not the record of a measure"):
        compare([damaged], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    inside = run / "eval" / "report"
    with pytest.raises(UserError, match=r"lies in the run .*; choose another --out"):
        compare([run], inside)
    assert not inside.exists()


def test_a_config_beside_the_report_is_no_run(tmp_path: Path, fast_run: Path) -> None:
    shutil.copy(fast_run / "config.yaml", tmp_path / "config.yaml")
    compare([fast_run], tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()


GOOD: dict[str, Any] = {
    "measure": "hierarchy", "value": {"a": 1.0}, "interval": {"a": [0.5, 1.5]}, "unit": "u", "tokens": 3,
    "settings": {}, "detail": {"null": {}, "units": {}},
}  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        {"measure": 3}, {"value": []}, {"value": {"a": "1"}}, {"interval": []}, {"interval": {"a": []}},
        {"interval": {"a": "12"}}, {"unit": None}, {"tokens": "100"}, {"tokens": True}, {"tokens": 1.5},
        {"settings": None}, {"detail": []}, {"detail": {"null": []}}, {"detail": {"units": {"a": 1}}},
        {"detail": {"null": {"a": None}}}, {"detail": {"x": math.nan}}, {"value": {"a": 10**400}}, {"more": 1},
    ],
)  # fmt: skip
def test_a_record_of_wrong_types_is_damaged(tmp_path: Path, damage: dict[str, Any]) -> None:
    path = tmp_path / "hierarchy.json"
    path.write_text(json.dumps(GOOD))
    assert Record.read(path).interval == {"a": (0.5, 1.5)}
    path.write_text(json.dumps({**GOOD, **damage}))
    with pytest.raises(UserError, match=r"hierarchy\.json: not the record of a measure") as info:
        Record.read(path)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"record"'])
def test_a_record_that_is_no_object_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="not the record of a measure"):
        Record.read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("measure", "detail"),
    [
        ("hierarchy", {"rank_curve": [1]}),
        ("hierarchy", {"rank_curve": {"cos_parent": ["a", "b", "c", "d", "e"]}}),
        ("hierarchy", {"curve": {"tree": [[1, 2, 3]]}}),
        ("hierarchy", {"curve": "tree"}),
        ("hierarchy", {"variants": {"mcs_binary": {"value": "high"}}}),
        ("hierarchy", {"variants": {"mcs_binary": {"value": 0.5, "interval": 3}}}),
        ("dead_training", {"steps": [1, 2]}),
        ("dead_training", {"steps": [1], "tokens": [1], "rate": [[0], [0, 1]], "rate_all": [0], "reallocations": []}),
        ("geometry", {"families": {}, "umap": {"points": [["a", 1, 2]], "parents": [1]}}),
        ("geometry", {"families": None, "umap": {}}),
        ("reconstruction_score", {"focus": [3]}),
    ],
)  # fmt: skip
def test_damage_in_a_detail_is_one_line_that_names_the_file(
    tmp_path: Path, measure: str, detail: dict[str, Any]
) -> None:
    damaged = replace(record(measure, {"x": 1.0}), detail=detail)
    run = make_run(tmp_path / "run", {"": (TREE, 0, [damaged])})
    with pytest.raises(UserError, match=rf"run/eval/{measure}\.json: its detail lacks") as info:
        compare([run], tmp_path / "out")
    assert "\n" not in str(info.value)
    assert not (tmp_path / "out").exists()


def test_names_of_files_need_not_be_utf8(tmp_path: Path) -> None:
    run = make_run(Path(f"{tmp_path}/run-\udcff"), {"": (TOPK, 0, [sparsity(4.0)])})
    compare([run], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "run-?" in text
    assert "run-\N{REPLACEMENT CHARACTER}" in text


def test_the_commands_measure_as_it_was_measured(tmp_path: Path) -> None:
    judge = {"endpoint": "https://host/v1", "model": "a model", "timeout": 60.0}
    texts = {"train_texts": 4000, "tokens_read": 99_999}
    saes = {
        "tree": (TREE, 0, [
            measured_as(hierarchy(0.8, 0.5)),
            measured_as(sparsity(4.0)),
            measured_as(record("sparse_probing", {"sae_top_1": 0.5}), **texts),
            measured_as(record("absorption", {"splitting": 1.0}), reading="saebench_0.6"),
            measured_as(record("autointerp", {"autointerp_score": 0.5}), config={"judge": judge}),
        ]),
        "topk": (TOPK, 0, [measured_as(sparsity(4.0))]),
    }  # fmt: skip
    run = make_run(tmp_path / "run", saes)
    page, _ = build_page(load_runs([run]), [run], tmp_path / "out")
    assert [line.split(" --measures ")[1] for line in page.commands if " eval " in line] == [
        "absorption --tokens 1000 --preset saebench_0.6",
        "autointerp --tokens 1000 --judge.endpoint https://host/v1 --judge.model 'a model'",
        "hierarchy,sparsity --tokens 1000",
        "sparse_probing",
    ]
    shared = dict(page.shared) | dict(
        zip(page.compared.head, (c.text for c in page.compared.rows[0]), strict=True)
    )
    assert shared["reading"] == "recommended, saebench_0.6"
    assert shared["judge"] == "a"


def test_a_failure_leaves_nothing(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("full")

    monkeypatch.setattr("saeforest.report.write.render", fail)
    with pytest.raises(RuntimeError, match="full"):
        compare([run], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# -- writing


class Seen(HTMLParser):
    """Tags, attributes that load or link, and the text of a page; fails where tags are not closed in order."""

    VOID = ("meta", "img", "br", "wbr", "link", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [(tag, value or "") for key, value in attrs if key in ("src", "href", "srcset", "data")]
        self.ids += [value or "" for key, value in attrs if key == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def fast_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A single SAE with little measured."""
    records = [sparsity(4.1), record("dead", {"dead_share": 0.1})]
    return make_run(tmp_path_factory.mktemp("module") / "fast", {"": (MATRYOSHKA, 0, records)})


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, run: Path, fast_run: Path) -> Path:
    out = tmp_path_factory.mktemp("module") / "out"
    compare([run, fast_run], out)
    return out


def test_the_page_needs_nothing_beside_it(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    seen = Seen()
    seen.feed(page)
    assert not seen.open
    assert not {"script", "link", "iframe", "object"} & set(seen.tags)
    links = [value for _, value in seen.loads if not value.startswith(("data:image/svg+xml;base64,", "#"))]
    assert links == list(paper.LINKS.values())
    assert "url(" not in page
    assert "@import" not in page
    anchors = [value[1:] for _, value in seen.loads if value.startswith("#")]
    assert set(anchors) <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))


def test_names_are_data(out: Path) -> None:
    hostile = "<script>alert(1)<script> & `x` | $y$"
    seen = Seen()
    seen.feed((out / "report.html").read_text(encoding="utf-8"))
    assert f"{hostile}/tree" in seen.text
    text = (out / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"```.*?```", "", text, flags=re.S)
    assert "<script" not in outside
    assert "alert(1)" in outside
    assert markdown("a|b\n<i> `c` *d* [e](f) $g$") == (
        "a&#124;b &lt;i&gt; &#96;c&#96; &#42;d&#42; &#91;e&#93;(f) &#36;g&#36;"
    )
    values = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert "<script>alert(1)<script> & `x` | $y$/tree" in values["saes"]


def test_markdown_is_well_formed(out: Path) -> None:
    lines = (out / "report.md").read_text(encoding="utf-8").splitlines()
    tables = 0
    for i, line in enumerate(lines):
        if not line.startswith("|"):
            continue
        assert line.endswith("|")
        if not lines[i - 1].startswith("|"):  # a table's head: with a blank line before it, dashes beneath it
            assert lines[i - 1] == ""
            assert re.fullmatch(r"\|(---:?\|)+", lines[i + 1])
            tables += 1
        else:
            assert line.count("|") == lines[i - 1].count("|"), line
    assert tables > 8
    images = [name for line in lines for name in re.findall(r"!\[.*?\]\((.*?)\)", line)]
    assert len(images) >= 6
    assert all((out / name).is_file() for name in images)
    assert all("](http" not in line for line in lines if not line.startswith("The papers: "))


def test_the_json_holds_every_value(out: Path) -> None:
    written = json.loads((out / "report.json").read_text(encoding="utf-8"))
    tree = next(sae for label, sae in written["saes"].items() if label.endswith("/tree"))
    found = tree["measures"]["hierarchy"]["tree"]
    assert found == {
        "value": 0.8,
        "interval": [0.75, pytest.approx(0.85)],
        "tokens": 1000,
        "unit": "fraction",
    }
    topk = next(sae for label, sae in written["saes"].items() if label.endswith("/topk"))
    assert topk["measures"]["hierarchy"]["tree"]["null"] == "flat"
    assert all((out / name).is_file() for name in written["figures"])
    on_disk = {f"figures/{path.name}" for path in (out / "figures").iterdir()}
    assert set(written["figures"]) == on_disk
    assert len(written["claims"]) == len(claims.CLAIMS)


def test_undefined_values_are_dashes_with_a_footnote(out: Path) -> None:
    seen = Seen()
    seen.feed((out / "report.html").read_text(encoding="utf-8"))
    assert "flat" in seen.text
    assert "note-1" in seen.ids
    assert "Not measured: fast." in seen.text  # in the block on hierarchy


def test_reports_repeat_bit_for_bit(tmp_path: Path, run: Path, fast_run: Path, out: Path) -> None:
    again = tmp_path / "elsewhere" / "out"
    compare([run, fast_run], again)
    for path in (out / "figures").iterdir():
        assert path.read_bytes() == (again / "figures" / path.name).read_bytes(), path.name


def test_numbers_have_as_many_decimals_as_others_of_their_size() -> None:
    shown = [number(x) for x in (None, 0.09, -0.12345, 3.14159, 32.0, 128.26, 12345.6, 7, 0.0, 2e-5)]
    assert shown == ["–", "0.0900", "-0.1235", "3.142", "32.00", "128.3", "12,346", "7", "0.0000", "2.0e-05"]


# -- figures


def axes_of(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


def drawn_x(axes: Axes, n: int) -> list[float]:
    """Of the rows of a dot plot the values, from the marks of the error bars."""
    return [float(container[0].get_xdata()[0]) for container in axes.containers[:n]]  # pyright: ignore


def test_dots_stand_where_the_values_are(run: Path) -> None:
    settings = settings_of(load_runs([run]))
    panel = figures.compared(figures.SPECS[1], settings)
    assert not isinstance(panel, str)
    by_mcs = axes_of(panel.figure, "Hierarchy, by MCS")
    assert [label.get_text() for label in by_mcs.get_yticklabels()] == [
        "Tree SAE, 2 layers",
        "TopK",
        "Matching Pursuit",
    ]
    assert drawn_x(by_mcs, 3) == [0.5, 0.1, 0.01]
    segment = by_mcs.containers[0][2][0].get_segments()[0]  # pyright: ignore
    assert segment[:, 0] == pytest.approx([0.45, 0.55])
    by_tree = axes_of(panel.figure, "Hierarchy, by tree")
    assert len(by_tree.containers) == 1
    theirs = panel.figure.axes[3]
    assert theirs.get_title(loc="right") == "paper: GPT-2 small, 24,576 features"
    rows = {
        label.get_text(): line for label, line in zip(theirs.get_yticklabels(), theirs.lines, strict=True)
    }
    assert np.asarray(rows["Tree SAE, 4 layers"].get_xdata()).tolist() == [0.63, 0.63, 0.59, 0.57]
    assert rows["TopK"].get_markerfacecolor() == "none"
    assert "1,000 tokens" in panel.caption


def test_several_l0_make_lines_with_means_and_seeds(tmp_path: Path) -> None:
    saes = {
        f"topk-{k}-seed-{seed}": (
            replace(TOPK, k_per_layer=(k,)),
            seed,
            [sparsity(float(k)), record("composition", {"mean": 0.1 * k + 0.02 * seed})],
        )
        for k in (2, 4)
        for seed in (0, 1)
    }
    panel = figures.compared(figures.SPECS[0], settings_in(tmp_path / "run", saes))
    assert not isinstance(panel, str)
    axes = axes_of(panel.figure, "Composition")
    line = next(line for line in axes.lines if line.get_label() == "TopK")
    assert np.asarray(line.get_xdata()).tolist() == [2.0, 4.0]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([0.21, 0.41])
    seeds = [list(map(float, other.get_ydata())) for other in axes.lines if len(other.get_ydata()) == 2]  # pyright: ignore
    assert [0.2, pytest.approx(0.22)] in seeds
    mean = axes.lines[-1]
    assert mean.get_xdata()[0] > 4  # pyright: ignore
    assert mean.get_ydata()[0] == pytest.approx(0.31)  # pyright: ignore
    assert "Not measured: Feature splitting, Full absorption, AutoInterp." in panel.caption


def test_sizes_that_differ_in_l0_too_are_dots(tmp_path: Path) -> None:
    """A line along L0 holds one size: with one L0 of each, all but one would be lost."""
    saes = {
        f"topk-{size}": (
            replace(TOPK, layer_sizes=(size,)),
            0,
            [sparsity(l0), record("composition", {"mean": 0.1 * l0})],
        )
        for size, l0 in ((16, 4.0), (32, 8.0))
    }
    panel = figures.compared(figures.SPECS[0], settings_in(tmp_path / "run", saes))
    assert not isinstance(panel, str)
    assert drawn_x(axes_of(panel.figure, "Composition"), 2) == pytest.approx([0.4, 0.8])


def test_lines_by_size_take_one_l0_of_each(tmp_path: Path) -> None:
    big = replace(TREE, layer_sizes=(8, 24))
    saes = {
        "small": (TREE, 0, [sparsity(4.0), hierarchy(0.5, 0.4)]),
        "small-dense": (replace(TREE, k_per_layer=(4, 4)), 0, [sparsity(8.0), hierarchy(0.9, 0.4)]),
        "big": (big, 0, [sparsity(4.0), hierarchy(0.7, 0.4)]),
    }
    settings = settings_in(tmp_path / "run", saes)
    panel = figures.compared(figures.SPECS[2], settings)
    assert not isinstance(panel, str)
    line = next(
        line
        for line in axes_of(panel.figure, "Hierarchy, by tree").lines
        if line.get_label() == "Tree SAE, 2 layers"
    )
    assert np.asarray(line.get_xdata()).tolist() == [16, 32]
    assert np.asarray(line.get_ydata()).tolist() == [0.5, 0.7]
    one_size = [setting for setting in settings if setting.d_sae == 16]
    assert figures.compared(figures.SPECS[2], one_size) == "no system was trained in more than one size"


def test_the_curves_are_the_records(run: Path) -> None:
    settings = settings_of(load_runs([run]))
    rank = curves.rank_curve(settings)
    assert not isinstance(rank, str)
    assert np.asarray(rank.figure.axes[0].lines[0].get_ydata()).tolist() == pytest.approx(
        np.linspace(0.5, 0.1, 20)
    )
    precision = curves.precision(settings)
    assert not isinstance(precision, str)
    lines = {str(line.get_label()): line for line in precision.figure.axes[0].lines}
    assert list(lines) == ["Tree SAE, 2 layers, by its tree", "Tree SAE, 2 layers, by MCS", "TopK, by MCS"]
    assert np.asarray(lines["Tree SAE, 2 layers, by its tree"].get_xdata()).tolist() == [1, 10, 40]
    assert np.asarray(lines["TopK, by MCS"].get_ydata()).tolist() == [1.0, 0.5, 0.3]
    variants = curves.variants(settings)
    assert not isinstance(variants, str)
    assert drawn_x(axes_of(variants.figure, "Correlation MCS"), 1) == [0.3]
    assert not axes_of(variants.figure, "Scaled binary").containers


def test_dead_features_are_read_from_the_log(run: Path) -> None:
    settings = settings_of(load_runs([run]))
    panel = curves.dead_over_training(settings)
    assert not isinstance(panel, str)
    (axes,) = panel.figure.axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert np.asarray(lines["layer 0"].get_ydata()).tolist() == [0.0, 0.25, 0.0]
    assert np.asarray(lines["layer 1"].get_ydata()).tolist() == [0.0, 0.5, 0.25]
    moved = [line.get_xdata()[0] for line in axes.lines if str(line.get_label()).startswith("_")]  # pyright: ignore
    assert moved == [5, 15]


def test_panels_of_dead_features_share_an_axis_that_holds_them_all(run: Path) -> None:
    small, large = settings_of(load_runs([run])), settings_of(load_runs([run]))
    rates = small[0].entries[0].dead_rates
    assert rates is not None
    tenth = rates._replace(rate=[[rate / 10 for rate in layer] for layer in rates.rate])
    small[0].entries[0].__dict__["dead_rates"] = tenth
    panel = curves.dead_over_training([*small, *large])
    assert not isinstance(panel, str)
    assert all(axes.get_ylim()[1] >= 0.5 for axes in panel.figure.axes)


def test_figures_without_data_say_so(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "run", {"topk": (TOPK, 0, [sparsity(4.0)])})
    gallery = compare_figures(settings)
    assert gallery.panels == []
    assert len(gallery.skipped) == len(figures.SPECS) + len(curves.FIGURES)
    assert all(": n" in line or ": the" in line for line in gallery.skipped)
