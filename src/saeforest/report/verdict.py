"""Claims and how they are judged: each compares two values, and their intervals decide.

The interval of a difference a - b combines those of a and b (Zou & Donner's square-and-add):

    lower = (a - b) - sqrt((a - a_lo)^2 + (b_hi - b)^2),    upper = (a - b) + sqrt((a_hi - a)^2 + (b - b_lo)^2)

It takes a and b as independent. Here both are measured on the same text, so it is rather too wide than too narrow. A
claim holds if all of the interval has the right sign, does not hold if all of it has the wrong one, and is undecided
otherwise; "about equal" holds if all of the interval lies within the margin. A count of one seed has no interval: a
difference of less than 0.01 decides nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

from . import paper
from .load import Setting, Value, differently, kind_title

# SAEs whose L0 or training differ by more than this share are not compared.
_COMPARABLE = 0.25
# Counts over everything there is to count. Any other value without an interval has too few units to have one.
_EXACT = ("dead", "dead_training")
# By how much two such counts must differ: absolute, for they are shares.
_LEAST_OF_COUNTS = 0.01
_NOT_COMPARABLE = "not comparable"


Relation = Literal[">", "<", "="]


class Verdict(StrEnum):
    HOLDS = "holds"
    FAILS = "does not hold"
    MIXED = "holds for some"
    UNDECIDED = "undecided"
    MISSING = "not measured"


class Side(NamedTuple):
    """A value of every SAE of a kind; `layers`: only of those with so many."""

    kind: str
    measure: str
    value: str
    layers: int | None = None

    def of(self, settings: Iterable[Setting]) -> list[Setting]:
        return [s for s in settings if s.system.kind == self.kind and self.layers in (None, s.system.layers)]


@dataclass(frozen=True)
class Claim:
    """`left` stands in `relation` to `right`, a value of another kind of SAE, of the same SAE, or a number.

    paper: its numbers, where `numbers` does not know them. margin: of "about equal".
    """

    topic: str
    text: str
    source: str
    left: Side
    relation: Relation
    right: Side | float
    paper: str = ""
    margin: float = 0.0

    @property
    def in_paper(self) -> bool:
        return self.source != OURS


OURS = "not in the papers"


class Difference(NamedTuple):
    value: float
    lower: float
    upper: float


@dataclass(frozen=True, eq=False)
class Finding:
    """What one pair of SAEs, or one SAE, says of a claim. note: why it says nothing, or what to bear in mind."""

    left: Setting
    right: Setting | None
    left_value: Value
    right_value: Value
    difference: Difference
    verdict: Verdict
    note: str = ""

    @property
    def comparable(self) -> bool:
        return not self.note.startswith(_NOT_COMPARABLE)


@dataclass(frozen=True, eq=False)
class Result:
    """A claim with all that was found. why: the reasons for which nothing was."""

    claim: Claim
    findings: list[Finding]
    verdict: Verdict
    why: str
    paper: str


def difference(a: Value, b: Value) -> Difference:
    """a - b with its interval; a value without one is taken as it is."""
    if a.value is None or b.value is None:
        raise ValueError("a difference of undefined values")
    a_lo, a_hi = a.interval or (a.value, a.value)
    b_lo, b_hi = b.interval or (b.value, b.value)
    d = a.value - b.value
    return Difference(
        d,
        d - math.hypot(max(a.value - a_lo, 0), max(b_hi - b.value, 0)),
        d + math.hypot(max(a_hi - a.value, 0), max(b.value - b_lo, 0)),
    )


def judge(d: Difference, relation: Relation, margin: float = 0.0) -> Verdict:
    if relation == "=":
        if -margin < d.lower and d.upper < margin:
            return Verdict.HOLDS
        return Verdict.FAILS if d.lower > margin or d.upper < -margin else Verdict.UNDECIDED
    above, below = (Verdict.HOLDS, Verdict.FAILS) if relation == ">" else (Verdict.FAILS, Verdict.HOLDS)
    if d.lower > 0:
        return above
    return below if d.upper < 0 else Verdict.UNDECIDED


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict of several pairs: theirs if they agree, else "undecided", unless some hold and some do not."""
    if not verdicts:
        return Verdict.MISSING
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return Verdict.MIXED if {Verdict.HOLDS, Verdict.FAILS} <= set(verdicts) else Verdict.UNDECIDED


def partner(of: Setting, among: Iterable[Setting]) -> Setting | None:
    """The SAE to compare with, on the same model and site: as many layers if it has any, features and L0 nearest."""
    same = [
        s
        for s in among
        if (s.first.config.model, s.first.config.site) == (of.first.config.model, of.first.config.site)
    ]
    return min(
        same,
        key=lambda s: (s.system.layers != of.system.layers, abs(s.d_sae - of.d_sae), abs(s.l0 - of.l0)),
        default=None,
    )


