"""What a claim needs beside it to be decided, with whom an SAE is compared, and where settings are not the papers'."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from report_cases import (
    BASELINE,
    HSAE,
    MATRYOSHKA,
    PURSUIT,
    TOPK,
    TREE,
    groups_in,
    hierarchy,
    make_run,
    record,
    sparsity,
)
from saeforest.config import save_config
from saeforest.evaluation.null_values import FOREST_FREE
from saeforest.measures import Record, Replicates
from saeforest.presets import PRESETS
from saeforest.report import claims, compare
from saeforest.report.claim_text import how_judged
from saeforest.report.deviations import deviations
from saeforest.report.load import Value, load_runs
from saeforest.report.page import build_page
from saeforest.report.seed_groups import SeedGroup, seed_groups
from saeforest.report.verdict import Claim, Null, Result, Side, Verdict, check, difference, partners
from saeforest.saes import AllocationConfig, BatchTopKConfig

TREE_4 = replace(TREE, layer_sizes=(2, 2, 4, 8), k_per_layer=(1, 1, 1, 1))
MATRYOSHKA_4 = replace(MATRYOSHKA, layer_sizes=(2, 2, 4, 8))


def found_in(groups: list[SeedGroup], left: str, right: str) -> list[Result]:
    """What became of the claims about these values of hierarchy, as left and right side."""
    return [
        result
        for result in claims.check_all(groups)
        if result.claim.left.value == left
        and isinstance(result.claim.right, Side)
        and result.claim.right.value == right
        and result.findings
    ]


# -- claims that an untrained tree meets


def gated_and_flat(tmp_path: Path) -> list[SeedGroup]:
    """A tree with 4 layers, ahead of flat SAEs by every score of hierarchy."""
    variants = {
        name: {"value": value, "interval": [value - 0.02, value + 0.02]}
        for name, value in (("mcs_binary", 0.9), ("mcs_correlation", 0.3))
    }
    tree = hierarchy(0.9, 0.9, variants=variants)
    k = {
        name: record("mcs", {"k_all_pairs": (value, 0.001)})
        for name, value in (("tree", 0.03), ("topk", 0.06))
    }
    return groups_in(
        tmp_path / "run",
        {
            "tree": (TREE_4, 0, [sparsity(4.0), tree, k["tree"]]),
            "topk": (TOPK, 0, [sparsity(4.0), hierarchy(None, 0.1), k["topk"]]),
            "matryoshka": (MATRYOSHKA_4, 0, [sparsity(4.0), hierarchy(None, 0.1)]),
            "mp": (PURSUIT, 0, [sparsity(4.0), hierarchy(None, 0.01)]),
        },
    )


def test_what_a_gate_alone_gives_does_not_hold_before_its_null_is_measured(tmp_path: Path) -> None:
    groups = gated_and_flat(tmp_path)
    gated = [
        *found_in(groups, "tree", "mcs"),
        *found_in(groups, "mcs", "mcs"),
        *found_in(groups, "mcs_unconditional", "mcs_unconditional"),
        *found_in(groups, "variant_mcs_binary", "variant_mcs_correlation"),
        *found_in(groups, "k_all_pairs", "k_all_pairs"),
    ]
    against = [
        r
        for r in gated
        if isinstance(r.claim.right, Side) and r.claim.right != Side("tree", "hierarchy", "mcs", 4)
    ]
    assert len(against) == 3 + 2 + 2 + 1 + 1
    for result in against:
        assert result.verdict is Verdict.NEEDS_NULL, result.claim.text
        assert "Deciding this takes" in (result.claim.null or Null("")).why
    assert not any(result.verdict is Verdict.HOLDS for result in claims.check_all(groups))


def test_the_same_pairs_twice_decide_nothing(tmp_path: Path) -> None:
    groups = gated_and_flat(tmp_path)
    (within,) = (
        r for r in found_in(groups, "tree", "mcs") if r.claim.right == Side("tree", "hierarchy", "mcs", 4)
    )
    assert within.verdict is Verdict.SAME_PAIRS


def test_a_claim_that_fails_even_so_fails(tmp_path: Path) -> None:
    saes = {
        "tree": (TREE, 0, [sparsity(4.0), hierarchy(0.1, 0.1)]),
        "topk": (TOPK, 0, [sparsity(4.0), hierarchy(None, 0.9)]),
    }
    (result,) = found_in(groups_in(tmp_path / "run", saes), "tree", "mcs")
    assert result.verdict is Verdict.FAILS


@pytest.mark.usefixtures("undrawn")
def test_the_report_says_what_is_needed(tmp_path: Path) -> None:
    saes = {
        "tree": (TREE, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
        "topk": (TOPK, 0, [sparsity(4.0), hierarchy(None, 0.1)]),
    }
    run = make_run(tmp_path / "run", saes)
    compare([run], tmp_path / "out")
    values = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    edges = values["claims"][0]
    assert edges["verdict"] == "not decided: needs a control"
    assert edges["null"].startswith("A child of a Tree SAE fires only where its parent does")
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "not decided: needs a control" in text
        assert edges["null"] in text.replace("&#39;", "'")
        assert "without having learned a hierarchy" in text
    assert "v-not-decided-needs-a-control" in text


# -- cross-entropy


def losses(spliced: float, score: float) -> list[Record]:
    """The text's variation is in both losses, and cancels in the score."""
    return [
        sparsity(4.0),
        record("cross_entropy", {"spliced": (spliced, 0.115), "ce_loss_score": (score, 0.003)}),
    ]


