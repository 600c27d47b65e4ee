"""The concept tree of a parent as plain data: what Figures 17 to 20 of the Tree SAE paper show, with nulls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...output import printable
from ..queries.cards import ContextCard, EdgeCard, FeatureCard
from ..queries.explorer import Explorer
from .numbers import EdgeScale, edge_value

_TITLE_TOKENS = 5


@dataclass(frozen=True)
class Concept:
    """A feature in a concept tree.

    words: its label, or the tokens that distinguish it: those that its parent does not have come first.
    contexts: text it fires on, different tokens first.
    p_child: fraction of its parent's tokens on which it fires; None for the top of the tree.
    value: the value of its edge on the figure's scale; None if it was not measured.
    rest: children that are not shown, in words; empty if all are.
    """

    card: FeatureCard
    level: int
    words: tuple[str, ...]
    contexts: tuple[ContextCard, ...]
    p_child: float | None
    value: float | None
    children: tuple[Concept, ...]
    rest: str

    def walk(self) -> Iterator[Concept]:
        """This concept and all below it, parents before children."""
        yield self
        for child in self.children:
            yield from child.walk()


def concept_tree(
    explorer: Explorer, feature: int, scale: EdgeScale | None = None, children: int = 6, depth: int = 2
) -> Concept:
    """The concepts under a feature.

    scale: the column of edges to take values from.
    children: number of children to show, the most frequent; below these, half as many in each further generation.
    depth: number of generations below the feature.

    Raises InputError if there is no such feature.
    """
    return _concept(explorer, scale, explorer.feature(feature), None, None, children, depth)


def _concept(
    explorer: Explorer,
    scale: EdgeScale | None,
    card: FeatureCard,
    edge: EdgeCard | None,
    parent: FeatureCard | None,
    children: int,
    depth: int,
) -> Concept:
    shown = card.children[:children] if depth else ()
    return Concept(
        card=card,
        level=int(explorer.forest.level[card.id]),
        words=_words(explorer, card, parent),
        contexts=_by_token(card),
        p_child=None if edge is None else edge.p_child,
        value=None if edge is None else edge_value(explorer.index, scale, card.id),
        children=tuple(
            _concept(explorer, scale, explorer.feature(e.child), e, card, max(children // 2, 2), depth - 1)
            for e in shown
        ),
        rest=_rest(len(card.children) - len(shown), card.n_silent if depth else 0),
    )


def _decode(explorer: Explorer, token: int) -> str:
    text = explorer.tokenizer.decode([token])
    assert isinstance(text, str)
    return text


def _words(explorer: Explorer, card: FeatureCard, parent: FeatureCard | None) -> tuple[str, ...]:
    """The label of a feature, or the tokens that tell it from its parent; each once however it is capitalized."""
    if card.label:
        return (printable(card.label),)
    ids = [i for i in explorer.index.child_tokens[card.id].tolist() if i >= 0]
    telling = [printable(_decode(explorer, i)).strip() for i in ids]
    own: dict[str, str] = {}
    for token in (*telling, *card.tokens):
        if token:
            own.setdefault(token.casefold(), token)
    if telling:
        return tuple(own.values())[:_TITLE_TOKENS]
    above = {token.casefold() for token in parent.tokens} if parent else set()
    words = sorted(own, key=lambda word: word in above)
    return tuple(own[word] for word in words[:_TITLE_TOKENS])


def _by_token(card: FeatureCard) -> tuple[ContextCard, ...]:
    """Its contexts, strongest first, but those that repeat a token come last."""
    first = {context.passage.token.casefold(): context for context in reversed(card.contexts)}
    return tuple(sorted(card.contexts, key=lambda context: context not in first.values()))


def _rest(more: int, silent: int) -> str:
    parts = []
    if more > 0:
        parts.append(f"{more} more that fire{'s' if more == 1 else ''}")
    if silent:
        parts.append(f"{silent} that never fired here")
    return ", ".join(parts)
