"""The forest in the terminal: the most telling families, and the tree around one feature. Only prints cards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group
from rich.text import Text
from rich.tree import Tree

from ...text.passages import keyword_line
from ..queries.cards import ContextCard, EdgeCard, FamilyCard, FeatureCard, OverviewCard
from ..queries.explorer import Explorer
from .nulls import nulls_note
from .percent import percent

_WIDEST = 120
# Fraction of the columns for the active token and the text after it.
_RIGHT_SHARE = 0.42
_MAX_CHILDREN = 12
_FAMILY_CHILDREN, _FAMILY_CONTEXTS = 5, 2
# The columns of an edge that are shown, with their names.
_COLUMNS = {"p_child": "P(c|p)", "s_res": "S_res", "ungated": "ungated"}
_FOCUS = "bold reverse cyan"


def show_families(console: Console, explorer: Explorer, n: int = 10, nulls: str = "") -> None:
    """Print the `n` most telling families (see `telling_families`), and an overview of the forest.

    nulls: what was measured of the hierarchy beside its nulls (`nulls_line`).
    """
    view = _View(explorer, _width(console), nulls)
    overview = explorer.overview()
    view.print(console, view.about(overview))
    if overview.n_edges == 0:
        view.print(console, Text(view.no_families(overview)))
        return
    view.print(console, view.census(overview))
    families = explorer.families(n)
    for family in families:
        view.print(console, Text(), view.family(family))
    if not families:
        view.print(console, Text("\nNo family qualifies to be shown: train longer, or index more tokens."))
    view.print(console, Text(), view.legend(overview))


def show_feature(
    console: Console, explorer: Explorer, feature: int, depth: int = 3, contexts: int = 3, nulls: str = ""
) -> None:
    """Print the tree below a feature, `depth` generations deep, and the path from the root to it.

    nulls: what was measured of the hierarchy beside its nulls (`nulls_line`).

    Raises InputError if there is no such feature.
    """
    view = _View(explorer, _width(console), nulls)
    overview, tree = explorer.overview(), view.tree(explorer.feature(feature), depth, contexts)
    view.print(console, view.about(overview), Text(), tree, Text(), view.legend(overview))


def _width(console: Console) -> int:
    return min(console.width, _WIDEST)


@dataclass(frozen=True)
class _Concordance:
    """Lines of passages with their marked tokens aligned, at whatever depth of the tree."""

    contexts: Sequence[ContextCard]
    right: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for context in self.contexts:
            gutter = f"{100 * context.share:3.0f}% "
            left = max(options.max_width - self.right - cell_len(gutter), 0)
            line = Text.assemble((gutter, "dim"), keyword_line(context.passage, left, self.right))
            line.no_wrap, line.overflow = True, "crop"
            yield line


@dataclass(frozen=True, eq=False)
class _View:
    explorer: Explorer
    width: int
    nulls: str

    def print(self, console: Console, *parts: Text | Tree) -> None:
        for part in parts:
            console.print(part, width=self.width)

    # -- the lines

    def about(self, overview: OverviewCard) -> Text:
        return Text(
            f"{overview.model}, {overview.site}: {overview.n_alive:,} of {overview.n_features:,} features fire "
            f"on {overview.n_tokens:,} tokens",
            style="bold",
        )

    def census(self, overview: OverviewCard) -> Text:
        below = overview.n_features - overview.layer_sizes[0]
        share = (
            f"\n{overview.n_edges / below:.0%} of the features below the first layer have a parent"
            if below
            else ""
        )
        return Text(
            f"{overview.n_edges:,} parent-child edges, {overview.forest}; in {overview.n_judged:,} of them the child "
            f"fires {overview.min_count} times or more{share}"
        )

    def no_families(self, overview: OverviewCard) -> str:
        if overview.forest == "none":
            return (
                "No families: this SAE has no forest. Infer one with `saeforest infer RUN`, then run "
                "`saeforest index RUN` again."
            )
        return "No families: every feature is a root."

    def legend(self, overview: OverviewCard) -> Text:
        vectors = ""
        if overview.rows == "encoder":
            vectors = " and encoder vectors, since a transcoder's decoder writes at another site"
        nulls = f"\n{self.nulls or nulls_note()}" if overview.n_edges else ""
        return Text(
            "Percentages: fraction of tokens; next to a text, fraction of the feature's strongest activation.\n"
            "P(c|p): how often the child fires where its parent fires. S_res: reconstruction score (Eq. 5), estimated "
            f"with LDA directions instead of the paper's probes{vectors}; a high score does not show that the "
            f"hierarchy was learned.{self.places(overview)}\n"
            f"`saeforest show RUN FEATURE` shows the tree around one feature.{nulls}",
            style="dim",
        )

    def places(self, overview: OverviewCard) -> str:
        """What the numbers in brackets are, or how to get them."""
        if not overview.n_edges:
            return ""
        if not overview.n_placed:
            return (
                "\nNo edge has a place among null pairs in this index: `saeforest index RUN --tokens 1000000` makes "
                "it anew from more text."
            )
        forced = [title for name, title in _COLUMNS.items() if name in overview.forced_by]
        by = "the gate" if "gate" in overview.forced_by.values() else "the choice of parents"
        verb = "beat" if len(forced) > 1 else "beats"
        warning = f" {', '.join(forced)} {verb} them by {by} alone." if forced else ""
        return (
            "\nungated: how often the parent is active where the child's own detector is on, which does not know of "
            "the parent. In brackets: the share of matched null pairs that the edge beats; in them, parents have "
            "changed places with others of their layer that fire about as often. Ties count half; 50% is chance."
            f"{warning}"
        )

    def header(self, card: FeatureCard, style: str = "bold cyan", top: bool = False) -> Text:
        """One line: id, density, edge from the parent, strongest tokens. top: whether the parent is not shown."""
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{card.id:>{len(str(self.explorer.forest.d_sae - 1))}}", style)
        if not card.alive:
            return line.append("  never fired here", "dim")
        line.append(f"  {percent(card.density):>7}")
        if card.edge is not None:
            line.append_text(Text(f"  under {card.edge.parent}", "dim") if top else self.edge(card.edge))
        if live := len(card.children):
            line.append(f"  {live} {'child' if live == 1 else 'children'}")
        return line.append("  ").append(" · ".join(card.tokens), "italic")

    def edge(self, edge: EdgeCard) -> Text:
        """The numbers of an edge, each with its place among null pairs."""
        values = {"p_child": edge.p_child, "s_res": edge.s_res, "ungated": edge.ungated}
        line = Text()
        for name, title in _COLUMNS.items():
            value, place = values[name], edge.places.get(name)
            if value is None:
                line.append("" if name == "ungated" else f"  {title}  -   ", "dim")
            else:
                line.append(f"  {title} {value:.2f}" + ("" if place is None else f" ({place:.0%})"))
        return line

    # -- the trees

    def node(self, card: FeatureCard, contexts: int, style: str = "bold cyan", top: bool = False) -> Group:
        lines = _Concordance(card.contexts[:contexts], int(_RIGHT_SHARE * self.width))
        return Group(self.header(card, style, top), lines)

    def family(self, family: FamilyCard) -> Tree:
        """A family in brief, with the children by which it was chosen first."""
        tree = Tree(self.node(family.parent, _FAMILY_CONTEXTS, _FOCUS, top=True), guide_style="dim")
        shown = family.children[:_FAMILY_CHILDREN]
        for edge in shown:
            tree.add(self.node(self.explorer.feature(edge.child), 1))
        self.add_rest(tree, family.parent, len(shown))
        return tree

    def tree(self, card: FeatureCard, depth: int, contexts: int) -> Tree:
        nodes = [self.node(self.explorer.feature(f), 0) for f in card.path[:-1]]
        nodes.append(self.node(card, contexts, _FOCUS))
        tree = leaf = Tree(nodes[0], guide_style="dim")
        for node in nodes[1:]:
            leaf = leaf.add(node)
        self.add_children(leaf, card, depth, contexts)
        return tree

    def add_children(self, tree: Tree, card: FeatureCard, depth: int, contexts: int) -> None:
        if depth == 0:
            return
        shown = card.children[:_MAX_CHILDREN]
        for edge in shown:
            child = self.explorer.feature(edge.child)
            self.add_children(tree.add(self.node(child, contexts)), child, depth - 1, max(contexts - 1, 1))
        self.add_rest(tree, card, len(shown))

    def add_rest(self, tree: Tree, card: FeatureCard, shown: int) -> None:
        """A line for the children that are not shown."""
        if rest := list(self.rest(card, shown)):
            tree.add(Text("+ " + "; ".join(rest), style="dim"))

    def rest(self, card: FeatureCard, shown: int) -> Iterator[str]:
        if len(card.children) > shown:
            yield f"{len(card.children) - shown} more that fire"
        if card.n_silent:
            yield f"{card.n_silent} {'child' if card.n_silent == 1 else 'children'} that never fired here"
