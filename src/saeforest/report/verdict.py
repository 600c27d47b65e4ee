"""Checking claims: each compares two values, and the interval of their difference decides.

A claim holds if the whole interval of the difference (`difference`) has the claimed sign, does not hold if the whole
interval has the opposite sign, and is undecided otherwise; "about equal" holds if the whole interval lies within the
margin. A count from a single seed has no interval; a difference of less than 0.01 then decides nothing.

Some claims would hold even for an SAE that learned nothing. They have a `Null`, which says what else explains the
difference and which control must be measured. If the intervals alone would say "holds", the null's verdict replaces it,
unless the control was measured: then the same claim is judged on how far each side exceeds its own null, that with
shuffled parents and the untrained SAE, and holds if it holds on both ("about equal" by the same margin).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Literal, NamedTuple

from ..evaluation.null_values import FOREST_FREE
from .correction import p_of
from .difference import Difference, difference
from .load import Value
from .papers import Paper
from .seed_groups import SeedGroup, differently
from .system import kind_title, whole

# SAEs whose L0 or length of training differ by more than this fraction are not compared.
_COMPARABLE = 0.25
# Measures whose values are complete counts. Any other value without an interval has too few units for one.
_EXACT = ("dead", "dead_training")
# Minimum difference between two such counts, which are fractions.
_LEAST_OF_COUNTS = 0.01
_NOT_COMPARABLE = "not comparable"
# By how much a value exceeds its null if shuffled parents do not change it.
_SAME = Value(0.0)


Relation = Literal[">", "<", "="]


class Verdict(StrEnum):
    """The verdict on a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    MIXED = "holds for some"
    UNDECIDED = "undecided"
    NEEDS_NULL = "not decided: needs a control"
    SAME_PAIRS = "not decided: the same pairs twice"
    MISSING = "not measured"


class Side(NamedTuple):
    """One side of a claim: a value of every SAE of a kind, or only of those with a number of layers."""

    kind: str
    measure: str
    value: str
    layers: int | None = None

    def of(self, groups: Iterable[SeedGroup]) -> list[SeedGroup]:
        """The SAEs that this side is about."""
        return [s for s in groups if s.system.kind == self.kind and self.layers in (None, s.system.layers)]


class Null(NamedTuple):
    """Why intervals alone do not decide a claim.

    why:     what else explains the difference, and which control must be measured.
    verdict: the verdict that replaces "holds".
    always:  whether it replaces every verdict.
    """

    why: str
    verdict: Verdict = Verdict.NEEDS_NULL
    always: bool = False

    def replaces(self, verdict: Verdict) -> bool:
        """Whether the null's verdict replaces this one."""
        return self.always or verdict is Verdict.HOLDS


class PaperValue(NamedTuple):
    """The value that a paper reports for a claim if it is another than ours, with its unit and relation."""

    value: str
    unit: str
    relation: Relation


@dataclass(frozen=True)
class Claim:
    """The claim that `left` is in `relation` to `right`: a value of another kind of SAE, of the same SAE, or a number.

    paper, where: the paper that makes the claim, and the place in it; None if it is not in a paper.
    said: the paper's numbers as text, if it has none for each L0.
    margin: margin of "about equal".
    paper_value: the value that the paper reports instead of ours.
    null: another explanation of the difference, if there is one.
    """

    topic: str
    text: str
    paper: Paper | None
    where: str
    left: Side
    relation: Relation
    right: Side | float
    said: str = ""
    margin: float = 0.0
    paper_value: PaperValue | None = None
    null: Null | None = None

    @property
    def source(self) -> str:
        """Paper and place of the claim, as text."""
        return f"{self.paper.name}, {self.where}" if self.paper else "not in the papers"


@dataclass(frozen=True, eq=False)
class Finding:
    """The result for one pair of SAEs, or one SAE.

    note: why it decides nothing, or a caveat. p: p-value of what the verdict is about, if it has one.
    """

    left: SeedGroup
    right: SeedGroup | None
    left_value: Value
    right_value: Value
    difference: Difference
    verdict: Verdict
    note: str = ""
    p: float | None = None

    @property
    def comparable(self) -> bool:
        """Whether the two SAEs may be compared."""
        return not self.note.startswith(_NOT_COMPARABLE)


@dataclass(frozen=True, eq=False)
class Result:
    """A claim with all comparisons, and its verdict. why: why there are none. paper: the paper's numbers as text."""

    claim: Claim
    findings: list[Finding]
    verdict: Verdict
    why: str
    paper: str

    @property
    def p(self) -> float | None:
        """The p-value of a claim that intervals decide: the largest of its comparisons; None if one has none."""
        if self.verdict not in (Verdict.HOLDS, Verdict.FAILS, Verdict.MIXED, Verdict.UNDECIDED):
            return None
        return _largest([finding.p for finding in self.findings if finding.comparable])


def _largest(p_values: Sequence[float | None]) -> float | None:
    known = [p for p in p_values if p is not None]
    return max(known) if known and len(known) == len(p_values) else None


