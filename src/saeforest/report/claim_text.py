"""What became of the claims, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .load import Value
from .numbers import number
from .seed_groups import SeedGroup
from .verdict import Finding, Result, Verdict

# The share of an interval's misses that lie on one side.
_ONE_SIDED = 0.025


class ClaimRow(NamedTuple):
    """model: of the paper's numbers."""

    text: str
    source: str
    here: list[str]
    verdict: str
    paper: str
    model: str


def tally(results: Sequence[Result]) -> list[tuple[str, int]]:
    return [(verdict.value, sum(r.verdict is verdict for r in results)) for verdict in Verdict]


def how_judged(results: Sequence[Result]) -> list[str]:
    """What a verdict means and what it leaves out, in paragraphs."""
    open_ = (Verdict.MISSING, Verdict.NEEDS_NULL, Verdict.SAME_PAIRS)
    n_judged = sum(result.verdict not in open_ for result in results)
    return [
        "A claim holds if the 95 % interval of the difference lies on its side of zero, does not hold if it lies on "
        "the other, and is undecided otherwise. A count of one seed has no interval: there a difference of less than "
        "0.01 decides nothing. Values that were not measured alike, and SAEs of other sizes, L0, numbers of layers or "
        "lengths of training, are not compared.",
        f'"{Verdict.NEEDS_NULL.value}": the claim would also come out for an SAE that learned no hierarchy, for the '
        "reason that stands with it, so it needs the same score of that SAE beside it. "
        f'"{Verdict.SAME_PAIRS.value}": both sides count the same, and no amount of text decides.',
        f"{len(results)} claims were looked at and {n_judged} judged by intervals, without a correction for their "
        f"number: if no two SAEs differed, about {n_judged * _ONE_SIDED:.1g} would still hold by chance and as many "
        "not hold.",
        "The interval of a difference takes the two values as independent although they are of the same text: where "
        "most of an interval is the text's own variation it is too wide, and a claim is undecided that paired "
        "differences would decide. Most intervals resample context windows, of which a document spans several: these "
        "are too narrow. Those of composition, absorption, sparse probing and TPP hold what was fitted fixed, and "
        "are too narrow as well. With one seed each, a verdict is about these SAEs and not yet about their systems.",
        "The papers' numbers are of other models, larger dictionaries and far longer training; the settings that "
        "differ are listed beneath.",
    ]


def claim_row(result: Result) -> ClaimRow:
    model = result.claim.paper.trained if result.claim.paper else ""
    several = len(result.findings) > 1
    here = [finding_text(finding, several) for finding in result.findings]
    null = result.claim.null
    if null is not None and any(finding.verdict is null.verdict for finding in result.findings):
        here.append(null.why)
    return ClaimRow(
        result.claim.text,
        result.claim.source,
        here,
        result.verdict.value,
        result.paper,
        model,
    )


def finding_text(finding: Finding, several: bool = False) -> str:
    d = finding.difference
    compared = f"{number(finding.left_value.value)} against {number(finding.right_value.value)}"
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
    """Of how many of its seeds a value is, where not of all."""
    found = max(len(value.each), 1)
    return "" if value.value is None or found == group.n_seeds else f"of {found} of {group.n_seeds} seeds"
