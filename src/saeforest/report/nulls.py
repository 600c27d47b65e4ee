"""A value about a hierarchy is shown together with the same value on its nulls (docs/spec/records.md#nulls)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from ..evaluation.null_values import SHUFFLED, SUFFIXES, UNTRAINED
from ..evaluation.registry import MEASURES
from .load import Entry, Value
from .seed_groups import SeedGroup
from .style import NULL_GRAY


class NullKind(NamedTuple):
    """A null as the report shows it. title: in a table; legend: in a caption; marker: in a figure."""

    suffix: str
    title: str
    legend: str
    marker: str


#: Said instead of a null that the records do not have, such as those of older versions.
NOT_MEASURED = "null not measured"
KINDS = (
    NullKind(SHUFFLED, "shuffled", "× with parents shuffled", "x"),
    NullKind(UNTRAINED, "untrained", "+ of the untrained SAE", "+"),
)


def has_nulls(measure: str, name: str) -> bool:
    """Whether a value says something about a hierarchy, so that it must not be shown without its nulls."""
    return measure in MEASURES and name in MEASURES[measure].nulls


def null_values(of: Entry | SeedGroup, measure: str, name: str) -> list[tuple[NullKind, Value]]:
    """The values on each null, undefined with a reason where they were not measured; empty for other values."""
    if not has_nulls(measure, name):
        return []
    entries = of.measured(measure) if isinstance(of, SeedGroup) else [of]
    found: list[tuple[NullKind, Value]] = []
    for kind in KINDS:
        value = of.value(measure, name + kind.suffix)
        if not any(name + kind.suffix in e.records[measure].value for e in entries if measure in e.records):
            value = Value(None, why=f"{NOT_MEASURED}: {measure} was measured without its nulls")
        found.append((kind, value))
    return found


def not_measured(nulls: Sequence[tuple[NullKind, Value]]) -> str:
    """Why none of these nulls is there, if the records do not have them; empty otherwise."""
    why = {value.why for _, value in nulls}
    return next(iter(why)) if len(why) == 1 and all(w.startswith(NOT_MEASURED) for w in why) else ""


def in_order(measure: str, names: Iterable[str]) -> list[str]:
    """The names of a record's values, each followed by those of its nulls."""
    names = list(names)
    after = {name + suffix: name for name in names if has_nulls(measure, name) for suffix in SUFFIXES}
    found: list[str] = []
    for name in names:
        if name not in after:
            found += [name, *(other for other in names if after.get(other) == name)]
    return found


def without_nulls(measure: str, names: Iterable[str]) -> str:
    """A warning if values of a record lack their nulls; empty otherwise."""
    names = set(names)
    bare = [
        n for n in sorted(names) if has_nulls(measure, n) and not any(n + k.suffix in names for k in KINDS)
    ]
    if not bare:
        return ""
    return f"Measured without nulls, so they show no hierarchy: {', '.join(bare)}."


def mark_nulls(
    axes: Axes,
    places: Sequence[tuple[SeedGroup, float]],
    measure: str,
    name: str,
    *,
    upright: bool = False,
    color: str = NULL_GRAY,
) -> None:
    """Mark the values on the nulls, behind those of the SAEs.

    places: for each SAE its row; with `upright`, its place on the horizontal axis instead.
    """
    for group, place in places:
        for kind, value in null_values(group, measure, name):
            if value.value is not None:
                x, y = (place, value.value) if upright else (value.value, place)
                axes.plot([x], [y], ls="", marker=kind.marker, color=color, ms=6, mew=1.4, zorder=1.5)


def nulls_caption(shown: Iterable[tuple[str, str, Sequence[SeedGroup]]], color: str = "Gray") -> str:
    """What the marks of nulls mean, and for which SAEs they are missing; empty if no value has nulls.

    shown: measure, name of the value, and the SAEs that are drawn.
    """
    found = [
        (f"{group.label} ({name})", kind, value)
        for measure, name, groups in shown
        for group in groups
        for kind, value in null_values(group, measure, name)
    ]
    kinds = [kind.legend for kind in KINDS if any(v.value is not None and k is kind for _, k, v in found)]
    unknown = [label for label, _, v in found if v.value is None and v.why.startswith(NOT_MEASURED)]
    undefined = [label for label, _, v in found if v.value is None and label not in unknown]
    text = f"{color} marks: the same value {', '.join(kinds)}." if kinds else ""
    for said, labels in (("Null not measured", unknown), ("Without one of its nulls or both", undefined)):
        if labels:
            text += f" {said}: {', '.join(dict.fromkeys(labels))}."
    return text.strip()
