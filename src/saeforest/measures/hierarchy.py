"""The hierarchy metric (Tree SAE, section 5.2; docs/spec/hierarchy.md#hierarchy-metric).

It is the fraction of hierarchical pairs among the children found for sampled parents.

Parents are drawn from the more frequent half of all features, and a procedure chooses children for each. A pair is a
hit if

    rank of d_c <= 5  and  rank of d_p <= 5   among the cosines of all decoder rows with d*_c (Eq. 5; `probes`)

A procedure's score is hits / pairs, pooled over all pairs of a seed and averaged over seeds. The procedures:

    tree                n children in the forest, n = min(5, children by MCS, children in the forest)
    mcs                 the n children with the largest binary MCS, which is the square root of the coverage. For a
                        flat SAE, or a forest without edges, this equals mcs_unconditional.
    mcs_unconditional   up to 5 children by MCS for every parent
    tree_unconditional  up to 5 children in the forest, however many MCS finds

A child counts if it fires on at least `min_count` activations but not on all: a feature that always fires has no
direction. The forest of a flat SAE is inferred by a condition much like the one tested, so the paper's numbers for flat
SAEs are those by MCS. `error_rate` (Figure 2c) is 1 - `mcs` for a flat SAE and 1 - `tree` otherwise.

None of these scores shows that a tree was learned. A child in a Tree SAE fires only where its parent does, so every
direction found for the child points along the parent, and an untrained tree scores as high (docs/measures.md).

For a tree, `tree` and `mcs` leave out all parents without children, so they cannot be compared with the scores of a
flat SAE. These scores leave out no parent:

    mcs_unconditional  see above
    curve              precision of the best n pairs (by coverage, then n_c) of either unconditional procedure for
                       any n, over the distinct pairs of all seeds. In a tree both are nearly the same pairs, since
                       the coverage of its edges is 1.

Scores rise with how often the children fire. `..._stratified` does not depend on how many rare children there are: it
is the mean of the scores within strata (docs/spec/hierarchy.md#strata), which each count alike, and undefined if one
of them has no pair.

`variant_...` (Figure 16) are `mcs` by each of the four variants of MCS, on the first seed's parents.

`lda_...`, `mean_tree` and `mean_mcs_unconditional` are scores by directions that need no training: LDA, and the mean
difference. On known trees the latter is the one by which children that have children pass too
(docs/results/directions.md).
`HierarchyConfig.reference()` has the settings of the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import torch

from ..errors import require
from ..structure.pairs import scores_memory
from .bootstrap import estimate, interval_method, units_of_sae
from .columns import HIERARCHY, Column
from .composition import cosines_memory
from .hierarchy_pairs import (
    PROCEDURES,
    HierarchyConfig,
    Procedure,
    choose_children,
    draw_parents,
    has_edges,
    own_tree,
    possible_children,
    score_pairs,
)
from .hierarchy_scores import (
    ByParent,
    by_seed,
    counts_of,
    edge_scores_of,
    formula_of,
    left_out_of,
    pair_list,
    precision_curve,
    rank_curve_of,
    ratios_of,
    strata_of,
    variants_of,
)
from .mcs import VARIANTS
from .probes import probes_memory
from .record import Record, undefined
from .spec import Size, Study
from .subject import Subject

# Values that need children in the forest.
_OF_FOREST = (
    "tree", "tree_unconditional", "mean_over_parents_tree", "s_res_tree",
    "lda_tree", "mean_tree", "tree_stratified", "lda_tree_stratified",
)  # fmt: skip
# Values that need them too if the SAE learned the forest, which then decides how many children count.
_OF_OWN_TREE = (
    "mcs", "mean_over_parents_mcs", "error_rate", "mcs_stratified", *(f"variant_{name}" for name in VARIANTS)
)  # fmt: skip
# Values that count every parent, whatever the forest.
_OF_ANY_PARENT = (
    "mcs_unconditional", "mean_over_parents_mcs_unconditional", "s_res_mcs_unconditional",
    "lda_mcs_unconditional", "mean_mcs_unconditional", "mcs_unconditional_stratified",
    "lda_mcs_unconditional_stratified",
)  # fmt: skip


def hierarchy(subject: Subject, config: HierarchyConfig) -> Record:
    """The record "hierarchy".

    Probes of all children of all procedures are trained together, because this takes nearly all the time.
    """
    sample = draw_parents(subject, config)
    chosen = choose_children(subject, config, sample)
    scored = score_pairs(subject, config, sample, chosen)
    table = {name: ByParent(scored, rows, len(sample.parents)) for name, rows in scored.rows.items()}
    gated = subject.sae.gated and torch.equal(subject.sae.forest.parent, subject.forest.parent)
    covered = bool((scored.coverage[scored.rows["tree_unconditional"]] == 1).all())
    require(covered or not gated, "hierarchy", "coverage 1 of every pair of a Tree SAE")

    learned = own_tree(subject)
    ratios = ratios_of(table, has_edges(subject) and bool(possible_children(subject, config).any()))
    error_rate_of: Procedure = "tree" if learned else "mcs"
    units = units_of_sae("parents", subject.sae, sample.parents)
    formula = formula_of(sample, scored, ratios, error_rate_of, config.min_count)
    found = estimate(formula, len(sample.parents), units)
    drawn_first = units_of_sae("parents", subject.sae, sample.parents[sample.first])
    found = found.joined(variants_of(sample, config, table, drawn_first))
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
            "strata": strata_of(sample, scored),
            "strata_left_out": left_out_of(sample, scored),
            "counts": {
                **{name: counts_of(sample, of) for name, of in procedures.items()},
                **{f"variant_{name}": counts_of(sample, table[name], seeds=1) for name in config.variants},
            },
            "curve": {
                "tree": precision_curve(scored, "tree_unconditional"),
                "mcs": precision_curve(scored, "mcs_unconditional"),
            },
            "rank_curve": rank_curve_of(scored, config),
            "pairs": pair_list(sample, scored),
        },
        replicates=found.replicates,
        edge_scores=edge_scores_of(scored),
    )


def _why(subject: Subject, config: HierarchyConfig, value: Mapping[str, float | None]) -> dict[str, str]:
    measured = f"{config.min_count} or more, but not all, of the {len(subject.rows):,} measured tokens"
    if not bool(possible_children(subject, config).any()):
        return dict.fromkeys(value, f"no feature fired on {measured}: measure more text, or lower min_count")
    no_mcs = f"no sampled parent fires together with another feature that fired on {measured}"
    no_tree = f"no sampled parent has a child in the forest that fired on {measured}"
    stratum = (
        "the pairs lack children of some frequency (see strata in the detail): measure more text or parents"
    )
    if not has_edges(subject):
        no_tree = "the forest has no edges"
    of_forest = ("tree_parents_share", *_OF_FOREST, *(_OF_OWN_TREE if own_tree(subject) else ()))
    why = dict.fromkeys(value, no_mcs) | dict.fromkeys(of_forest, no_tree)
    for name in (name for name in value if name.endswith("_stratified")):
        if value[name.removesuffix("_stratified")] is not None:
            why[name] = stratum
    return why


def _memory(size: Size) -> int:
    # Besides the probes, LDA keeps a float64 mean for every feature.
    by_lda = 8 * size.d_sae * size.d_in + cosines_memory(size.d_sae)
    by_mcs = scores_memory(size.d_sae, ("mcs_correlation",))
    return size.decoder + max(by_mcs, by_lda, probes_memory(size.n_tokens, size.d_in, size.n_probes))


SPEC = Study(
    name="hierarchy",
    needs=frozenset({"firings", "activations", "probes", "forest"}),
    transcoders=False,  # it compares decoder rows with input activations
    sets=("paper", "truth"),
    config=HierarchyConfig,
    readings={"ref_tree_sae": HierarchyConfig.reference()},
    run=hierarchy,
    nulls=(*_OF_FOREST, *_OF_OWN_TREE, *_OF_ANY_PARENT),
    forest_free=lambda sae: _OF_ANY_PARENT if sae.has_forest else _OF_OWN_TREE + _OF_ANY_PARENT,
    of_nulls=lambda config: replace(config, rank_curve=0),
    detail_of_nulls=("curve",),
    columns=(
        Column(HIERARCHY, "tree", "by its forest", "↑"),
        Column(HIERARCHY, "mcs", "by MCS, as in the paper", "↑"),
        Column(HIERARCHY, "mcs_unconditional", "by MCS, any parents", "↑"),
    ),
    memory=_memory,
    version=4,
)
