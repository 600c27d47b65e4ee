"""A record with the values of its nulls, their differences, and how well edges are told from shuffled ones.

For a value X of a measure that declares it (`MeasureSpec.nulls`; docs/spec/records.md#nulls):

    X_shuffled, X_untrained              the same on the two nulls
    X_over_shuffled, X_over_untrained    X minus these, with the interval of the difference
    X_auc                                chance that a true edge scores above a shuffled one, ties counting half, where
                                         the measure gives a score for every edge
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from ..measures.bootstrap import Estimate, FloatArray, estimate, paired_difference, same_units
from ..measures.matched import auc as matched_auc
from ..measures.record import EdgeScores, Interval, Record, Replicates
from ..structure.forest import Forest

#: What is added to the name of a value.
SHUFFLED, UNTRAINED, OVER_SHUFFLED, OVER_UNTRAINED, AUC = (
    "_shuffled", "_untrained", "_over_shuffled", "_over_untrained", "_auc",
)  # fmt: skip
#: Why there is no shuffled null of a value that is the same whatever the forest.
FOREST_FREE = "the value does not depend on the forest, so shuffled parents are no control"
SUFFIXES = (SHUFFLED, UNTRAINED, OVER_SHUFFLED, OVER_UNTRAINED, AUC)


def with_nulls(
    record: Record,
    names: tuple[str, ...],
    shuffled: Record | str,
    untrained: Record | str,
    forest: Forest,
    settings: Mapping[str, Any],
    forest_free: tuple[str, ...] = (),
    detail: tuple[str, ...] = (),
) -> Record:
    """The record of an SAE together with those of its nulls, or the reasons why there is none.

    names: the values that have nulls. forest: the forest that was measured. settings: how the nulls were made.
    forest_free: the values that are the same whatever the forest, so that shuffled parents are no control for them.
    detail: entries of the nulls' detail to keep, by null, as `detail["of_nulls"]`.
    """
    found = _Values(record)
    for name in names:
        if name not in record.value:
            continue
        unit = record.unit_of(name)
        for suffix, over, null in (
            (SHUFFLED, OVER_SHUFFLED, shuffled),
            (UNTRAINED, OVER_UNTRAINED, untrained),
        ):
            if suffix == SHUFFLED and name in forest_free:
                null = FOREST_FREE
            found.add_null(name, name + suffix, null, unit)
            found.add_difference(name, name + suffix, name + over, unit)
        if name in record.edge_scores:
            of_null = shuffled if isinstance(shuffled, str) else shuffled.edge_scores[name]
            found.add_auc(name + AUC, record.edge_scores[name], of_null, forest.parent)
    made = found.record({"nulls": dict(settings)})
    if not detail:
        return made
    of_nulls = {
        which: {} if isinstance(null, str) else {name: null.detail[name] for name in detail}
        for which, null in (("shuffled", shuffled), ("untrained", untrained))
    }
    return replace(made, detail={**made.detail, "of_nulls": of_nulls})


class _Values:
    """The values of a record, to which those of its nulls are added."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.value = dict(record.value)
        self.interval: dict[str, Interval] = dict(record.interval)
        self.replicates: dict[str, Replicates] = dict(record.replicates)
        self.why, self.units = dict(record.null), dict(record.detail.get("units", {}))
        self.paired: dict[str, bool] = {}

    def _add(
        self, name: str, value: float | None, interval: Interval, replicates: Replicates | None, unit: str
    ) -> None:
        self.value[name], self.interval[name] = value, interval
        if unit != self._record.unit:
            self.units[name] = unit
        if replicates is not None:
            self.replicates[name] = replicates

    def add_null(self, name: str, new: str, null: Record | str, unit: str) -> None:
        value = None if isinstance(null, str) else null.value.get(name)
        if isinstance(null, str) or value is None:
            self._add(new, None, None, None, unit)
            self.why[new] = (
                null if isinstance(null, str) else null.null.get(name, "it was not measured on the null")
            )
        else:
            self._add(new, value, null.interval[name], null.replicates.get(name), unit)

    def add_difference(self, name: str, null: str, new: str, unit: str) -> None:
        a, b = self.value[name], self.value[null]
        if a is None or b is None:
            self._add(new, None, None, None, unit)
            self.why[new] = self.why[name if a is None else null]
            return
        found = paired_difference(a, b, self.replicates.get(name), self.replicates.get(null))
        self._add(new, found.value, found.interval, found.replicates, unit)
        self.paired[new] = found.paired

    def add_auc(
        self, new: str, own: EdgeScores, null: EdgeScores | str, parent: Int[Tensor, "d_sae"]
    ) -> None:
        if isinstance(null, str):
            self._add(new, None, None, None, "AUC")
            self.why[new] = null
            return
        found = auc(own, null, parent)
        value = found.value["auc"]
        self._add(new, value, found.interval["auc"], found.replicates.get("auc"), "AUC")
        if value is None:
            self.why[new] = "no true edge was scored, or no shuffled one"

    def record(self, settings: Mapping[str, Any]) -> Record:
        detail = {**self._record.detail, "null": self.why, "units": self.units, "paired": self.paired}
        return replace(
            self._record,
            value=self.value,
            interval=self.interval,
            replicates=self.replicates,
            settings={**self._record.settings, **settings},
            detail=detail,
        )


def auc(own: EdgeScores, null: EdgeScores, parent: Int[Tensor, "d_sae"]) -> Estimate:
    """The chance "auc" that a true edge scores above a shuffled one; a tie counts half.

    The true parents are resampled, each with all its children: with their true edges and their shuffled ones.

    parent: `[d_sae]` the true parents.
    """
    families, family = np.unique(
        np.concatenate([parent[own.child].numpy(), parent[null.child].numpy()]), return_inverse=True
    )
    of_own, of_null = family[: len(own.child)], family[len(own.child) :]
    scores = own.score.double().numpy(), null.score.double().numpy()

    def formula(weights: FloatArray) -> dict[str, FloatArray]:
        return {"auc": matched_auc(*scores, weights[:, of_own], weights[:, of_null])}

    return estimate(formula, len(families), same_units("parents", families))
