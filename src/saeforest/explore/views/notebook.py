"""How notebooks display the explorer and its cards: as HTML without scripts, from the cards' own numbers and text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...html import fragment, shown, table
from ..queries.cards import Card, ContextCard, EdgeCard, FamilyCard, FeatureCard, OverviewCard, SearchResult
from .percent import percent

if TYPE_CHECKING:
    from ..queries.explorer import Explorer

_FAMILIES, _CHILDREN, _CONTEXTS = 5, 12, 6
_BEFORE, _AFTER = 48, 40


def explorer_html(explorer: Explorer) -> str:
    """The overview, and the most telling families with a line for each child."""
    families = explorer.families(_FAMILIES)
    parts = [_overview(explorer.overview())]
    if families:
        parts.append(
            "<p>Some families, chosen because they read well; they do not show how good the forest is:</p>"
        )
    for family in families:
        children = [explorer.feature(edge.child) for edge in family.children[:_CHILDREN]]
        rest = len(family.children) - len(children)
        items = "".join(f"<li>{_name(child)}{_where(child)}</li>" for child in children)
        items += f'<li class="q">and {rest:,} more</li>' if rest else ""
        summary = f"<summary>{_name(family.parent)}, {len(family.children)} children</summary>"
        parts.append(f"<details>{summary}<ul>{items}</ul></details>")
    parts.append(
        '<p class="q">explorer.feature(17) shows one feature, explorer.search("text") finds some.</p>'
    )
    return fragment(*parts)


def card_html(card: Card) -> str | None:
    """A card as a fragment of HTML; None for a kind of card that notebooks display as text."""
    match card:
        case FeatureCard():
            return fragment(*_feature(card))
        case FamilyCard():
            return fragment(*_family(card))
        case OverviewCard():
            return fragment(_overview(card))
        case EdgeCard():
            return fragment(*_edge(card))
        case ContextCard():
            return fragment(_contexts((card,)))
        case SearchResult():
            return fragment(*_result(card))
        case _:
            return None


# -- parts of these


def _feature(card: FeatureCard) -> list[str]:
    """A feature: its place in the forest, what it fires on, and its children."""
    path = " › ".join(f"<b>{i}</b>" if i == card.id else str(i) for i in card.path)
    parts = [
        f"<h4>{_name(card)}</h4>",
        f'<p class="q">layer {card.layer} · path {path}{_how_often(card)}</p>',
    ]
    if not card.alive:
        parts.append("<p>Never fired on the indexed text.</p>")
    parts += [_contexts(card.contexts), _children(card.children, card)]
    if card.n_silent:
        parts.append(f'<p class="q">{card.n_silent:,} of its children never fired here.</p>')
    return parts


def _family(card: FamilyCard) -> list[str]:
    """A parent with what it fires on, and its children."""
    parent = card.parent
    head = f'<h4>{_name(parent)}</h4><p class="q">layer {parent.layer}{_how_often(parent)}</p>'
    return [head, _contexts(parent.contexts), _children(card.children, parent)]


def _edge(card: EdgeCard) -> list[str]:
    """A parent and one of its children: only counts, as a score is not shown without its null."""
    return [
        f"<h4>feature {card.child} under {card.parent}</h4>",
        f"<p>The child fires on {card.n_child:,} tokens, the parent on {card.n_parent:,}, both on {card.n_both:,}.</p>",
    ]


def _result(card: SearchResult) -> list[str]:
    """A feature found by a search."""
    label = f" {shown(card.label)}" if card.label else ""
    head = f"<p><b>feature {card.feature}</b>{label}: “{shown(card.query)}” found in its {card.matched}</p>"
    return [head, _contexts((card.context,)) if card.context else ""]


def _overview(card: OverviewCard) -> str:
    return (
        f"<h4>{shown(card.model)}, {shown(card.site)}</h4>"
        f"<p>{card.n_alive:,} of {card.n_features:,} features fire on {card.n_tokens:,} tokens. "
        f"Forest: {shown(card.forest)}, {card.n_edges:,} edges; layers of "
        f"{', '.join(f'{size:,}' for size in card.layer_sizes)}.</p>"
    )


def _name(card: FeatureCard) -> str:
    words = shown(card.label) if card.label else " · ".join(map(shown, card.tokens))
    return f"<b>feature {card.id}</b> {words}"


def _where(card: FeatureCard) -> str:
    return f' <span class="t">{_line(card.contexts[0])}</span>' if card.contexts else ""


def _how_often(card: FeatureCard) -> str:
    if not card.alive:
        return ""
    return (
        f" · on {percent(card.density)} of tokens · mean {card.value_mean:.3g}, maximum {card.value_max:.3g}"
    )


def _contexts(contexts: tuple[ContextCard, ...]) -> str:
    rows = [
        (f"{context.value:.3g}", f'<span class="t">{_line(context)}</span>', shown(context.document))
        for context in contexts[:_CONTEXTS]
    ]
    return table(("value", "strongest contexts", "document"), rows, (True, False, False)) if rows else ""


def _line(context: ContextCard) -> str:
    passage = context.passage
    before, after = passage.before[-_BEFORE:], passage.after[:_AFTER]
    opening = "" if passage.starts and before == passage.before else "…"
    closing = "" if passage.ends and after == passage.after else "…"
    return f"{opening}{shown(before)}<mark>{shown(passage.token)}</mark>{shown(after)}{closing}"


def _children(edges: tuple[EdgeCard, ...], parent: FeatureCard) -> str:
    """The children of a parent, each with how often it fires there and how often it would if it were unrelated."""
    if not edges:
        return ""
    n_tokens = parent.n_fired / parent.density if parent.density else 0
    rows = [
        (
            str(edge.child),
            "" if edge.p_child is None else percent(edge.p_child),
            percent(edge.n_child / n_tokens) if n_tokens else "",
        )
        for edge in edges[:_CHILDREN]
    ]
    rest = len(edges) - len(rows)
    more = f'<p class="q">and {rest:,} more</p>' if rest else ""
    head = ("child", "fires on, of the parent’s tokens", "of all tokens (if it were unrelated)")
    return table(head, rows, (True, True, True)) + more
