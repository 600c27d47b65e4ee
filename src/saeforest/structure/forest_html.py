"""How a notebook displays a forest: its levels, and its largest trees to unfold."""

from __future__ import annotations

import torch

from ..html import fragment, shown, table
from .forest import ROOT, Forest

_LEVELS, _TREES, _NODES = 12, 5, 60


def forest_html(forest: Forest) -> str:
    """A forest as a fragment of HTML."""
    title = f"<h4>{shown(repr(forest))}</h4>"
    if not forest.edges.shape[1]:
        return fragment(title, '<p class="q">Every feature is a root.</p>')
    return fragment(title, _levels(forest), _trees(forest))


def _levels(forest: Forest) -> str:
    rows = []
    levels = int(forest.level.max()) + 1
    for level in range(min(levels, _LEVELS)):
        here = forest.level == level
        children = forest.n_children[here]
        rows.append(
            (
                str(level),
                f"{int(here.sum()):,}",
                f"{int((here & (forest.parent == ROOT)).sum()):,}",
                f"{int((children > 0).sum()):,}",
                f"{int(children.max()):,}",
            )
        )
    word = "layer" if forest.layered else "level"
    more = f'<p class="q">and {levels - _LEVELS:,} more</p>' if levels > _LEVELS else ""
    return table((word, "features", "roots", "with children", "largest family"), rows, [True] * 5) + more


def _trees(forest: Forest) -> str:
    sizes = _sizes(forest)
    largest = sorted(forest.roots, key=lambda root: (-int(sizes[root]), root))[:_TREES]
    trees = "".join(
        f"<details><summary>feature {root}, {int(sizes[root]) - 1:,} below it</summary>"
        f"<ul>{_node(forest, root, [_NODES])}</ul></details>"
        for root in largest
        if sizes[root] > 1
    )
    return f'<p class="q">The largest trees</p>{trees}'


def _sizes(forest: Forest) -> torch.Tensor:
    """Number of features in the subtree of each feature."""
    sizes = torch.ones(forest.d_sae, dtype=torch.int64)
    for depth in range(int(forest.depth.max()), 0, -1):
        at = (forest.depth == depth).nonzero().flatten()
        sizes.index_add_(0, forest.parent[at], sizes[at])
    return sizes


def _node(forest: Forest, feature: int, left: list[int]) -> str:
    """A feature with those below it. left: number of features that may still be listed, counted down."""
    below, children = "", forest.children(feature)
    for i, child in enumerate(children):
        if left[0] == 0:
            below += f'<li class="q">and {len(children) - i:,} more</li>'
            break
        left[0] -= 1
        below += _node(forest, child, left)
    return f"<li>{feature}{f'<ul>{below}</ul>' if below else ''}</li>"
