"""Queries on a forest and its index: a feature, an edge, the most telling families, a search for text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property

import torch

from ...errors import InputError
from ...hf_types import PreTrainedTokenizerBase
from ...structure.forest import ROOT, Forest
from ...text.passages import read_passage
from ..index import ColumnAbout, Index
from .cards import ContextCard, EdgeCard, FamilyCard, FeatureCard, ForcedBy, OverviewCard, SearchResult
from .families import ChosenFamilies, telling_families
from .search import Search, words

# Two passages are the same if they agree in this many characters on either side of the token.
_SAME = 24


class Explorer:
    """Answers queries on a forest with cards (`cards.py`).

    index:  index of the same SAE and forest.
    labels: names of features, if they have any.
    origin: where the forest comes from, in a few words (see `forest_of`).

    Raises InputError if index and forest have different sizes.
    """

    def __init__(
        self,
        index: Index,
        forest: Forest,
        tokenizer: PreTrainedTokenizerBase,
        labels: Mapping[int, str] | None = None,
        origin: str = "learned",
    ) -> None:
        if index.d_sae != forest.d_sae:
            raise InputError(
                f"the index has {index.d_sae:,} features, the forest {forest.d_sae:,}; give those of the same SAE"
            )
        self.index, self.forest, self.tokenizer = index, forest, tokenizer
        self.labels, self.origin = dict(labels or {}), origin
        self._telling: dict[int, ChosenFamilies] = {}

    def _repr_html_(self) -> str:
        """What a notebook displays."""
        from ..views.notebook import explorer_html

        return explorer_html(self)

    def overview(self) -> OverviewCard:
        """The overview of the SAE and its forest."""
        about = self.index.about
        return OverviewCard(
            model=about.model,
            site=about.site,
            forest=self.origin,
            rows=about.rows,
            n_tokens=about.n_tokens,
            n_features=self.index.d_sae,
            n_alive=int((self.index.n_fired > 0).sum()),
            layer_sizes=self.forest.layer_sizes,
            n_edges=self.forest.edges.shape[1],
            n_judged=int(self.index.measured.sum()),
            min_count=about.min_count,
            n_placed=self._n_placed,
            forced_by={column.name: by for column in about.columns if (by := self.forced_by(column))},
        )

    def forced_by(self, about: ColumnAbout) -> ForcedBy | None:
        """Why the values of a column are high whatever the parents of the edges are; None if they are not."""
        if self.origin != "learned":
            return "choice" if about.chosen else None
        return "gate" if self.index.about.gated and about.mechanical else None

    @cached_property
    def _n_placed(self) -> int:
        places = self.index.column_places
        return int(torch.stack([p.isfinite() for p in places.values()]).any(0).sum()) if places else 0

    def feature(self, feature: int) -> FeatureCard:
        """The card of a feature. Raises InputError if there is no such feature."""
        self._check(feature)
        n_fired = int(self.index.n_fired[feature])
        contexts = tuple(self._contexts(feature))
        children = self.forest.children(feature)
        live = sorted(
            (c for c in children if self.index.n_fired[c] > 0), key=lambda c: (-int(self.index.n_fired[c]), c)
        )
        parent = int(self.forest.parent[feature])
        return FeatureCard(
            id=feature,
            layer=int(self.forest.layer[feature]),
            depth=int(self.forest.depth[feature]),
            path=tuple(self.forest.path(feature)),
            edge=None if parent == ROOT else self.edge(parent, feature),
            alive=n_fired > 0,
            n_fired=n_fired,
            density=float(self.index.density[feature]),
            value_max=float(self.index.value_max[feature]) if n_fired else None,
            value_mean=float(self.index.value_sum[feature]) / n_fired if n_fired else None,
            label=self.labels.get(feature),
            tokens=tuple(dict.fromkeys(context.passage.token for context in contexts)),
            contexts=contexts,
            children=tuple(self.edge(feature, child) for child in live),
            n_silent=len(children) - len(live),
        )

    def edge(self, parent: int, child: int) -> EdgeCard:
        """The card of an edge. Raises InputError if the forest has no such edge."""
        self._check(child)
        if not parent >= 0 or int(self.forest.parent[child]) != parent:
            raise InputError(f"features {parent} and {child}: the forest has no such edge")
        n_parent, n_child = int(self.index.n_fired[parent]), int(self.index.n_fired[child])
        n_both = int(self.index.n_with_parent[child])
        measured = bool(self.index.measured[child])
        null = {}
        if not n_parent:
            null["p_child"] = "the parent never fired"
        if not n_child:
            null["p_parent"] = "the child never fired"
        if not measured:
            why = f"the child fired {n_child:,} times; a direction needs {self.index.about.min_count:,}"
            null |= dict.fromkeys(
                ("cos_child", "cos_parent", "rank_child", "rank_parent", "s_res", "passes"), why
            )
        ungated = self._column("ungated", child)
        if ungated is None:
            null["ungated"] = "the child fired too rarely, or its own detector is never on"
        return EdgeCard(
            parent=parent,
            child=child,
            n_parent=n_parent,
            n_child=n_child,
            n_both=n_both,
            p_child=n_both / n_parent if n_parent else None,
            p_parent=n_both / n_child if n_child else None,
            cos_child=_finite(float(self.index.cos_child[child])) if measured else None,
            cos_parent=_finite(float(self.index.cos_parent[child])) if measured else None,
            rank_child=int(self.index.rank_child[child]) if measured else None,
            rank_parent=int(self.index.rank_parent[child]) if measured else None,
            s_res=_finite(float(self.index.s_res[child])) if measured else None,
            passes=bool(self.index.passes[child]) if measured else None,
            ungated=ungated,
            places={
                name: place
                for name, places in self.index.column_places.items()
                if (place := _finite(float(places[child]))) is not None
            },
            null=null,
        )

    def _column(self, name: str, child: int) -> float | None:
        return _finite(float(self.index.columns[name][child])) if name in self.index.columns else None

    def families(self, n: int = 10) -> list[FamilyCard]:
        """The `n` most telling families, best first (see `telling_families`)."""
        return [
            FamilyCard(
                parent=self.feature(family.parent),
                children=tuple(
                    self.edge(family.parent, child)
                    for child in (*family.passing, *(c for c in family.children if c not in family.passing))
                ),
                passing=family.passing,
                score=family.score,
            )
            for family in self.telling(n).shown
        ]

    def telling(self, n: int = 10) -> ChosenFamilies:
        """The same families by their numbers, without cards. Chosen once."""
        if n not in self._telling:
            self._telling[n] = telling_families(self.index, self.forest, n, readable=self._has_letters)
        return self._telling[n]

    def _has_letters(self, token: int) -> bool:
        return any(map(str.isalpha, str(self.tokenizer.decode([token]))))

    def search(self, text: str, n: int = 20) -> list[SearchResult]:
        """Up to `n` features with `text` in their label, in a token they fire on, or in the text around one.

        Upper and lower case are not distinguished. Matching labels come first, then matching tokens, then matching text
        around a token; features with more matching contexts come earlier. Raises InputError if `text` is empty.
        """
        if not text.strip():
            raise InputError("search: expected some text to look for")
        found: dict[int, SearchResult] = {}
        matches, whole = words(text)
        for matched, feature, place in self.searching.hits(matches, self.labels, whole=whole):
            if len(found) == n:
                break
            if feature in found:
                continue
            context = None if place is None else self._context(feature, place)
            # The window extends beyond the passage, possibly into another document.
            if matched == "text" and context and not matches(context.passage.text.casefold()):
                continue
            found[feature] = SearchResult(text, feature, self.labels.get(feature), matched, context)
        return list(found.values())

    @cached_property
    def searching(self) -> Search:
        """The search in the contexts of the index."""
        return Search(self.index, self.tokenizer)

    # -- contexts

    def _contexts(self, feature: int) -> Iterator[ContextCard]:
        """A feature's strongest activations, without repeated text."""
        seen: set[tuple[str, str, str]] = set()
        for place, row in enumerate(self.index.top_row[feature].tolist()):
            if row < 0:
                continue
            context = self._context(feature, place)
            passage = context.passage
            key = (passage.before[-_SAME:], passage.token, passage.after[:_SAME])
            if key not in seen:
                seen.add(key)
                yield context

    def _context(self, feature: int, place: int) -> ContextCard:
        row, value = int(self.index.top_row[feature, place]), self.index.top_value[feature, place]
        return ContextCard(
            value=float(value),
            share=float(value / self.index.value_max[feature]),
            passage=read_passage(self.index.tokens, self.tokenizer, row),
            document=self.index.tokens.names[int(self.index.tokens.document_of(torch.tensor([row])))],
            row=row,
        )

    def _check(self, feature: int) -> None:
        if not 0 <= feature < self.forest.d_sae:
            raise InputError(f"feature {feature}: expected 0 to {self.forest.d_sae - 1}")


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
