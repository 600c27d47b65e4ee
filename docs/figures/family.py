"""Draws a feature with some of its children, each with text that activates it, as an SVG.

    python docs/figures/family.py RUN PARENT CHILD [CHILD ...] --out docs/figures/family.svg

RUN is a finished run of `saeforest train`; its index is made if it has none. `saeforest show RUN` lists families to
choose from. The figure of the README:

    saeforest train demo-tree-paper --tokens 250000 --out runs/figure
    saeforest index runs/figure --tokens 80000
    python docs/figures/family.py runs/figure 636 3087 5232 2807 2662
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

from saeforest.explore import open_explorer
from saeforest.explore.queries.cards import ContextCard, FeatureCard
from saeforest.explore.views.percent import percent

WIDTH, LEFT, RIGHT = 1000, 330, 590
PARENT_HEIGHT, CHILD_HEIGHT, GAP, MARGIN = 154, 66, 12, 16
INK, FAINT, ACCENT, PAPER, LINE = "#1f2933", "#66727f", "#c2410c", "#ffffff", "#0f766e"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
# Width of a character of the monospaced text, in its own size.
ADVANCE = 0.602


def text(x: float, y: float, content: str, size: float, *, color: str = INK, weight: int = 400, anchor: str = "start",
         font: str = SANS) -> str:  # fmt: skip
    return (
        f'<text x="{x}" y="{y}" font-family="{font}" font-size="{size}" font-weight="{weight}" fill="{color}" '
        f'text-anchor="{anchor}" xml:space="preserve">{content}</text>'
    )


def context_line(context: ContextCard, columns: int) -> str:
    """The text around the active token, cut to `columns` characters, with the token marked."""
    passage = context.passage
    before, token, after = (part.replace("↵", " ") for part in (passage.before, passage.token, passage.after))
    token = token[: columns // 2]
    left = min(len(before), max((columns - len(token)) * 3 // 5, columns - len(token) - len(after)))
    shown = before[len(before) - left :]
    if left < len(before) or not passage.starts:
        shown = "…" + shown[1:]
    rest = columns - len(shown) - len(token)
    tail = after if len(after) <= rest else after[: rest - 1] + "…"
    marked = f'<tspan fill="{ACCENT}" font-weight="700">{escape(token)}</tspan>'
    return escape(shown) + marked + escape(tail)


def box(x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="#f0fdfa" stroke="{LINE}"/>'


def title(card: FeatureCard, columns: int) -> str:
    """The tokens it is active on, each once however it is capitalized, as many as fit."""
    words = list({token.casefold(): token for token in reversed(card.tokens)}.values())[::-1]
    shown = words[0]
    for word in words[1:]:
        if len(shown) + len(word) + 3 > columns:
            break
        shown += f" · {word}"
    return escape(shown)


def by_token(card: FeatureCard) -> list[ContextCard]:
    """Its strongest contexts, those of other tokens first."""
    first = {context.passage.token.casefold(): context for context in reversed(card.contexts)}
    return sorted(card.contexts, key=lambda context: context not in first.values())


def parent_box(card: FeatureCard, y: float) -> list[str]:
    size, inner = 11.5, LEFT - 28
    columns = int(inner / (ADVANCE * size))
    parts = [
        box(MARGIN, y, LEFT, PARENT_HEIGHT),
        text(MARGIN + 14, y + 28, title(card, 32), 15, weight=700),
        text(
            MARGIN + 14,
            y + 48,
            f"feature {card.id} · active on {percent(card.density)} of tokens",
            12,
            color=FAINT,
        ),
    ]
    for i, context in enumerate(by_token(card)[:4]):
        line = context_line(context, columns)
        parts.append(text(MARGIN + 14, y + 74 + 20 * i, line, size, font=MONO))
    return parts


def child_box(card: FeatureCard, y: float) -> list[str]:
    assert card.edge is not None
    x, size = WIDTH - MARGIN - RIGHT, 11.5
    share = f"on {100 * (card.edge.p_child or 0):.0f} % of the parent's tokens"
    columns = int((RIGHT - 28) / (ADVANCE * size))
    return [
        box(x, y, RIGHT, CHILD_HEIGHT),
        text(x + 14, y + 26, title(card, 34), 15, weight=700),
        text(x + RIGHT - 14, y + 26, f"feature {card.id} · {share}", 12, color=FAINT, anchor="end"),
        text(x + 14, y + 50, context_line(card.contexts[0], columns), size, font=MONO),
    ]


def draw(parent: FeatureCard, children: list[FeatureCard]) -> str:
    column = len(children) * (CHILD_HEIGHT + GAP) - GAP
    height = max(column, PARENT_HEIGHT) + 2 * MARGIN
    top = (height - column) / 2
    middle = height / 2
    parts = [f'<rect width="{WIDTH}" height="{height}" rx="12" fill="{PAPER}"/>']
    start, end = MARGIN + LEFT, WIDTH - MARGIN - RIGHT
    for i, child in enumerate(children):
        y = top + i * (CHILD_HEIGHT + GAP)
        to, bend = y + CHILD_HEIGHT / 2, (start + end) / 2
        curve = f"M{start} {middle} C{bend} {middle} {bend} {to} {end} {to}"
        parts.append(f'<path d="{curve}" fill="none" stroke="{LINE}" stroke-width="1.5"/>')
        parts += child_box(child, y)
    parts += parent_box(parent, middle - PARENT_HEIGHT / 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws a family of a forest.")
    parser.add_argument("run", type=Path)
    parser.add_argument("parent", type=int)
    parser.add_argument("children", type=int, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/family.svg"))
    args = parser.parse_args()
    explorer = open_explorer(args.run)
    svg = draw(explorer.feature(args.parent), [explorer.feature(child) for child in args.children])
    args.out.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