def test_the_order_by_cross_entropy_is_judged_by_the_score(tmp_path: Path) -> None:
    saes = {
        "tree": (TREE, 0, losses(3.334, 0.971)),
        "topk": (TOPK, 0, losses(3.221, 0.9857)),
        "mp": (PURSUIT, 0, losses(3.172, 0.992)),
    }
    results = [
        r for r in claims.check_all(groups_in(tmp_path / "run", saes))
        if r.claim.left.measure == "cross_entropy" and r.findings
    ]  # fmt: skip
    assert {r.claim.left.kind: r.verdict for r in results} == {
        "matching_pursuit": Verdict.HOLDS,
        "tree": Verdict.FAILS,
    }
    assert all("CE loss score" in r.claim.text for r in results)
    (tree,) = (r for r in results if r.claim.left.kind == "tree")
    assert tree.paper.startswith(
        "3.901, 3.873, 3.862, 3.857 (2 layers) vs. 3.939, 3.932, 3.925, 3.917, in nats"
    )


# -- with whom an SAE is compared


def test_other_numbers_of_layers_are_not_compared_without_a_word(tmp_path: Path) -> None:
    saes = {
        "tree-2": (TREE, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
        "tree-4": (TREE_4, 0, [sparsity(4.0), hierarchy(0.8, 0.5)]),
        "matryoshka-4": (MATRYOSHKA_4, 0, [sparsity(4.0), hierarchy(None, 0.1)]),
    }
    (result,) = found_in(groups_in(tmp_path / "run", saes), "tree", "mcs")[:1]
    assert [(f.left.label, f.right and f.right.label, f.verdict) for f in result.findings] == [
        ("tree-2", "matryoshka-4", Verdict.UNDECIDED),
        ("tree-4", "matryoshka-4", Verdict.NEEDS_NULL),
    ]
    assert result.findings[0].note == "not comparable: 2 and 4 layers"
    assert result.verdict is Verdict.NEEDS_NULL  # by the one that can be compared


def test_partners(tmp_path: Path) -> None:
    saes = {
        "tree-2": (TREE, 0, [sparsity(4.0)]),
        "tree-2-far": (replace(TREE, k_per_layer=(4, 4)), 0, [sparsity(8.0)]),
        "tree-4": (TREE_4, 0, [sparsity(4.0)]),
        "topk": (TOPK, 0, [sparsity(4.0)]),
        "m-4": (MATRYOSHKA_4, 0, [sparsity(4.0)]),
    }
    groups = groups_in(tmp_path / "run", saes)
    by_label = {s.label: s for s in groups}
    trees = [s for s in groups if s.system.kind == "tree"]

    def labels(of: str, among: list[SeedGroup]) -> list[str]:
        return [s.label for s in partners(by_label[of], among)]

    assert labels("topk", trees) == ["tree-2", "tree-4"]  # one of each number of layers, the nearest in L0
    assert labels("m-4", trees) == ["tree-4"]
    assert labels("tree-4", [by_label["topk"]]) == ["topk"]
    assert labels("tree-2", [by_label["m-4"]]) == ["m-4"]  # and `not_comparable` says so
    assert labels("tree-2", []) == []


@pytest.mark.parametrize(
    ("fixed", "verdict", "note"),
    [
        (AllocationConfig(first=0), Verdict.HOLDS, "counts of a single seed on both sides"),
        (
            AllocationConfig(root_reset_at=0.0), Verdict.UNDECIDED,
            "not comparable: the reset to the root also differs (root_reset_at 0.512 and 0)",
        ),
    ],
)  # fmt: skip
def test_reallocation_is_told_from_the_root_reset(
    tmp_path: Path, fixed: AllocationConfig, verdict: Verdict, note: str
) -> None:
    saes = {
        "with": (TREE, 0, [record("dead_training", {"end": 0.05})]),
        "without": (replace(TREE, allocation=fixed), 0, [record("dead_training", {"end": 0.25})]),
    }
    (claim,) = (c for c in claims.claims() if c.left.measure == "dead_training")
    (finding,) = check(claim, groups_in(tmp_path / "run", saes)).findings
    assert (finding.verdict, finding.note) == (verdict, note)


# -- the papers' settings


def test_settings_that_differ_from_the_papers_are_listed(tmp_path: Path) -> None:
    fixed = replace(TREE_4, allocation=AllocationConfig(first=3000, cap=10_000, root_reset_at=0.0))
    saes = {
        "tree": (TREE, 0, [sparsity(4.0)]),
        "fixed": (fixed, 0, []),
        "topk": (replace(TOPK, layer_sizes=(64,), k_per_layer=(48,)), 0, []),
        "hsae": (replace(HSAE, layer_sizes=(50, 60, 70, 80), k_per_layer=(50,) * 4, constraint=0.1), 0, []),
        "base": (BASELINE, 0, []),  # of two levels: the paper has none
        "batch": (BatchTopKConfig(layer_sizes=(16,), k_per_layer=(4,)), 0, []),
    }
    run = make_run(tmp_path / "run", saes)
    groups = seed_groups(load_runs([run]))
    rows = {row.label: row for row in deviations(groups)}
    assert {label: row.preset for label, row in rows.items()} == {
        "tree": "tree-2layer-6k",  # of the same L0, or near it
        "fixed": "tree-4layer-6k",
        "topk": "topk-l0-48",
        "hsae": "hsae",
    }
    assert "root_reset_at 0 (0.512)" in rows["fixed"].sae
    assert "constraint 0.1 (0.01)" in rows["hsae"].sae
    assert "layer_sizes 4, 12 (1536, 4608)" in rows["tree"].sae
    assert "model gpt-tiny (gpt2)" in rows["tree"].reads
    assert "exclude_first true (false)" in rows["tree"].reads
    assert "batch_size 64 (5,120)" in rows["tree"].optim
    page, _ = build_page(load_runs([run]), [run], tmp_path / "out")
    assert [row[0].text for row in page.deviations.rows] == list(rows)


def test_a_preset_of_the_paper_differs_in_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    save_config(PRESETS["tree-4layer-l0-64"], run / "config.yaml")
    sparsity(64.0).write(run / "eval" / "sparsity.json")
    (row,) = deviations(seed_groups(load_runs([run])))
    assert row[1:] == ("tree-4layer-l0-64", "", "", "")


# -- what is said of the verdicts


def test_the_number_of_claims_is_said(tmp_path: Path) -> None:
    results = claims.check_all(gated_and_flat(tmp_path))
    text = " ".join(how_judged(results))
    judged = sum(r.verdict not in (Verdict.MISSING, Verdict.NEEDS_NULL, Verdict.SAME_PAIRS) for r in results)
    assert f"{len(claims.claims())} claims were checked, {judged} of them by intervals" in text
    assert "None of them has a p-value" in text


def test_agreement_of_levels_is_also_shown_by_active_feature(tmp_path: Path) -> None:
    """Of a tree with few children a parent the plain distance is small, whatever they do."""
    values = {"hamming": (8.6, 0.01), "hamming_per_active": (0.9, 0.01)}
    run = make_run(tmp_path / "run", {"tree": (TREE, 0, [sparsity(4.0), record("hsae", values)])})
    page, _ = build_page(load_runs([run]), [run], tmp_path / "out")
    (block,) = (table for table in page.summary if table.title.startswith("Agreement"))
    assert "Hamming distance per active feature ↓" in block.head
    assert "0.9000" in [cell.text for cell in block.rows[0]]
    assert "1 by construction" in block.note


# -- nulls that were measured


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ((0.3, 0.3), Verdict.HOLDS),
        ((0.3, 0.1), Verdict.UNDECIDED),  # no more over the untrained SAE than the flat one
        ((0.0, 0.0), Verdict.FAILS),
    ],
)
def test_a_measured_null_decides_what_a_gate_alone_gives(
    tmp_path: Path, over: tuple[float, float], expected: Verdict
) -> None:
    def with_over(made: Record, name: str, by: tuple[float, float]) -> Record:
        given = dict(zip((f"{name}_over_shuffled", f"{name}_over_untrained"), by, strict=True))
        return replace(
            made,
            value=made.value | given,
            interval=made.interval | {n: (x - 0.03, x + 0.03) for n, x in given.items()},
        )

    groups = groups_in(
        tmp_path / "run",
        {
            "tree": (TREE_4, 0, [sparsity(4.0), with_over(hierarchy(0.9, 0.9), "tree", over)]),
            "topk": (TOPK, 0, [sparsity(4.0), with_over(hierarchy(None, 0.1), "mcs", (0.1, 0.1))]),
        },
    )
    (finding,) = (
        finding
        for result in found_in(groups, "tree", "mcs")
        for finding in result.findings
        if finding.right is not None and finding.right.system.kind == "topk"
    )
    assert finding.verdict is expected
    assert finding.note == "by what each side has over its nulls"


