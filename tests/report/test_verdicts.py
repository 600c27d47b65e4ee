"""How the report judges a claim: intervals, what is comparable, seeds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from report_cases import (
    BASELINE,
    HSAE,
    TOPK,
    TREE,
    groups_in,
    hierarchy,
    make_run,
    measured_as,
    record,
    sparsity,
)
from saeforest.report import claims
from saeforest.report.claim_text import finding_text
from saeforest.report.load import Value, load_runs
from saeforest.report.page import build_page
from saeforest.report.papers import papers
from saeforest.report.seed_groups import seed_groups
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
from saeforest.saes import (
    AllocationConfig,
)

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
    "t", "trees are higher", papers()["1-tree-sae"], "Figure 4",
    Side("tree", "hierarchy", "tree"), ">", Side("topk", "hierarchy", "mcs"),
)  # fmt: skip


def test_a_claim_is_checked_on_the_nearest_l0_with_the_papers_numbers(tmp_path: Path) -> None:
    groups = groups_in(
        tmp_path / "run",
        {
            "tree": (TREE, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
            "near": (TOPK, 0, [sparsity(4.2), hierarchy(None, 0.1)]),
            "far": (replace(TOPK, k_per_layer=(8,)), 0, [sparsity(8.0), hierarchy(None, 0.95)]),
        },
    )
    result = check(HIGHER, groups)
    assert result.verdict is Verdict.HOLDS
    (finding,) = result.findings
    assert finding.right is not None
    assert finding.right.label == "near"
    assert finding.difference == pytest.approx(
        (0.7, 0.7 - math.hypot(0.05, 0.05), 0.7 + math.hypot(0.05, 0.05))
    )
    assert result.paper == (  # of 2 layers, as here
        "0.7, 0.63, 0.58, 0.8 (2 layers) vs. 0.17, 0.12, 0.08, 0.22, at L0 32, 48, 64, 80"
    )
    three = replace(TREE, layer_sizes=(4, 4, 8), k_per_layer=(2, 1, 1))
    other = groups_in(
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
        groups = groups_in(
            tmp_path / str(i),
            {
                "tree": (TREE, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
                "topk": (system, 0, [sparsity(l0), hierarchy(None, 0.1)]),
            },
        )
        result = check(HIGHER, groups)
        assert result.verdict is Verdict.UNDECIDED
        assert result.findings[0].note == f"not comparable: {why}"


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("reading", "ref_tree_sae"),
        ("positions", {"exclude_first": False}),
        ("data", "other"),
        ("split", "train"),
        ("tokens_read", 2000),
        ("context", 64),
        ("prepend_bos", True),
        ("model_fingerprint", "xxh3:2"),
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
    one = groups_in(tmp_path / "one", {"tree": trees["tree-seed-0"], **topk})
    result = check(HIGHER, one)
    assert result.verdict is Verdict.UNDECIDED
    assert result.findings[0].note == f"not comparable: measured differently ({key})"
    seeds = groups_in(tmp_path / "seeds", trees)[0].value("hierarchy", "tree")
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
    assert check(HIGHER, groups_in(tmp_path / "run", saes)).verdict is Verdict.HOLDS


@pytest.mark.parametrize("how", [{"prepend_bos": False}, {"model_fingerprint": "xxh3:1"}])
def test_older_records_are_compared_with_newer_ones(tmp_path: Path, how: dict[str, Any]) -> None:
    made = measured_as(hierarchy(None, 0.1))
    older = replace(made, settings={key: value for key, value in made.settings.items() if key not in how})
    saes = {
        "tree": (TREE, 0, [sparsity(4.0), measured_as(hierarchy(0.8, 0.5), **how)]),
        "topk": (TOPK, 0, [sparsity(4.0), older]),
    }
    assert check(HIGHER, groups_in(tmp_path / "run", saes)).verdict is Verdict.HOLDS


def test_losses_on_more_of_the_text_are_not_compared(tmp_path: Path) -> None:
    saes = {
        name: (system, 0, [sparsity(4.0), measured_as(record("cross_entropy", {"spliced": (loss, 0.1)}, tokens))])
        for name, system, loss, tokens in (("tree", TREE, 3.0, 500), ("topk", TOPK, 4.0, 900))
    }  # fmt: skip
    left, right = (Side(kind, "cross_entropy", "spliced") for kind in ("tree", "topk"))
    lower = replace(HIGHER, left=left, relation="<", right=right)
    (finding,) = check(lower, groups_in(tmp_path / "run", saes)).findings
    assert finding.note == "not comparable: measured differently (tokens)"


def test_what_is_not_comparable_does_not_count_beside_what_is(tmp_path: Path) -> None:
    big = replace(TREE, layer_sizes=(8, 24))
    saes = {
        "tree": (TREE, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
        "big": (big, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
        "topk": (TOPK, 0, [sparsity(4.0), hierarchy(None, 0.1)]),
    }
    result = check(HIGHER, groups_in(tmp_path / "run", saes))
    assert [f.verdict for f in result.findings] == [Verdict.HOLDS, Verdict.UNDECIDED]
    assert result.verdict is Verdict.HOLDS
    text = finding_text(result.findings[1], several=True)
    assert text.endswith(" undecided: not comparable: 32 and 16 features.")


@pytest.mark.parametrize(
    ("end", "verdict", "note"),
    [
        (0.2, Verdict.HOLDS, "counts of a single seed on both sides"),
        (0.09, Verdict.UNDECIDED, "counts of a single seed on both sides; the difference is below 0.01"),
        (0.08, Verdict.UNDECIDED, "counts of a single seed on both sides; the difference is below 0.01"),
        (0.01, Verdict.FAILS, "counts of a single seed on both sides"),
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
    (claim,) = (c for c in claims.claims() if c.left.measure == "dead_training")
    result = check(claim, groups_in(tmp_path / "run", saes))
    assert (result.verdict, result.findings[0].note) == (verdict, note)


def test_hsaes_variance_explained_is_the_papers(tmp_path: Path) -> None:
    """docs/spec/reconstruction.md#fve: explained_variance_legacy."""
    saes = {
        name: (system, 0, [
            sparsity(8.0), record("reconstruction", {"fve": (0.5, 0.001), "fve_legacy": (legacy, 0.001)}),
            record("hsae", {"hamming": (3.0, 0.1)}),
        ])
        for name, system, legacy in (("h", HSAE, 0.711), ("b", BASELINE, 0.714))
    }  # fmt: skip
    run = make_run(tmp_path / "run", saes)
    (claim,) = (c for c in claims.claims() if c.left.kind == "hsae" and c.left.measure == "reconstruction")
    (finding,) = check(claim, seed_groups(load_runs([run]))).findings
    assert finding.left_value.value == 0.711
    assert "explained_variance_legacy" in claim.text
    page, _ = build_page(load_runs([run]), [run], tmp_path / "out")
    (table,) = (t for t in page.paper_tables if "Levels" in t.title)
    assert [row[2].text for row in table.rows[:2]] == ["0.7110", "0.7140"]
    assert "explained_variance_legacy" in table.note
    assert (
        next(row[2].text for row in table.rows if row[0].text == "paper: HSAE, gemma-2-2b, layer 13")
        == "0.713"
    )