def judge(d: Difference, relation: Relation, margin: float = 0.0) -> Verdict:
    """The verdict on a claimed relation by the interval of a difference."""
    if relation == "=":
        if -margin < d.lower and d.upper < margin:
            return Verdict.HOLDS
        return Verdict.FAILS if d.lower > margin or d.upper < -margin else Verdict.UNDECIDED
    above, below = (Verdict.HOLDS, Verdict.FAILS) if relation == ">" else (Verdict.FAILS, Verdict.HOLDS)
    if d.lower > 0:
        return above
    return below if d.upper < 0 else Verdict.UNDECIDED


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The joint verdict of several pairs: theirs if they agree; mixed if some hold and some do not; else undecided."""
    if not verdicts:
        return Verdict.MISSING
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return Verdict.MIXED if {Verdict.HOLDS, Verdict.FAILS} <= set(verdicts) else Verdict.UNDECIDED


def partners(of: SeedGroup, among: Iterable[SeedGroup]) -> list[SeedGroup]:
    """The SAEs to compare an SAE with: those on the same model and site that are nearest in size, then in L0.

    An SAE with several layers is compared with one that has the same number, else with a flat one; if there is neither,
    with the nearest (which `not_comparable` reports). A flat SAE is compared with one SAE for each number of layers.
    """
    by_layers: dict[int, list[SeedGroup]] = {}
    for s in among:
        if (s.first.config.model, s.first.config.site) == (of.first.config.model, of.first.config.site):
            by_layers.setdefault(s.system.layers, []).append(s)
    if of.system.layers == 1:
        groups = [by_layers[layers] for layers in sorted(by_layers)]
    else:
        alike = by_layers.get(of.system.layers) or by_layers.get(1)
        groups = [alike or [s for group in by_layers.values() for s in group]]
    nearest = (
        min(group, key=lambda s: (abs(s.d_sae - of.d_sae), abs(s.l0 - of.l0)), default=None)
        for group in groups
    )
    return [s for s in nearest if s is not None]


def not_comparable(a: SeedGroup, b: SeedGroup, measure: str) -> str:
    """Why a difference between two SAEs may not be due to their systems; empty if they are comparable."""

    def differ(x: float, y: float) -> bool:
        return abs(x - y) > _COMPARABLE * max(x, y)

    trained = [s.first.config.tokens * s.first.config.epochs for s in (a, b)]
    layers = a.system.layers, b.system.layers
    if min(layers) > 1 and layers[0] != layers[1]:
        return f"{_NOT_COMPARABLE}: {layers[0]} and {layers[1]} layers"
    if a.d_sae != b.d_sae:
        return f"{_NOT_COMPARABLE}: {a.d_sae:,} and {b.d_sae:,} features"
    if differ(a.l0, b.l0):
        return f"{_NOT_COMPARABLE}: L0 {a.l0:.1f} and {b.l0:.1f}"
    if differ(*trained):
        return f"{_NOT_COMPARABLE}: trained on {trained[0]:,} and {trained[1]:,} tokens"
    if switched := _differs_too(a, b):
        return f"{_NOT_COMPARABLE}: {switched}"
    # Records within a group agree, since otherwise it has no value.
    x, y = (s.measured(measure)[0].records[measure] for s in (a, b))
    if key := differently(x, y):
        return f"{_NOT_COMPARABLE}: measured differently ({key})"
    return ""


def _differs_too(a: SeedGroup, b: SeedGroup) -> str:
    """A setting that a system and its ablation, or two ablations, must share but do not; empty if there is none."""
    kinds = [s.system.kind for s in (a, b)]
    if kinds[0] == kinds[1] or whole(kinds[0]) != whole(kinds[1]):
        return ""
    for ablation in (a.system.ablation, b.system.ablation):
        for key, what in (ablation.shares if ablation else {}).items():
            x, y = (attrgetter(key)(s.first.config.sae) for s in (a, b))
            if x != y:
                return f"{what} also differs ({key.split('.')[-1]} {x:g} and {y:g})"
    return ""


def _judged(claim: Claim, a: Value, b: Value, d: Difference) -> tuple[Verdict, str]:
    """The verdict on two comparable values, and a caveat."""
    bare = [s for s, v in ((claim.left, a), (claim.right, b)) if isinstance(s, Side) and v.interval is None]
    if any(side.measure not in _EXACT for side in bare):
        return Verdict.UNDECIDED, "no interval"
    verdict = judge(d, claim.relation, claim.margin)
    if not bare:
        return verdict, ""
    note = f"counts of a single seed {'on both sides' if len(bare) == 2 else 'on one side'}"
    if abs(d.value) < _LEAST_OF_COUNTS:
        return Verdict.UNDECIDED, f"{note}; the difference is below {_LEAST_OF_COUNTS}"
    return verdict, note


def _over_nulls(
    claim: Claim, left: SeedGroup, right: SeedGroup | None
) -> tuple[Verdict, str, float | None] | None:
    """The verdict on how far both sides exceed their nulls; None if that was not measured, or cannot decide.

    A value that does not depend on the forest exceeds that of shuffled parents by 0. If this is so on both sides, only
    the untrained SAE counts.
    """
    if claim.null is None or claim.null.always:
        return None
    sides = [(claim.left, left)]
    if isinstance(claim.right, Side) and right is not None:
        sides.append((claim.right, right))
    verdicts: list[Verdict] = []
    p_values: list[float | None] = []
    for over in ("_over_shuffled", "_over_untrained"):
        found: list[Value] = []
        for side, group in sides:
            name = side.value + over
            if not all(name in e.records[side.measure].value for e in group.measured(side.measure)):
                return None
            value = group.value(side.measure, name)
            found.append(_SAME if value.why == FOREST_FREE else value)
        if all(value is _SAME for value in found):
            continue
        a, b = found if len(found) == 2 else (found[0], Value(0.0))
        if a.value is None or b.value is None:
            return None
        d = difference(a, b)
        known = all(value.interval is not None or value is _SAME for value in found)
        verdicts.append(judge(d, claim.relation, claim.margin) if known else Verdict.UNDECIDED)
        p_values.append(_p(claim, a, b, d) if known else None)
    return together(verdicts), "by what each side has over its nulls", _largest(p_values)


def _p(claim: Claim, a: Value, b: Value, d: Difference) -> float | None:
    return p_of(a, b, (d.lower, d.upper), claim.margin if claim.relation == "=" else None)


def check(claim: Claim, groups: Sequence[SeedGroup]) -> Result:
    """Check a claim on every SAE, or pair of SAEs, that it is about."""
    findings: list[Finding] = []
    why: list[str] = []
    left_kind = kind_title(claim.left.kind)
    lefts = claim.left.of(groups)
    if not lefts:
        layers = "" if claim.left.layers is None else f" with {claim.left.layers} layers"
        why.append(f"no {left_kind}{layers} among the runs")
    for left in lefts:
        a = left.value(claim.left.measure, claim.left.value)
        for right, b in _rights(claim, left, groups, why):
            if a.value is None or b.value is None:
                missing, group = (a, left) if a.value is None else (b, right or left)
                why.append(f"{group.label}: {missing.why}")
                continue
            d = difference(a, b)
            verdict, note = _judged(claim, a, b, d)
            p = _p(claim, a, b, d)
            if claim.null is not None and claim.null.replaces(verdict):
                verdict, note, p = _over_nulls(claim, left, right) or (claim.null.verdict, note, None)
            other = None if right is left else right
            if other is not None and (why_not := not_comparable(left, other, claim.left.measure)):
                verdict, note = Verdict.UNDECIDED, why_not
            findings.append(Finding(left, right, a, b, d, verdict, note, p))
    counted = [finding for finding in findings if finding.comparable] or findings
    verdict = together([finding.verdict for finding in counted])
    return Result(claim, findings, verdict, "; ".join(dict.fromkeys(why)), _paper(claim, findings))


def _rights(
    claim: Claim, left: SeedGroup, groups: Sequence[SeedGroup], why: list[str]
) -> list[tuple[SeedGroup | None, Value]]:
    """The SAEs that the left one is compared with, and their values. If there are none, appends the reason to `why`."""
    if not isinstance(claim.right, Side):
        return [(None, Value(claim.right))]
    if claim.right.kind == claim.left.kind:
        found = [left]
    else:
        others = claim.right.of(groups)
        found = partners(left, others)
        if not found:
            there = "on the same model and site" if others else "among the runs"
            why.append(f"no {kind_title(claim.right.kind)} {there}")
    return [(right, right.value(claim.right.measure, claim.right.value)) for right in found]


def _paper(claim: Claim, findings: Sequence[Finding]) -> str:
    """The paper's numbers for the compared systems, at its values of L0; empty if it has none for these layers."""
    if claim.said or claim.paper is None:
        return claim.said
    sides = [(claim.left, findings[0].left if findings else None)]
    if isinstance(claim.right, Side):
        sides.append((claim.right, findings[0].right if findings else None))
    said = []
    for side, group in sides:
        most = max(claim.paper.layers_of(side.kind), default=1)
        layers = 1 if most == 1 else side.layers or (group.system.layers if group else most)
        value = claim.paper_value.value if claim.paper_value else side.value
        found = claim.paper.series(side.measure, value).get((side.kind, layers))
        if not found:
            return ""
        which = f" ({layers} layers)" if layers > 1 else ""
        if l0 := claim.paper.measured_l0.get(side.kind):
            which = f" (L0 {', '.join(f'{x:g}' for x in l0)})"
        said.append(", ".join(f"{x:.4g}" for x in found) + which)
    unit = f", in {claim.paper_value.unit}" if claim.paper_value else ""
    return f"{' vs. '.join(said)}{unit}, at L0 {', '.join(f'{x:g}' for x in claim.paper.l0)}"