@pytest.mark.parametrize(
    ("over", "margin", "expected"),
    [
        ((0.30, 0.30), 0.1, Verdict.HOLDS),
        ((0.45, 0.30), 0.1, Verdict.FAILS),
        ((0.34, 0.30), 0.05, Verdict.UNDECIDED),
    ],
)
def test_about_equal_keeps_its_margin_over_nulls(
    tmp_path: Path, over: tuple[float, float], margin: float, expected: Verdict
) -> None:
    def made(by: float) -> Record:
        given = {f"iou{suffix}": by for suffix in ("_over_shuffled", "_over_untrained")}
        return record("cooccurrence", {"iou": (0.5, 0.01)} | {name: (x, 0.01) for name, x in given.items()})

    groups = groups_in(
        tmp_path / "run",
        {
            "tree": (TREE_4, 0, [sparsity(4.0), made(over[0])]),
            "topk": (TOPK, 0, [sparsity(4.0), made(over[1])]),
        },
    )
    sides = (Side(kind, "cooccurrence", "iou") for kind in ("tree", "topk"))
    equal = Claim("t", "as much", None, "", next(sides), "=", next(sides), margin=margin, null=Null("gate"))
    (finding,) = check(equal, groups).findings
    assert finding.verdict is expected
    assert finding.note == "by what each side has over its nulls"


