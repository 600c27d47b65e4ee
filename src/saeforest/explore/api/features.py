"""Answers about single features: the feature, its edge, its family, its children by the data, its geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from ...structure.forest import ROOT
from ..answers.features import (
    Child,
    Direction,
    EdgeAnswer,
    EdgeColumn,
    FamilyAnswer,
    FamilyChild,
    FeatureAnswer,
    GeometryAnswer,
    Histogram,
    LogitEffects,
    Named,
    Near,
    Point,
    Quantile,
    Related,
    Summary,
    TokenLogit,
    TreeDataAnswer,
)
from ..answers.parts import AboutColumn, Format
from ..errors import NotFound
from ..index import ColumnAbout
from ..labels.annotations import Annotations
from ..labels.labels import Labels
from ..queries.contexts import Context, Contexts, TokenTexts
from ..queries.explorer import Explorer

#: The data agree with a child if its parent is active on this fraction of the child's tokens, without the gate.
LEAST = 0.5
_SIBLINGS, _RESIDUE, _AROUND = 50, 12, 16
_EACH = 4
_FORMATS: dict[str, Format] = {"fraction": "share", "cosine": "cosine", "log2": "log2", "rank": "rank"}


def about_column(about: ColumnAbout, explorer: Explorer) -> AboutColumn:
    """What a column says of an explorer's edges, and how its numbers are written."""
    index, forced = explorer.index.about, explorer.forced_by(about)
    defined = about.defined
    for name, count in (("{min_count}", index.min_count), ("{n_detected}", index.n_detected)):
        defined = defined.replace(name, f"{count:,}")
    return AboutColumn(
        name=about.name,
        title=about.title,
        unit=about.unit,
        description=about.description,
        higher_is_more=about.higher_is_more,
        mechanical=forced is not None,
        forced_by=forced,
        format=_FORMATS.get(about.unit, "number"),
        of_pair=about.of_pair,
        defined=defined,
    )


