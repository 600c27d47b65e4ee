"""p-values of claims, and Holm's correction for their number."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from report_cases import MATRYOSHKA, TOPK, TREE, make_run, record, sparsity
from saeforest.measures import Record, Replicates
from saeforest.report import compare
from saeforest.report.claim_text import claim_row, corrected_verdict
from saeforest.report.correction import LEVEL, holm, p_of
from saeforest.report.load import Value
from saeforest.report.verdict import Claim, Result, Side, Verdict, difference, judge


def drawn(values: list[float], text: str = "t", units: str = "documents a") -> Value:
    array = np.array(values)
    return Value(
        float(array.mean()), (array.min(), array.max()), "", 1000, "", (), Replicates(units, array), text
    )


def test_holm_by_hand() -> None:
    """0.01 * 4, 0.02 * 3, max(0.06, 0.03 * 2), 0.5 * 1."""
    assert holm([0.03, None, 0.01, 0.5, 0.02]) == pytest.approx([0.06, None, 0.04, 0.5, 0.06])
    assert holm([0.4, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


def test_replicates_are_counted() -> None:
    """7 of 99 differences are not above zero, and the measured value counts as one more: 2 * 8 / 100."""
    a, b = drawn([1.0] * 92 + [-1.0] * 7), drawn([0.0] * 99)
    assert p_of(a, b, difference(a, b)[1:]) == pytest.approx(0.16)
    # Against a number that the claim names.
    assert p_of(a, Value(0.0), (-1, 1)) == pytest.approx(0.16)
    assert p_of(Value(0.0), a, (-1, 1)) == pytest.approx(0.16)
    # Paired: what the text does to both cancels.
    shared = np.random.default_rng(0).normal(size=999)
    x, y = drawn(list(shared + 0.1 + 0.01 * np.sin(np.arange(999)))), drawn(list(shared))
    paired, apart = (p_of(x, other, (0, 1)) for other in (y, y._replace(text="u")))
    assert paired is not None
    assert apart is not None
    assert paired < 1e-10 < 0.5 < apart


@pytest.mark.parametrize("paired", [True, False], ids=["one text", "two texts"])
def test_what_is_decided_has_a_small_p_value(paired: bool) -> None:
    """Each side is below its own interval on 2 % of its replicates, but the difference has the wrong sign on 4 %."""
    a = drawn([1.0] * 980 + [-10.0] * 20)._replace(value=1.0, interval=(1.0, 1.0))
    b = drawn([10.0] * 20 + [0.0] * 980)._replace(value=0.0, interval=(0.0, 0.0))
    b = b if paired else b._replace(text="u")
    d = difference(a, b)
    p = p_of(a, b, d[1:])
    assert p is not None
    assert p > LEVEL
    assert judge(d, ">") is Verdict.UNDECIDED
    # A number that the claim names: by the same replicates too.
    far = p_of(a, Value(0.0), difference(a, Value(0.0))[1:])
    assert far is not None
    assert far <= LEVEL
    assert judge(difference(a, Value(0.0)), ">") is Verdict.HOLDS


def test_intervals_and_p_values_agree_on_random_replicates() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        shape = rng.uniform(0.3, 3)
        a = drawn(list(rng.uniform(0, 0.8) + 0.2 * rng.gamma(shape, size=1000)))
        b = drawn(list(0.2 * rng.gamma(shape, size=1000)), text="u")
        a, b = (v._replace(interval=tuple(np.percentile(v.replicates.drawn, (2.5, 97.5)))) for v in (a, b))
        d = difference(a, b)
        p = p_of(a, b, d[1:])
        assert p is not None
        # A percentile of 1000 replicates lies between two of them, so one of them may be on either side.
        assert p <= LEVEL + 2 / 1001 if judge(d, ">") is not Verdict.UNDECIDED else p >= LEVEL - 2 / 1001


def test_where_no_replicate_is_beyond_zero_their_spread_decides() -> None:
    array = np.random.default_rng(1).normal(4.0, 1.0, 1000)
    array = np.abs(array - 4.0) % 3.0 * np.sign(array - 4.0) + 4.0  # all above 1
    a = drawn(list(array))
    z = array.mean() / array.std()
    assert p_of(a, Value(0.0), (1, 7)) == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert math.erfc(z / math.sqrt(2)) < 2 / 1001


def test_about_equal_is_tested_on_both_sides() -> None:
    a = drawn([-0.5] * 3 + [0.0] * 90 + [0.5] * 6)
    assert p_of(a, Value(0.0), (-1, 1), 0.4) == pytest.approx(2 * 7 / 100)  # the 6 above 0.4
    far = drawn([1.0] * 95 + [0.2] * 4)
    assert p_of(far, Value(0.0), (0, 1), 0.4) == pytest.approx(2 * 5 / 100)  # the 4 below 0.4


def test_means_over_seeds_are_tested_by_t() -> None:
    each = (0.5, 0.9, 0.6)
    mean = sum(each) / 3
    spread = 4.302652729911275 * float(np.std(each, ddof=1)) / math.sqrt(3)
    a = Value(mean, (mean - spread, mean + spread), each=each)
    assert p_of(a, Value(0.0), (mean - spread, mean + spread)) == pytest.approx(ttest_1samp(each, 0.0)[1])
    assert (
        p_of(Value(1.0, (0.9, 1.1), tokens=9), Value(0.0), (0.9, 1.1)) is None
    )  # neither seeds nor replicates


def loss(score: float, spread: float) -> list[Record]:
    made = record("cross_entropy", {"ce_loss_score": (score, 2 * spread), "spliced": (3.0, 0.1)})
    noise = np.linspace(-2, 2, 1000)
    kept = {"ce_loss_score": Replicates("documents a", score + spread * noise)}
    return [sparsity(4.0), replace(made, replicates=kept, settings={**made.settings, "text": "t"})]


@pytest.mark.usefixtures("undrawn")
def test_the_report_says_how_many_hold_before_and_after(tmp_path: Path) -> None:
    saes = {"tree": (TREE, 0, loss(0.97, 0.001)), "topk": (TOPK, 0, loss(0.96, 0.002)),
            "matryoshka": (MATRYOSHKA, 0, loss(0.5, 0.002))}  # fmt: skip
    compare([make_run(tmp_path / "run", saes)], tmp_path / "out")
    claims = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["claims"]
    corrected = [claim for claim in claims if claim["p"] is not None]
    assert corrected
    assert [c["p_corrected"] for c in corrected] == pytest.approx(holm([c["p"] for c in corrected]))
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"the number of claims with a p-value, {len(corrected)}, by Holm" in text.replace("&#39;", "'")
    shown = re.findall(r"\*\*(.+?)\*\*<br>corrected for the number of claims: (.+?) \(p = ([^)]+)\)", text)
    assert len(shown) == len(corrected)
    for (before, after, p), claim in zip(shown, corrected, strict=True):
        assert (before, after) == (claim["verdict"], claim["verdict_corrected"])
        assert after == (before if float(p) <= LEVEL else "undecided")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert html.count("<small>corrected for the number of claims:") == len(corrected)


def test_a_verdict_that_the_number_of_claims_undoes_is_said_to_be_undecided() -> None:
    claim = Claim("t", "more", None, "", Side("tree", "m", "x"), ">", 0.0)
    holds = Result(claim, [], Verdict.HOLDS, "", "")
    assert corrected_verdict(holds, 0.2) is Verdict.UNDECIDED
    assert corrected_verdict(holds, 0.04) is Verdict.HOLDS
    assert corrected_verdict(holds, None) is None
    assert claim_row(holds, None).corrected == "not corrected for the number of claims: it has no p-value"
    assert claim_row(holds, 0.2).corrected == "corrected for the number of claims: undecided (p = 0.2)"
