"""Measured values of an SAE of a run, as the overview shows them: those about the hierarchy beside their nulls."""

from __future__ import annotations

from typing import Literal, NamedTuple

from ...errors import InputError
from ...evaluation.null_values import AUC, OVER_SHUFFLED, OVER_UNTRAINED, SHUFFLED, UNTRAINED
from ...measures.record import Record
from ...run_folder import RunFolder
from ..answers.whole import MeasuredValue, NullValue


class _Shown(NamedTuple):
    """A value of a measure that the overview shows, and how. hierarchy: whether it is never shown without its nulls."""

    measure: str
    name: str
    title: str
    unit: str
    group: Literal["size", "fit", "hierarchy"]
    description: str


_SHOWN = (
    _Shown("sparsity", "l0", "L0", "features", "size", "Active features per token."),
    _Shown("dead", "dead_share", "Dead features", "share", "size", "Features that never fired on held-out text."),
    _Shown("reconstruction", "fve", "FVE", "share", "fit", "Fraction of the activations' variance explained."),
    _Shown(
        "cross_entropy", "ce_loss_score", "CE loss score", "share", "fit",
        "How much of the cross-entropy the reconstruction keeps: 1 is all of it, 0 as much as without the activation.",
    ),
    _Shown(
        "coverage", "ungated", "Coverage without the gate", "share", "hierarchy",
        "How often the parent is active in its own right where the child's own detector is on.",
    ),
    _Shown(
        "coverage", "lift", "Lift without the gate", "log2", "hierarchy",
        "How much more often than anywhere the parent is active where the child's own detector is on, as a power "
        "of two: 1 is twice as often, -1 half as often.",
    ),
    _Shown(
        "hierarchy", "tree", "Hierarchy metric", "share", "hierarchy",
        "Edges of the forest that meet both of the Tree SAE paper's conditions.",
    ),
    _Shown(
        "reconstruction_score", "s_res", "S_res", "cosine", "hierarchy",
        "Mean reconstruction score of the edges (Eq. 5).",
    ),
    _Shown(
        "edges", "copies", "Copies", "share", "hierarchy",
        "Edges on which parent and child write in nearly the same direction: a copy has high coverage for free.",
    ),
    _Shown(
        "pair_judge", "yes", "Pairs judged related", "share", "hierarchy",
        "Edges that a language model judges to be a concept and a special case of it.",
    ),
)  # fmt: skip
_NULLS = {
    "shuffled": SHUFFLED,
    "untrained": UNTRAINED,
    "over_shuffled": OVER_SHUFFLED,
    "over_untrained": OVER_UNTRAINED,
    "auc": AUC,
}


def measured_values(run: RunFolder, name: str) -> tuple[MeasuredValue, ...]:
    """What was measured of an SAE of a run. A record that cannot be read counts as not measured.

    A value about the hierarchy is left out if none of its nulls was measured.
    """
    records: dict[str, Record | None] = {}
    found = []
    for shown in _SHOWN:
        if shown.measure not in records:
            records[shown.measure] = _record(run, name, shown.measure)
        record = records[shown.measure]
        if record is None or record.value.get(shown.name) is None:
            continue
        null = None
        if shown.group == "hierarchy":
            null = {
                key: NullValue(record.value[shown.name + end], record.interval.get(shown.name + end))
                for key, end in _NULLS.items()
                if record.value.get(shown.name + end) is not None
            }
            if not null.keys() & {"shuffled", "untrained"}:
                continue
        found.append(
            MeasuredValue(
                name=f"{shown.measure}.{shown.name}",
                title=shown.title,
                description=shown.description,
                value=record.value[shown.name],
                interval=record.interval.get(shown.name),
                unit=shown.unit,
                group=shown.group,
                null=null,
            )
        )
    return tuple(found)


def _record(run: RunFolder, name: str, measure: str) -> Record | None:
    path = run.record(name, measure)
    try:
        return Record.read(path) if path.is_file() else None
    except InputError:
        return None
