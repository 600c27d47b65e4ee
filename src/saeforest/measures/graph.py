"""Parents and children in the forest, and in a graph that is inferred from firings (docs/spec/hierarchy.md#graph).

The measures of Grandien et al. (arXiv 2606.22994), from their published code, for two sets of edges:

    NAME        the forest's edges, between features that fire on `min_count` tokens or more
    graph_NAME  the edges of a graph that `structure/graph.py` infers from the firings on the first half of the tokens,
                with values from the second half, between features that fire on `min_count` tokens of each

NAME is any of the values that `graph_families.py` defines, or one of

    features, edges, families  number of features with a parent or child, of edges, and of parents
    children_per_parent        edges / families
    parents_per_child          edges / children
    depth, depth_mean          edges on the longest path from above: the maximum, and the mean over features

graph_NAME_shuffled is graph_NAME after the children of the graph were swapped for others that fire about as often. The
forest's values have their nulls from the evaluation. `in_graph` is the share of the forest's edges whose parent is
an ancestor of the child in the graph.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..structure.graph import FeatureGraph, GraphRules, graph_of, infer_graph
from ..structure.pairs import scores_memory, sorted_memory
from .bootstrap import Estimate, FloatArray, estimate, interval_method, units_of_sae
from .graph_families import (
    EDGE_VALUES,
    FEW,
    FIRING_VALUES,
    SIBLING_VALUES,
    FamilyNumbers,
    family_numbers,
    sibling_cosines,
    swapped,
)
from .record import EdgeScores, Record, undefined
from .spec import Study
from .subject import Subject

_COUNTS = ("features", "edges", "families")
_RATIOS = ("children_per_parent", "parents_per_child")
_DEPTHS = ("depth", "depth_mean")
_FRACTIONS = (
    "p_parent_child",
    "p_parent_child_weighted",
    "parent_larger",
    "soft_absorption",
    "coverage_by_children",
    "children_active_share",
    "in_graph",
)
_GRAPH, _SHUFFLED = "graph_", "_shuffled"


def graph(subject: Subject, config: GraphRules) -> Record:
    """The record "graph"."""
    pairs = subject.pairs
    rows = F.normalize(subject.sae.W_dec.detach().float().cpu())
    frequent = pairs.marginals.n >= config.min_count
    forest = graph_of(subject.forest)
    n_edges = len(forest)
    forest = forest.kept(frequent[forest.parent] & frequent[forest.child])
    half = pairs.n_tokens // 2
    inferred = infer_graph(pairs.part(0, half), config)
    # Edges look better on the tokens on which they were chosen, so they are measured on others.
    others = pairs.part(half, pairs.n_tokens)
    frequent = others.marginals.n >= config.min_count
    measured = inferred.graph.kept(frequent[inferred.graph.parent] & frequent[inferred.graph.child])

    parents = torch.tensor(list(forest.families), dtype=torch.int64)
    numbers = family_numbers(pairs, forest.families, "families of the forest")
    units = units_of_sae("parents", subject.sae, parents)
    found = _structure(forest).joined(_means(numbers, sibling_cosines(rows, forest), units))
    found = found.joined(_in_graph(forest, inferred.graph, units))
    in_graph = family_numbers(others, measured.families, "families of the graph")
    of_graph = _structure(measured).joined(_means(in_graph, sibling_cosines(rows, measured)))
    null = swapped(measured.families, others.marginals.n)
    of_null = _means(family_numbers(others, null, "families shuffled"))
    value, interval = dict(found.value), dict(found.interval)
    for one, end in ((of_graph, ""), (of_null, _SHUFFLED)):
        value |= {_GRAPH + name + end: number for name, number in one.value.items()}
        interval |= {_GRAPH + name + end: pair for name, pair in one.interval.items()}

    tokens = len(subject.rows)
    return Record(
        "graph",
        value,
        interval,
        unit="correlation",
        tokens=tokens,
        settings={
            **subject.settings,
            "config": asdict(config),
            "interval_method": f"{interval_method('parents')}; counts, depth: none",
        },
        detail={
            "null": undefined(
                value, _why(value, n_edges, len(forest), len(measured), config, tokens), tokens
            ),
            "units": {name: _unit(name) for name in value if _unit(name) != "correlation"},
            "steps": {**inferred.steps, "measured": len(measured)},
            "edges": [list(edge) for edge in zip(*_ends(inferred.graph), strict=True)],
        },
        replicates=found.replicates,
        edge_scores=_edge_scores(numbers),
    )


def _ends(graph: FeatureGraph) -> tuple[list[int], list[int]]:
    return graph.parent.tolist(), graph.child.tolist()


def _structure(graph: FeatureGraph) -> Estimate:
    """Counts and depths."""
    n_families, n_children = len(graph.families), int((graph.n_parents > 0).sum())
    depth = graph.depth[graph.features]
    value: dict[str, float | None] = {
        "features": len(graph.features),
        "edges": len(graph),
        "families": n_families,
        "children_per_parent": len(graph) / n_families if n_families else None,
        "parents_per_child": len(graph) / n_children if n_children else None,
        "depth": int(graph.depth.max()),
        "depth_mean": float(depth.double().mean()) if len(depth) else None,
    }
    return Estimate(value, dict.fromkeys(value), {})


def _means(numbers: FamilyNumbers, siblings: FloatArray | None = None, units: str = "") -> Estimate:
    """Means over edges and over families. Children share their parent's firings, so parents are resampled."""
    by_family = numbers.firing if siblings is None else np.concatenate([numbers.firing, siblings], axis=1)
    names = (*EDGE_VALUES, *FIRING_VALUES, *(() if siblings is None else SIBLING_VALUES))
    total = np.zeros((len(by_family), len(EDGE_VALUES)))
    counted = np.zeros_like(total)
    np.add.at(total, numbers.family, np.nan_to_num(numbers.edge))
    np.add.at(counted, numbers.family, np.isfinite(numbers.edge).astype(np.float64))
    total = np.concatenate([total, np.nan_to_num(by_family)], axis=1)
    counted = np.concatenate([counted, np.isfinite(by_family).astype(np.float64)], axis=1)

    def means(weights: FloatArray) -> dict[str, FloatArray]:
        return dict(zip(names, (weights @ total / (weights @ counted)).T, strict=True))

    return estimate(means, len(by_family), units)