@pytest.mark.parametrize(("over", "expected"), [((0.3, 0.3), Verdict.HOLDS), ((0.0, 0.3), Verdict.UNDECIDED)])
def test_what_ignores_the_forest_exceeds_shuffled_parents_by_nothing(
    tmp_path: Path, over: tuple[float, float], expected: Verdict
) -> None:
    """The hits by MCS of a flat SAE, with which the paper compares the edges of a tree."""
    of_tree = {
        "tree": (0.9, 0.05),
        "tree_over_shuffled": (over[0], 0.05),
        "tree_over_untrained": (over[1], 0.05),
    }
    of_flat = {"mcs": (0.1, 0.05), "mcs_over_shuffled": FOREST_FREE, "mcs_over_untrained": (0.05, 0.05)}
    groups = groups_in(
        tmp_path / "run",
        {
            "tree": (TREE_4, 0, [sparsity(4.0), record("hierarchy", of_tree)]),
            "topk": (TOPK, 0, [sparsity(4.0), record("hierarchy", of_flat)]),
        },
    )
    (finding,) = (
        finding
        for result in found_in(groups, "tree", "mcs")
        for finding in result.findings
        if finding.right is not None and finding.right.system.kind == "topk"
    )
    assert finding.verdict is expected
    assert finding.note == "by what each side has over its nulls"


def test_saes_of_one_text_are_compared_resample_by_resample() -> None:
    shared = np.random.default_rng(0).normal(size=1000)

    def value(of: float, text: str, units: str = "documents a") -> Value:
        drawn = Replicates(units, of + shared)
        return Value(of, (of - 2, of + 2), replicates=drawn, text=text)

    low, high = difference(value(1.25, "t"), value(1.0, "t"))[1:]
    assert (low, high) == pytest.approx((0.25, 0.25))
    # Independent: the replicates of one side in random order.
    wide = 0.25 + np.percentile(shared - np.random.default_rng(1).permutation(shared), (2.5, 97.5))
    for a, b in (("t", "u"), ("", "")):
        assert difference(value(1.25, a), value(1.0, b))[1:] == pytest.approx(tuple(wide), abs=1e-4)
    apart = difference(value(1.25, "t"), value(1.0, "t", "documents b"))
    assert apart[1:] == pytest.approx(tuple(wide), abs=1e-4)
    bare = value(1.0, "t")._replace(replicates=None)
    assert difference(value(1.25, "t"), bare)[1:] == pytest.approx(
        (0.25 - 8**0.5, 0.25 + 8**0.5)
    )  # square and add
