"""p-values of claims, and Holm's correction for their number."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from report_cases import MATRYOSHKA, TOPK, TREE, make_run, record, sparsity
from saeforest.measures import Record, Replicates
from saeforest.report import compare
from saeforest.report.correction import holm, p_of
from saeforest.report.load import Value
from saeforest.report.verdict import difference


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
    # Paired: what the text does to both cancels.
    shared = np.random.default_rng(0).normal(size=999)
    x, y = drawn(list(shared + 0.1 + 0.01 * np.sin(np.arange(999)))), drawn(list(shared))
    paired, apart = (p_of(x, other, (0, 1)) for other in (y, y._replace(text="u")))
    assert paired is not None
    assert apart is not None
    assert paired < 1e-10 < 0.5 < apart


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
    assert "corrected for the number of claims:" in text
