"""The hierarchy metric (Tree SAE, section 5.2; docs/spec/hierarchy.md#hierarchy-metric).

It counts how many of the children found for sampled parents are hierarchical.

Parents are drawn from the most frequent half of all features; a procedure names children of each. A pair is a hit where

    rank of d_c <= 5  and  rank of d_p <= 5   among the cosines of all decoder rows with d*_c (Eq. 5; `probes`)

and a procedure's score is hits / pairs, pooled over all pairs; with several seeds, the mean of the scores of each.

    tree                n children in the forest, n = min(5, children by MCS, children in the forest)
    mcs                 the n children of the largest binary MCS, which is the root of the coverage. Of a flat SAE, or
                        where the forest has no edges, the same as
    mcs_unconditional   up to 5 children by MCS of every parent
    tree_unconditional  up to 5 children in the forest, however many MCS has

A child counts where it fires on `min_count` activations, and not on all of them: then it has no direction. A flat SAE's
forest was inferred, by a condition much like the one tested, so there the paper's numbers are those by MCS; they are
also what `error_rate` is 1 minus (figure 2c), elsewhere `tree`.

None of these shows that a tree was learned: a child of a Tree SAE fires only where its parent does, so every direction
of the child points along the parent, and a tree that was never trained scores as high (docs/measures.md).

In a tree, `tree` and `mcs` leave out all parents without children, so they are not to be compared with what a flat SAE
has. `mcs_unconditional` leaves out none, and neither does the precision of equally many best pairs (by coverage, then
n_c): `matched_tree` of tree_unconditional and `matched_mcs` of mcs_unconditional, of both as many as the smaller has;
`curve` of any number, over the distinct pairs of all seeds. Of a tree both are nearly the same pairs: the coverage of
its edges is 1.
`lda_...` is the score by directions that need no training. `HierarchyConfig.reference()` is the authors' own reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch

from ..errors import require
from ..structure.pairs import scores_memory
from .bootstrap import estimate, interval_method
from .columns import HIERARCHY, Column
from .composition import cosines_memory
from .hierarchy_pairs import (
    PROCEDURES,
    HierarchyConfig,
    Procedure,
    choose_children,
    draw_parents,
    has_edges,
    judge_pairs,
    own_tree,
    possible_children,
)
from .hierarchy_scores import (
    ByParent,
    by_seed,
    counts_of,
    formula_of,
    pair_list,
    precision_curve,
    rank_curve_of,
    ratios_of,
    variants_of,
)
from .probes import probes_memory
from .record import Record, undefined
from .spec import Size, Study
from .subject import Subject

#: Those that need children in the forest; "mcs" and "error_rate" only where the SAE learned it.
_OF_FOREST = (
    "tree", "tree_unconditional", "tree_parents_share", "matched_tree", "matched_mcs", "mean_over_parents_tree",
    "s_res_tree", "lda_tree",
)  # fmt: skip
_OF_OWN_TREE = ("mcs", "mean_over_parents_mcs", "error_rate")


def hierarchy(subject: Subject, config: HierarchyConfig) -> Record:
    """All children of all procedures are given directions together: training their probes is what takes the time."""
    sample = draw_parents(subject, config)
    chosen = choose_children(subject, config, sample)
    judged = judge_pairs(subject, config, sample, chosen)
    table = {name: ByParent(judged, rows, len(sample.parents)) for name, rows in judged.rows.items()}
    gated = subject.sae.gated and torch.equal(subject.sae.forest.parent, subject.forest.parent)
    covered = bool((judged.coverage[judged.rows["tree_unconditional"]] == 1).all())
    require(covered or not gated, "hierarchy", "coverage 1 of every pair of a Tree SAE")

    learned = own_tree(subject)
    ratios = ratios_of(table, has_edges(subject) and bool(possible_children(subject, config).any()))
    error_rate_of: Procedure = "tree" if learned else "mcs"
    found = estimate(formula_of(sample, judged, ratios, error_rate_of), len(sample.parents))
    for name, score in found.value.items():
        least = -1 if name.startswith("s_res") else 0
        require(score is None or least <= score <= 1 + 1e-6, "hierarchy", f"{least} <= {name} <= 1")

    tokens = len(subject.rows)
    procedures = {name: table[name] for name in PROCEDURES}
    return Record(
        "hierarchy",
        found.value,
        found.interval,
        unit="fraction",
        tokens=tokens,
        settings={
            **subject.settings,
            "config": asdict(config),
            "probe": asdict(subject.probes.config),
            "interval_method": interval_method("sampled parents, each with all its children"),
        },
        detail={
            "null": undefined(found.value, _why(subject, config, found.value), tokens),
            "units": {name: "cosine" for name in found.value if name.startswith("s_res")},
            "tree_conditional": learned,
            "error_rate_of": error_rate_of,
            "parents": {
                "asked": config.parents,
                "candidates": sample.candidates,
                "by_seed": [sample.parents.repeat_interleave(times).tolist() for times in sample.times],
            },
            "by_seed": {name: by_seed(sample, ratio) for name, ratio in ratios.items()},
            "counts": {name: counts_of(sample, of) for name, of in procedures.items()},
            "curve": {
                "tree": precision_curve(judged, "tree_unconditional"),
                "mcs": precision_curve(judged, "mcs_unconditional"),
            },
            "variants": variants_of(sample, config, table),
            "rank_curve": rank_curve_of(judged, config),
            "pairs": pair_list(sample, judged),
        },
    )


def _why(subject: Subject, config: HierarchyConfig, value: Mapping[str, float | None]) -> dict[str, str]:
    measured = f"{config.min_count} or more, but not all, of the {len(subject.rows):,} measured tokens"
    if not bool(possible_children(subject, config).any()):
        return dict.fromkeys(value, f"no feature fired on {measured}: measure more text, or lower min_count")
    no_mcs = f"no sampled parent fires together with another feature that fired on {measured}"
    no_tree = f"no sampled parent has a child in the forest that fired on {measured}"
    if not has_edges(subject):
        no_tree = "the forest has no edges"
    of_forest = _OF_FOREST + (_OF_OWN_TREE if own_tree(subject) else ())
    return dict.fromkeys(value, no_mcs) | dict.fromkeys(of_forest, no_tree)


def _memory(size: Size) -> int:
    # Directions by LDA stand beside the probes: a float64 mean for every feature.
    by_lda = 8 * size.d_sae * size.d_in + cosines_memory(size.d_sae)
    by_mcs = scores_memory(size.d_sae, ("mcs_correlation",))
    return size.decoder + max(by_mcs, by_lda, probes_memory(size.n_tokens, size.d_in, size.n_probes))


SPEC = Study(
    name="hierarchy",
    needs=frozenset({"firings", "activations", "probes", "forest"}),
    transcoders=False,  # it holds decoder rows against the activations that are read
    sets=("paper",),
    config=HierarchyConfig,
    readings={"ref_tree_sae": HierarchyConfig.reference()},
    run=hierarchy,
    columns=(
        Column(HIERARCHY, "tree", "by its forest", "↑"),
        Column(HIERARCHY, "mcs", "by MCS, as in the paper", "↑"),
        Column(HIERARCHY, "mcs_unconditional", "by MCS, any parents", "↑"),
        Column(HIERARCHY, "matched_tree", "n best, by its forest", "↑"),
        Column(HIERARCHY, "matched_mcs", "n best, by MCS", "↑"),
    ),
    memory=_memory,
)