def test_missing_systems_and_values_are_named(tmp_path: Path) -> None:
    alone = groups_in(tmp_path / "a", {"tree": (TREE, 0, [hierarchy(0.8, 0.5)])})
    assert (check(HIGHER, alone).verdict, check(HIGHER, alone).why) == (
        Verdict.MISSING,
        "no TopK among the runs",
    )
    unmeasured = groups_in(
        tmp_path / "b", {"tree": (TREE, 0, [hierarchy(0.8, 0.5)]), "topk": (TOPK, 0, [sparsity(4.0)])}
    )
    assert check(HIGHER, unmeasured).why == "topk: hierarchy was not measured"
    undefined = groups_in(
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
    groups = groups_in(
        tmp_path / "run",
        {
            "tree": (TREE, 0, [hierarchy(0.8, 0.6, variants=variants), record("cooccurrence", {"iou": (0.02, 0.004)})]),
            "topk": (TOPK, 0, [hierarchy(None, 0.1, rank_curve={"cos_parent": [0.5, 0.4, 0.3, 0.2, 0.15, 0.1]})]),
        },
    )  # fmt: skip
    found = {(r.claim.left.value, r.claim.source): r for r in claims.check_all(groups) if r.findings}
    assert found["iou", "Tree SAE paper, Table 3"].verdict is Verdict.HOLDS
    trend = found["rank_trend", "Tree SAE paper, Figure 13"]
    assert trend.findings[0].left_value.value == pytest.approx(-1)
    assert (trend.verdict, trend.findings[0].note) == (Verdict.UNDECIDED, "no interval")
    variant = found["variant_mcs_binary", "Tree SAE paper, Figure 16"]
    assert variant.findings[0].difference == pytest.approx((0.3, 0.2, 0.4))
    assert variant.paper.startswith("0.74, 0.66, 0.53, 0.48 (2 layers) vs. 0.56")


def test_the_papers_own_numbers_bear_out_its_claims() -> None:
    """Averaged over L0, as its text reads its figures; but TopK's variance explained is below Matryoshka's nowhere."""
    checked = 0
    for claim in claims.claims():
        if claim.paper is None or not isinstance(claim.right, Side):
            continue
        reported = claim.paper_value
        a, b = (
            claim.paper.series(side.measure, reported.value if reported else side.value).get(
                (side.kind, max(claim.paper.layers_of(side.kind), default=1)), ()
            )
            for side in (claim.left, claim.right)
        )
        if not a or not b:
            continue
        checked += 1
        d = float(np.mean(a) - np.mean(b))
        holds = {">": d > 0, "<": d < 0, "=": abs(d) < claim.margin}[
            reported.relation if reported else claim.relation
        ]
        assert holds, claim.text
    assert checked >= 20
