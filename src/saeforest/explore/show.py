"""The forest in the terminal: the most telling families, and the tree around one feature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group
from rich.text import Text
from rich.tree import Tree
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..structure.forest import ROOT, Forest
from ..text.passages import Passage, keyword_line, read_passage
from .families import Family, telling_families
from .index import Index

_WIDEST = 120
# Of the columns, what the active token and the text behind it take.
_RIGHT_SHARE = 0.42
_MAX_CHILDREN = 12
_FAMILY_CHILDREN, _FAMILY_CONTEXTS = 5, 2
_FOCUS = "bold reverse cyan"


def show_families(
    console: Console, index: Index, forest: Forest, tokenizer: PreTrainedTokenizerBase, n: int = 10
) -> None:
    """Prints the `n` most telling families (see `telling_families`), and what the whole forest looks like."""
    view = _View(index, forest, tokenizer, _width(console))
    families = telling_families(index, forest, n)
    view.print(console, view.about())
    if families.n_edges == 0:
        view.print(console, Text("No families: every feature hangs from the root."))
        return
    view.print(console, view.census(families.n_edges, families.n_judged))
    for family in families.shown:
        view.print(console, Text(), view.family(family))
    if not families.shown:
        view.print(console, Text("\nNo family to show yet: train longer, or index more tokens."))
    view.print(console, Text(), view.legend())


def show_feature(
    console: Console,
    index: Index,
    forest: Forest,
    tokenizer: PreTrainedTokenizerBase,
    feature: int,
    depth: int = 3,
    contexts: int = 3,
) -> None:
    """Prints the tree under a feature, `depth` generations of it, and the path from the root above it.

    Raises UserError where there is no such feature.
    """
    if not 0 <= feature < forest.d_sae:
        raise UserError(f"feature {feature}: expected 0 to {forest.d_sae - 1}")
    view = _View(index, forest, tokenizer, _width(console))
    view.print(console, view.about(), Text(), view.tree(feature, depth, contexts), Text(), view.legend())


def _width(console: Console) -> int:
    return min(console.width, _WIDEST)


@dataclass(frozen=True)
class _Concordance:
    """Lines of passages whose marked tokens stand one below the other, at whatever depth of the tree."""

    passages: list[tuple[str, Passage]]
    right: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        for gutter, passage in self.passages:
            left = max(options.max_width - self.right - cell_len(gutter), 0)
            line = Text.assemble((gutter, "dim"), keyword_line(passage, left, self.right))
            line.no_wrap, line.overflow = True, "crop"
            yield line


@dataclass(frozen=True, eq=False)
class _View:
    index: Index
    forest: Forest
    tokenizer: PreTrainedTokenizerBase
    width: int

    def print(self, console: Console, *parts: Text | Tree) -> None:
        for part in parts:
            console.print(part, width=self.width)

    # -- the lines

    def about(self) -> Text:
        about = self.index.about
        live = int((self.index.n_fired > 0).sum())
        return Text(
            f"{about.model}, {about.site}: {live:,} of {self.index.d_sae:,} features fire "
            f"on {about.n_tokens:,} tokens",
            style="bold",
        )

    def census(self, n_edges: int, n_judged: int) -> Text:
        return Text(
            f"{n_edges:,} parent-child edges; in {n_judged:,} the child fires {self.index.about.min_count} times "
            "or more"
        )

    def legend(self) -> Text:
        return Text(
            "Percentages: share of tokens; beside a context, share of the feature's strongest activation.\n"
            "P(c|p): how often the child fires where its parent fires. S_res: reconstruction score (Eq. 5), estimated "
            "with LDA directions instead of the paper's probes; a high score does not show that the hierarchy was "
            "learned.\n"
            "`saeforest show RUN FEATURE` shows the tree around one feature.",
            style="dim",
        )

    def header(self, feature: int, style: str = "bold cyan", top: bool = False) -> Text:
        """One line: id, density, and, of a child, its edge; then its strongest tokens. `top`: drawn without parent."""
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{feature:>{len(str(self.index.d_sae - 1))}}", style)
        fired = int(self.index.n_fired[feature])
        if fired == 0:
            return line.append("  never fired here", "dim")
        line.append(f"  {percent(float(self.index.density[feature])):>7}")
        if (parent := int(self.forest.parent[feature])) != ROOT:
            line.append_text(Text(f"  under {parent}", "dim") if top else self.edge(feature, parent))
        if live := len(self.live_children(feature)):
            line.append(f"  {live} {'child' if live == 1 else 'children'}")
        return line.append("  ").append(" · ".join(self.strongest_tokens(feature)), "italic")

    def edge(self, child: int, parent: int) -> Text:
        line = Text()
        p = int(self.index.n_with_parent[child]) / max(int(self.index.n_fired[parent]), 1)
        line.append(f"  P(c|p) {p:.2f}")
        if not self.index.measured[child]:
            return line.append("  S_res  -   ", "dim")
        return line.append(f"  S_res {float(self.index.s_res[child]):5.2f}")

    # -- what a feature fires on

    @cache  # noqa: B019 - a view lives as long as one command
    def passages(self, feature: int) -> list[tuple[str, Passage]]:
        """Its strongest activations, as a share of the strongest, with the text; the same text once only."""
        different: dict[tuple[str, str, str], tuple[str, Passage]] = {}
        for value, row in zip(
            self.index.top_value[feature], self.index.top_row[feature].tolist(), strict=True
        ):
            if row >= 0:
                passage = read_passage(self.index.tokens, self.tokenizer, row)
                share = f"{100 * float(value / self.index.value_max[feature]):3.0f}% "
                key = (passage.before[-24:], passage.token, passage.after[:24])
                different.setdefault(key, (share, passage))
        return list(different.values())

    def strongest_tokens(self, feature: int) -> list[str]:
        return list(dict.fromkeys(passage.token for _, passage in self.passages(feature)))

    def live_children(self, feature: int) -> list[int]:
        """Children that fired, the most frequent first."""
        fired = self.index.n_fired
        live = (c for c in self.forest.children(feature) if fired[c] > 0)
        return sorted(live, key=lambda c: (-int(fired[c]), c))

    # -- the trees

    def node(self, feature: int, contexts: int, style: str = "bold cyan", top: bool = False) -> Group:
        lines = _Concordance(self.passages(feature)[:contexts], int(_RIGHT_SHARE * self.width))
        return Group(self.header(feature, style, top), lines)

    def family(self, family: Family) -> Tree:
        """A family in brief, the children by which it was chosen first."""
        tree = Tree(self.node(family.parent, _FAMILY_CONTEXTS, _FOCUS, top=True), guide_style="dim")
        shown = (*family.passing, *(c for c in family.children if c not in family.passing))[:_FAMILY_CHILDREN]
        for child in shown:
            tree.add(self.node(child, 1))
        self.add_rest(tree, family.parent, len(shown))
        return tree

    def tree(self, feature: int, depth: int, contexts: int) -> Tree:
        path = self.forest.path(feature)
        nodes = [self.node(f, 0) for f in path[:-1]] + [self.node(feature, contexts, _FOCUS)]
        tree = leaf = Tree(nodes[0], guide_style="dim")
        for node in nodes[1:]:
            leaf = leaf.add(node)
        self.add_children(leaf, feature, depth, contexts)
        return tree

    def add_children(self, tree: Tree, feature: int, depth: int, contexts: int) -> None:
        if depth == 0:
            return
        shown = self.live_children(feature)[:_MAX_CHILDREN]
        for child in shown:
            self.add_children(tree.add(self.node(child, contexts)), child, depth - 1, max(contexts - 1, 1))
        self.add_rest(tree, feature, len(shown))

    def add_rest(self, tree: Tree, feature: int, shown: int) -> None:
        """A line for the children that are not shown."""
        if rest := list(self.rest(feature, shown)):
            tree.add(Text("+ " + "; ".join(rest), style="dim"))

    def rest(self, feature: int, shown: int) -> Iterator[str]:
        live = len(self.live_children(feature))
        silent = len(self.forest.children(feature)) - live
        if live > shown:
            yield f"{live - shown} more that fire"
        if silent:
            yield f"{silent} {'child' if silent == 1 else 'children'} that never fired here"


def percent(share: float) -> str:
    """A share in percent with two digits that count."""
    number = 100 * share
    return f"{number:.0f} %" if number >= 9.95 else f"{number:#.2g} %"
