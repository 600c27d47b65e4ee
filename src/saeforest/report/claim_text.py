"""The verdicts on the papers' claims, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .correction import LEVEL, holm
from .load import Value
from .numbers import number
from .seed_groups import SeedGroup
from .verdict import Finding, Result, Verdict

# Probability that a 95% interval misses the true value on a given side.
_ONE_SIDED = 0.025


class ClaimRow(NamedTuple):
    """A row of the table of claims.

    here: the comparisons made here, a line each. corrected: the verdict after the correction for the number of claims.
    paper: the paper's numbers; model: the model they are of.
    """

    text: str
    source: str
    here: list[str]
    verdict: str
    corrected: str
    paper: str
    model: str


def tally(results: Sequence[Result]) -> list[tuple[str, int]]:
    """The number of claims with each verdict."""
    return [(verdict.value, sum(r.verdict is verdict for r in results)) for verdict in Verdict]


def how_judged(results: Sequence[Result]) -> list[str]:
    """What the verdicts mean and what they leave out, in paragraphs."""
    open_ = (Verdict.MISSING, Verdict.NEEDS_NULL, Verdict.SAME_PAIRS)
    n_judged = sum(result.verdict not in open_ for result in results)
    return [
        "A claim holds if the 95% interval of the difference lies entirely on the claimed side of zero, does not hold "
        "if it lies entirely on the other side, and is undecided otherwise. A count from a single seed has no "
        "interval; a difference of less than 0.01 then decides nothing. Values that were measured differently are not "
        "compared, nor are SAEs that differ in size, L0, number of layers or length of training.",
        f'"{Verdict.NEEDS_NULL.value}": an SAE that learned no hierarchy would also satisfy the claim, for the reason '
        "given with it, so the same score of such an SAE is needed as a control. "
        f'"{Verdict.SAME_PAIRS.value}": both sides count the same pairs, and no amount of text can decide.',
        f"{len(results)} claims were checked, {n_judged} of them by intervals, each alone: if no two SAEs differed, "
        f"about {n_judged * _ONE_SIDED:.1g} would hold by chance, and as many not hold. {_corrected(results)}",
        "Values measured on the same documents of one text are compared resample by resample, which removes what the "
        "text does to both. Otherwise, and for means over several seeds, the interval of a difference treats the two "
        "values as independent, and may be too wide. A text of few documents is resampled by context windows, which "
        "gives intervals that are too narrow. Those of composition, absorption, sparse probing and TPP "
        "keep fitted quantities fixed and are also too narrow. With one seed each, a verdict is about these SAEs, not "
        "about their architectures.",
        "The papers' numbers come from other models, larger dictionaries and far longer training; the settings that "
        "differ are listed below.",
    ]


def _corrected(results: Sequence[Result]) -> str:
    """How many claims are decided before and after the correction for their number."""
    corrected = holm([result.p for result in results])
    n = sum(p is not None for p in corrected)
    if n == 0:
        return "None of them has a p-value, so they could not be corrected for their number."
    hold, fail = Verdict.HOLDS, Verdict.FAILS
    made = list(zip(results, corrected, strict=True))
    before = {verdict: sum(result.verdict is verdict for result in results) for verdict in (hold, fail)}
    after = {verdict: sum(corrected_verdict(*one) is verdict for one in made) for verdict in (hold, fail)}
    without = sum(result.verdict in (hold, fail) and p is None for result, p in made)
    text = (
        f"{before[hold]} hold and {before[fail]} do not. Corrected for the number of claims with a p-value, {n}, by "
        f"Holm's method at {LEVEL:.0%}: {after[hold]} hold and {after[fail]} do not. "
        "The verdicts below are those before the correction, each with the corrected one beside it."
    )
    if without:
        text += f" {without} of the decided claims have no p-value: counts, or values without replicates."
    return text


def claim_row(result: Result, corrected: float | None = None) -> ClaimRow:
    """A claim and its verdict as a row of the table of claims. corrected: its p-value by Holm's method."""
    model = result.claim.paper.trained if result.claim.paper else ""
    several = len(result.findings) > 1
    here = [finding_text(finding, several) for finding in result.findings]
    if result.p is not None and corrected is not None:
        here.append(f"p = {result.p:.2g}.")
    null = result.claim.null
    if null is not None and any(finding.verdict is null.verdict for finding in result.findings):
        here.append(null.why)
    return ClaimRow(
        result.claim.text,
        result.claim.source,
        here,
        result.verdict.value,
        _after_correction(result, corrected),
        result.paper,
        model,
    )


def _after_correction(result: Result, corrected: float | None) -> str:
    """The verdict after the correction for the number of claims; empty where intervals decide nothing anyway."""
    decided = corrected_verdict(result, corrected)
    if decided is not None:
        return f"corrected for the number of claims: {decided.value} (p = {corrected:.2g})"
    if result.verdict in (Verdict.HOLDS, Verdict.FAILS, Verdict.MIXED):
        return "not corrected for the number of claims: it has no p-value"
    return ""


def corrected_verdict(result: Result, corrected: float | None) -> Verdict | None:
    """The verdict on a claim after the correction; None if it has no p-value. corrected: that p-value."""
    if corrected is None:
        return None
    return result.verdict if corrected <= LEVEL else Verdict.UNDECIDED


def finding_text(finding: Finding, several: bool = False) -> str:
    """One comparison in words. several: whether the claim has several, so that each needs its own verdict."""
    d = finding.difference
    compared = f"{number(finding.left_value.value)} vs. {number(finding.right_value.value)}"
    measured = finding.left_value.interval or finding.right_value.interval
    bounds = f", {number(d.lower)} to {number(d.upper)}" if measured else ""
    sides = [(finding.left, finding.left_value)]
    if finding.right is not None and finding.right is not finding.left:
        sides.append((finding.right, finding.right_value))
    who = " and ".join(
        f"{group.label}, {seeds}" if (seeds := fewer(group, value)) else group.label for group, value in sides
    )
    said = [finding.verdict.value, finding.note] if finding.note else [finding.verdict.value] * several
    verdict = f" {': '.join(said)}." if said else ""
    return f"{who}: {compared} (difference {number(d.value)}{bounds}).{verdict}"


def fewer(group: SeedGroup, value: Value) -> str:
    """How many of the seeds have the value, if not all."""
    found = max(len(value.each), 1)
    return "" if value.value is None or found == group.n_seeds else f"{found} of {group.n_seeds} seeds"