def not_comparable(a: Setting, b: Setting, measure: str) -> str:
    """Why a difference between the two need not be one between their systems; empty if nothing speaks against it."""

    def differ(x: float, y: float) -> bool:
        return abs(x - y) > _COMPARABLE * max(x, y)

    trained = [s.first.config.tokens * s.first.config.epochs for s in (a, b)]
    if a.d_sae != b.d_sae:
        return f"{_NOT_COMPARABLE}: {a.d_sae:,} and {b.d_sae:,} features"
    if differ(a.l0, b.l0):
        return f"{_NOT_COMPARABLE}: L0 {a.l0:.1f} and {b.l0:.1f}"
    if differ(*trained):
        return f"{_NOT_COMPARABLE}: trained on {trained[0]:,} and {trained[1]:,} tokens"
    # Those of one setting agree among themselves, or it has no value.
    x, y = (s.measured(measure)[0].records[measure] for s in (a, b))
    if key := differently(x, y):
        return f"{_NOT_COMPARABLE}: measured differently ({key})"
    return ""


def _judged(claim: Claim, a: Value, b: Value, d: Difference) -> tuple[Verdict, str]:
    """The verdict on two values that may be compared, and what to bear in mind."""
    bare = [s for s, v in ((claim.left, a), (claim.right, b)) if isinstance(s, Side) and v.interval is None]
    if any(side.measure not in _EXACT for side in bare):
        return Verdict.UNDECIDED, "no interval"
    verdict = judge(d, claim.relation, claim.margin)
    if not bare:
        return verdict, ""
    note = f"a count, one seed {'each' if len(bare) == 2 else 'on one side'}"
    if abs(d.value) < _LEAST_OF_COUNTS:
        return Verdict.UNDECIDED, f"{note}; too little below {_LEAST_OF_COUNTS}"
    return verdict, note


def check(claim: Claim, settings: Sequence[Setting]) -> Result:
    """Judges a claim by every SAE, or pair of SAEs nearest in L0, that it speaks of."""
    findings: list[Finding] = []
    why: list[str] = []
    left_kind = kind_title(claim.left.kind)
    lefts = claim.left.of(settings)
    if not lefts:
        layers = "" if claim.left.layers is None else f" with {claim.left.layers} layers"
        why.append(f"no {left_kind}{layers} among the runs")
    for left in lefts:
        if not isinstance(claim.right, Side):
            right, b = None, Value(claim.right)
        elif claim.right.kind == claim.left.kind:
            right, b = left, left.value(claim.right.measure, claim.right.value)
        else:
            others = claim.right.of(settings)
            right = partner(left, others)
            if right is None:
                there = "on the same model and site" if others else "among the runs"
                why.append(f"no {kind_title(claim.right.kind)} {there}")
                continue
            b = right.value(claim.right.measure, claim.right.value)
        a = left.value(claim.left.measure, claim.left.value)
        if a.value is None or b.value is None:
            missing, setting = (a, left) if a.value is None else (b, right or left)
            why.append(f"{setting.label}: {missing.why}")
            continue
        d = difference(a, b)
        verdict, note = _judged(claim, a, b, d)
        other = None if right is left else right
        if other is not None and (why_not := not_comparable(left, other, claim.left.measure)):
            verdict, note = Verdict.UNDECIDED, why_not
        findings.append(Finding(left, right, a, b, d, verdict, note))
    counted = [finding for finding in findings if finding.comparable] or findings
    verdict = together([finding.verdict for finding in counted])
    return Result(claim, findings, verdict, "; ".join(dict.fromkeys(why)), _paper(claim, findings))


def _paper(claim: Claim, findings: Sequence[Finding]) -> str:
    """The paper's numbers of the systems compared, at its values of L0; empty if it lacks so many layers."""
    if claim.paper or not claim.in_paper:
        return claim.paper
    sides = [(claim.left, findings[0].left if findings else None)]
    if isinstance(claim.right, Side):
        sides.append((claim.right, findings[0].right if findings else None))
    said = []
    for side, setting in sides:
        layers = 1
        if side.kind in ("tree", "matryoshka"):
            layers = side.layers or (setting.system.layers if setting else 4)
        system = (side.kind, layers)
        if not (found := paper.numbers(side.measure, side.value, system)):
            return ""
        which = f" ({layers} layers)" if layers > 1 else ""
        if system == paper.MP:
            which = f" (L0 {', '.join(f'{x:g}' for x in paper.L0_MATCHING_PURSUIT)})"
        said.append(", ".join(f"{x:.4g}" for x in found) + which)
    return f"{' against '.join(said)}, at L0 {', '.join(f'{x:g}' for x in paper.L0)}"
