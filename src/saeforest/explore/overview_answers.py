"""Answers about the whole: the overview, the forest as arrays, the null pairs, and the training log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch

from ..errors import InputError
from ..evaluation.null_values import AUC, OVER_SHUFFLED, OVER_UNTRAINED, SHUFFLED, UNTRAINED
from ..measures.record import Record
from ..output import printable
from ..run_folder import RunFolder
from ..training.log import has_log, read_log
from .answers import (
    AboutColumn,
    Array,
    Beats,
    FamilySummary,
    FeatureArrays,
    ForestAnswer,
    LayerSeries,
    MeasuredValue,
    NullsAnswer,
    NullValue,
    TrainingAnswer,
)
from .errors import Unavailable
from .feature_answers import format_of
from .labels import Labels
from .queries import Explorer

#: An edge beats the null if it is beyond this fraction of the null pairs.
PERCENTILE = 0.95
_FAMILIES, _NAMED = 5, 4


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
        "How much more often than anywhere the parent is active where the child's own detector is on.",
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
        "Children that fire as their parent does: a copy has high coverage for free.",
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
_NOT_SERIES = {"step", "tokens", "l0", "dead", "seconds", "tokens_per_s", "peak_memory_mb", "event", "lr"}


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


def beats(explorer: Explorer) -> tuple[Beats, ...]:
    """How the edges compare with null pairs, by every column that has nulls."""
    index = explorer.index
    found = []
    for about in index.about.columns:
        sign = 1 if about.higher_is_more else -1
        edges, null = (
            sign * index.columns[about.name].double(),
            sign * index.null_columns[about.name].double(),
        )
        places = index.column_places[about.name].double()
        edges, null, places = (x[~x.isnan()] for x in (edges, null, places))
        if not len(edges) or not len(null) or not about.of_pair:
            continue
        bound = torch.quantile(null, PERCENTILE)
        auc = None
        if len(places):
            auc = float(places.mean() if about.higher_is_more else 1 - places.mean())
        found.append(
            Beats(
                column=about.name,
                title=about.title,
                share=float((edges > bound).double().mean()),
                chance=float((null > bound).double().mean()),
                auc=auc,
                n=len(edges),
            )
        )
    return tuple(found)


def families(explorer: Explorer, labels: Labels) -> tuple[FamilySummary, ...]:
    """A few families worth seeing (`telling_families`)."""
    found = []
    for family in explorer.telling(_FAMILIES).shown:
        children = (*family.passing, *(c for c in family.children if c not in family.passing))
        names = [name[0] for child in children if (name := labels.tokens(child))]
        said = ", ".join(dict.fromkeys(names[:_NAMED]))
        found.append(
            FamilySummary(
                parent=family.parent,
                label=labels.of(family.parent),
                tokens=labels.tokens(family.parent),
                n_children=len(explorer.forest.children(family.parent)),
                why=f"Its children stand out by {said}." if said else "",
            )
        )
    return tuple(found)


def about_columns(explorer: Explorer) -> Iterator[AboutColumn]:
    """The columns of the edges, in the order in which a page shows them."""
    for about in explorer.index.about.columns:
        yield AboutColumn(
            name=about.name,
            title=about.title,
            unit=about.unit,
            description=about.description,
            higher_is_more=about.higher_is_more,
            mechanical=about.mechanical,
            format=format_of(about.unit),
        )


def forest_answer(explorer: Explorer) -> ForestAnswer:
    """`forest`."""
    index, forest = explorer.index, explorer.forest
    return ForestAnswer(
        parent=Array.of(forest.parent),
        layer=Array.of(forest.level),
        depth=Array.of(forest.depth),
        features=FeatureArrays(
            density=Array.of(index.density),
            n_fired=Array.of(index.n_fired),
            max=Array.of(index.value_max),
            dead=Array.of(index.n_fired == 0),
        ),
        columns={name: Array.of(column) for name, column in index.columns.items()},
        places={name: Array.of(column) for name, column in index.column_places.items()},
        about=tuple(about_columns(explorer)),
    )


def nulls_answer(explorer: Explorer) -> NullsAnswer:
    """`nulls`."""
    columns = explorer.index.null_columns
    return NullsAnswer({name: Array.of(c) for name, c in columns.items()}, len(explorer.index.null_parent))


def training_answer(run: RunFolder, name: str, layer_sizes: tuple[int, ...]) -> TrainingAnswer:
    """`training`. Raises Unavailable if the run has no log, InputError if it is damaged."""
    folder = run.logs(name)
    if not has_log(folder):
        raise Unavailable(f"{run}: no training log; it is written by `saeforest train`")
    lines = read_log(folder)
    steps = [line for line in lines if "event" not in line]
    series: dict[str, list[float | None]] = {}
    for i, line in enumerate(steps):
        for key, value in _series_of(line):
            series.setdefault(key, [None] * len(steps))[i] = value
    return TrainingAnswer(
        steps=tuple(line["step"] for line in steps),
        series={key: tuple(values) for key, values in series.items()},
        layers=LayerSeries(
            dead_share=tuple(
                tuple(n / size for n, size in zip(_numbers(line, "dead"), layer_sizes, strict=False))
                for line in steps
            ),
            l0=tuple(tuple(_numbers(line, "l0")) for line in steps),
        ),
        moves=tuple(_event(line) for line in lines if line.get("event") == "reallocation"),
    )


def _series_of(line: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    for key, value in line.items():
        if key in _NOT_SERIES:
            continue
        if isinstance(value, list):
            for layer, part in enumerate(value):
                if part is None or _is_number(part):
                    yield printable(f"{key}, layer {layer}" if len(value) > 1 else key), part
        elif value is None or _is_number(value):
            yield printable(key), value


def _numbers(line: dict[str, Any], key: str) -> list[float]:
    value = line.get(key)
    return [float(x) for x in value if _is_number(x)] if isinstance(value, list) else []


def _event(line: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in line.items() if _is_number(v) or (isinstance(v, str) and k != "event")}
    return {printable(k): printable(v) if isinstance(v, str) else v for k, v in kept.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