class FeatureAnswers:
    """Answers about features of an explorer. Raises NotFound for a feature or an edge that does not exist."""

    def __init__(
        self, explorer: Explorer, texts: TokenTexts, labels: Labels, annotations: Annotations
    ) -> None:
        self._explorer, self._index, self._forest = explorer, explorer.index, explorer.forest
        self._texts, self._labels, self._annotations = texts, labels, annotations
        self.contexts = Contexts(self._index, self._forest, texts)

    def feature(self, feature: int) -> FeatureAnswer:
        """`feature/ID`."""
        self.check(feature)
        index, forest = self._index, self._forest
        n_fired = int(index.n_fired[feature])
        parent = int(forest.parent[feature])
        live, n_silent = self.live_children(feature)
        note = self._annotations.note(feature)
        edge = None if parent == ROOT else self.edge(feature)
        top = self.contexts.top(feature)
        return FeatureAnswer(
            id=feature,
            label=self._labels.of(feature),
            source=self._labels.source(feature),
            layer=int(forest.layer[feature]),
            depth=int(forest.depth[feature]),
            path=tuple(map(self._named, forest.path(feature))),
            parent=None if parent == ROOT else parent,
            siblings=tuple(map(self._named, self._siblings(feature, parent))),
            children=tuple(map(self._child, live)),
            n_silent=n_silent,
            alive=n_fired > 0,
            n_fired=n_fired,
            density=float(index.density[feature]),
            max=float(index.value_max[feature]) if n_fired else None,
            mean=float(index.value_sum[feature]) / n_fired if n_fired else None,
            tokens=self._labels.tokens(feature),
            histogram=self._histogram(feature) if n_fired else None,
            top=tuple(top),
            quantiles=self._quantiles(feature),
            logits=self._logits(feature),
            near=self._near(feature),
            over=self._over(feature),
            under=self._under(feature),
            edge=edge,
            note=note.note,
            rating=None if edge is None else edge.rating,
            bookmark=note.bookmark,
        )

    def edge(self, child: int) -> EdgeAnswer:
        """`edge/CHILD`."""
        self.check(child)
        parent = int(self._forest.parent[child])
        if parent == ROOT:
            raise NotFound(f"feature {child}: a root, which has no edge from a parent")
        rated = self._annotations.rating(parent, child)
        return EdgeAnswer(
            parent=parent,
            child=child,
            labels={str(f): label for f in (parent, child) if (label := self._labels.of(f)) is not None},
            columns=tuple(
                EdgeColumn(
                    **vars(about),
                    value=number(self._index.columns[about.name], child),
                    place=number(self._index.column_places[about.name], child),
                )
                for about in self._about
            ),
            rating=None if rated is None or rated.blind else rated.rating,
        )

    def family(self, feature: int) -> FamilyAnswer:
        """`family/ID`."""
        self.check(feature)
        live, n_silent = self.live_children(feature)
        top, samples = self.contexts.top(feature), self.contexts.samples(feature)
        residue = [c for c in (*top, *samples) if c.child is not None and c.child[c.at] == -1]
        return FamilyAnswer(
            parent=self.summary(feature),
            children=tuple(
                FamilyChild(
                    id=child,
                    label=self._labels.of(child),
                    tokens=self._labels.tokens(child),
                    p_child=self._p_child(child),
                    distinguishes=self._labels.tokens(child),
                    edge=self.edge(child),
                )
                for child in live
            ),
            n_silent=n_silent,
            contexts=tuple(_distinct((*top, *samples))),
            residue=tuple(_distinct(residue)[:_RESIDUE]),
            overlap=None,
            ungated=(),
        )

    def tree_data(self, feature: int) -> TreeDataAnswer:
        """`tree-data/ID`."""
        self.check(feature)
        base = float(self._index.density[feature])
        agreed: list[Related] = []
        tree_only: list[Related] = []
        for child in self.live_children(feature)[0]:
            p = self._column("ungated", child)
            related = Related(child, self._labels.of(child), p, base, in_tree=True)
            (agreed if p is not None and p >= LEAST else tree_only).append(related)
        return TreeDataAnswer(
            least=LEAST,
            agreed=tuple(agreed),
            tree_only=tuple(tree_only),
            data_only=tuple(
                r for r in self._under(feature) if not r.in_tree and r.p is not None and r.p >= LEAST
            ),
            other_parents=tuple(
                r for r in self._over(feature) if not r.in_tree and feature not in self._forest.path(r.id)
            ),
        )

    def geometry(self, feature: int) -> GeometryAnswer:
        """`geometry/ID`."""
        self.check(feature)
        place = self._geometry_places.get(feature)
        if place is None:
            raise NotFound(f"feature {feature}: no geometry in the index; it needs two children that fired")
        found = self._index.geometry
        children = self._forest.children(feature)
        points = []
        for (x, y), child, row in zip(
            found.points[place].tolist(), found.child[place].tolist(), found.row[place].tolist(), strict=True
        ):
            if row < 0 or not math.isfinite(x + y):
                continue
            before, token, after = self.contexts.around(row, _AROUND)
            of = children[child] if 0 <= child < len(children) else -1
            points.append(Point(round(x, 4), round(y, 4), of, row, token, before, after))
        first, second = found.explained[place].tolist()
        return GeometryAnswer(tuple(points), tuple(self._directions(feature)), (first, second))

    def summary(self, feature: int) -> Summary:
        """A feature in brief."""
        fired = int(self._index.n_fired[feature]) > 0
        return Summary(
            feature,
            self._labels.of(feature),
            self._labels.tokens(feature),
            float(self._index.density[feature]),
            float(self._index.value_max[feature]) if fired else None,
        )

    def check(self, feature: int) -> None:
        """Raises NotFound if there is no such feature."""
        if not 0 <= feature < self._forest.d_sae:
            raise NotFound(f"feature {feature}: expected 0 to {self._forest.d_sae - 1}")

    # -- parts

    def _named(self, feature: int) -> Named:
        return Named(feature, self._labels.of(feature))

    def live_children(self, feature: int) -> tuple[list[int], int]:
        """The children that fired, the most frequent first, and the number of those that did not."""
        children = self._forest.children(feature)
        fired = self._n_fired
        live = sorted((c for c in children if fired[c] > 0), key=lambda c: (-fired[c], c))
        return live, len(children) - len(live)

    def _siblings(self, feature: int, parent: int) -> list[int]:
        if parent == ROOT:
            return []
        return [s for s in self.live_children(parent)[0] if s != feature][:_SIBLINGS]

    @cached_property
    def _about(self) -> tuple[AboutColumn, ...]:
        return tuple(about_column(about, self._explorer) for about in self._index.about.columns)

    @cached_property
    def _n_fired(self) -> list[int]:
        return self._index.n_fired.tolist()

    @cached_property
    def _geometry_places(self) -> dict[int, int]:
        return {parent: place for place, parent in enumerate(self._index.geometry.parent.tolist())}

    def _child(self, child: int) -> Child:
        return Child(
            id=child,
            label=self._labels.of(child),
            n_fired=self._n_fired[child],
            p_child=self._p_child(child),
            ungated=self._column("ungated", child),
            place=self._place("ungated", child),
        )

    def _p_child(self, child: int) -> float | None:
        above = self._n_fired[int(self._forest.parent[child])]
        return int(self._index.n_with_parent[child]) / above if above else None

    def _column(self, name: str, child: int) -> float | None:
        return number(self._index.columns[name], child) if name in self._index.columns else None

    def _place(self, name: str, child: int) -> float | None:
        return number(self._index.column_places[name], child) if name in self._index.column_places else None

    def _histogram(self, feature: int) -> Histogram:
        counts = self._index.histogram[feature].tolist()
        return Histogram(tuple(self._index.histogram_edges(feature).tolist()), tuple(counts))

    def _quantiles(self, feature: int) -> tuple[Quantile, ...]:
        """The samples by the part of the range that they come from, the lowest first."""
        samples = self.contexts.samples(feature)
        edges = self._index.sample_edges(feature).tolist()
        n = len(edges) - 1
        of_bin: list[list[Context]] = [[] for _ in range(n)]
        kept = (place for place, row in enumerate(self._index.sample_row[feature].tolist()) if row >= 0)
        for place, context in zip(kept, samples, strict=True):
            of_bin[n - 1 - place // _EACH].append(context)
        return tuple(
            Quantile(i, edges[n - i], edges[n - 1 - i], tuple(found))
            for i, found in enumerate(of_bin)
            if found
        )

    def _logits(self, feature: int) -> LogitEffects | None:
        logits = self._index.logits
        if logits is None:
            return None

        def tokens(ids: Tensor, values: Tensor) -> tuple[TokenLogit, ...]:
            pairs = zip(ids[feature].tolist(), values[feature].tolist(), strict=True)
            return tuple(TokenLogit(self._texts.of(i), v) for i, v in pairs if i >= 0 and math.isfinite(v))

        return LogitEffects(tokens(logits.up_id, logits.up), tokens(logits.down_id, logits.down))

    def _near(self, feature: int) -> tuple[Near, ...]:
        pairs = _pairs(self._index.near_id[feature], self._index.near_cos[feature])
        return tuple(Near(i, self._labels.of(i), cos) for i, cos in pairs if cos is not None)

    def _over(self, feature: int) -> tuple[Related, ...]:
        parent = int(self._forest.parent[feature])
        return tuple(
            Related(i, self._labels.of(i), p, float(self._index.density[i]), in_tree=i == parent)
            for i, p in _pairs(self._index.over_id[feature], self._index.over_p[feature])
        )

    def _under(self, feature: int) -> tuple[Related, ...]:
        base = float(self._index.density[feature])
        return tuple(
            Related(i, self._labels.of(i), p, base, in_tree=int(self._forest.parent[i]) == feature)
            for i, p in _pairs(self._index.under_id[feature], self._index.under_p[feature])
        )

    def _directions(self, feature: int) -> list[Direction]:
        found = []
        for child in self.live_children(feature)[0]:
            x, y = self._index.geometry.direction[child].tolist()
            if math.isfinite(x + y):
                found.append(Direction(child, round(x, 4), round(y, 4)))
        return found


def number(values: Tensor, feature: int) -> float | None:
    """A number of a feature; None for NaN."""
    value = float(values[feature])
    return value if math.isfinite(value) else None


def _pairs(ids: Tensor, values: Tensor) -> list[tuple[int, float | None]]:
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return [(i, v if math.isfinite(v) else None) for i, v in pairs if i >= 0]


def _distinct(contexts: Sequence[Context]) -> list[Context]:
    """Each context once: a sample may be one of the strongest."""
    return list({context.row: context for context in contexts}.values())