def _edge_scores(numbers: FamilyNumbers) -> dict[str, EdgeScores]:
    found = {}
    for i, name in enumerate(EDGE_VALUES):
        score = numbers.edge[:, i]
        defined = np.isfinite(score)
        found[name] = EdgeScores(torch.from_numpy(numbers.child[defined]), torch.from_numpy(score[defined]))
    return found


def _in_graph(forest: FeatureGraph, graph: FeatureGraph, units: str) -> Estimate:
    """The share of the forest's edges that lead from an ancestor down in the graph."""
    inside, edges = [], []
    for parent, children in forest.families.items():
        inside.append(sum(graph.ancestors[child] >> parent & 1 for child in children))
        edges.append(len(children))
    total, n = np.array(inside, dtype=np.float64), np.array(edges, dtype=np.float64)

    def share(weights: FloatArray) -> dict[str, FloatArray]:
        return {"in_graph": weights @ total / (weights @ n)}

    return estimate(share, len(total), units)


def _unit(name: str) -> str:
    name = name.removeprefix(_GRAPH).removesuffix(_SHUFFLED)
    if name in _COUNTS:
        return name
    if name in _DEPTHS:
        return "edges"
    if name in _FRACTIONS:
        return "fraction"
    if name in SIBLING_VALUES or name == "mcs":
        return "cosine"
    if name in (*_RATIOS, "child_rate", "child_parent_ratio"):
        return "ratio"
    return "features" if name == "children_active" else "correlation"


def _why(
    names: dict[str, Any],
    n_edges: int,
    n_in_forest: int,
    n_in_graph: int,
    config: GraphRules,
    tokens: int,
) -> dict[str, str]:
    """Why values may be undefined."""
    measured = f"{config.min_count} or more of the {tokens:,} measured tokens"
    no_edge = {
        "": f"the forest has no edge between two features that fire on {measured}"
        if n_edges
        else "the forest has no edges",
        _GRAPH: "no edge is left in the graph: measure more text, or lower threshold or min_descendants",
    }
    left = {"": n_in_forest, _GRAPH: n_in_graph}
    why = {}
    for name in names:
        of = _GRAPH if name.startswith(_GRAPH) else ""
        if not left[of]:
            why[name] = no_edge[of]
        elif _unit(name) == "cosine":
            why[name] = "no parent has two children"
        else:
            why[name] = f"on fewer than {FEW} tokens, or always the same"
    return why


SPEC = Study(
    name="graph",
    needs=frozenset({"firings", "forest"}),
    sets=("truth",),
    config=GraphRules,
    run=graph,
    memory=lambda size: (
        size.decoder
        + 2 * sorted_memory(size.n_firings // 2, size.d_sae)
        + scores_memory(size.d_sae, ("mcs_correlation",))
    ),
    nulls=(*EDGE_VALUES, *FIRING_VALUES, "sibling_cosine", "in_graph", "graph_features", "graph_edges"),
    forest_free=lambda _: ("graph_features", "graph_edges"),
    version=2,
)
