"""Answers about the whole: the overview, the forest as arrays, and the null pairs."""

from __future__ import annotations

import torch

from ..answers.parts import Array
from ..answers.whole import (
    Beats,
    FamilySummary,
    FeatureArrays,
    ForestAnswer,
    NullsAnswer,
)
from ..labels.labels import Labels
from ..queries.explorer import Explorer
from .features import about_column

#: An edge beats the null if it is beyond this fraction of the null pairs.
PERCENTILE = 0.95
_FAMILIES, _NAMED = 5, 4


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
                forced_by=explorer.forced_by(about),
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
        about=tuple(about_column(about, explorer) for about in index.about.columns),
    )


def nulls_answer(explorer: Explorer) -> NullsAnswer:
    """`nulls`."""
    columns = explorer.index.null_columns
    return NullsAnswer({name: Array.of(c) for name, c in columns.items()}, len(explorer.index.null_parent))
