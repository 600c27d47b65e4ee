"""The values that the report shows side by side, in blocks of columns."""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    measure: str
    value: str
    title: str
    better: str = ""


_HIERARCHY = "Hierarchy: the share of parent-child pairs that meet both of the Tree SAE paper's conditions"
_LEVELS = "Agreement of neighbouring levels (HSAE)"
# What a reader must know of a block of columns.
NOTES = {
    _HIERARCHY: (
        "A Tree SAE meets these conditions without having learned a hierarchy: where a child fires only with its "
        "parent, every direction found for the child points along the parent too. Read its scores beside those of the "
        "untrained SAE and of shuffled parents (benchmarks/hierarchy_nulls.py). Scores also rise with how often "
        "children fire, and fall the longer probes are trained."
    ),
    _LEVELS: (
        "Of a Tree SAE P(parent | child) is 1 by construction. The Hamming distance grows with the number of features "
        "that are active, so SAEs of different L0 are compared by it per active feature only; where parents have few "
        "children, as in a Tree SAE, neither says much."
    ),
}
BLOCKS: tuple[tuple[str, tuple[Column, ...]], ...] = (
    ("Reconstruction and sparsity", (
        Column("reconstruction", "fve", "FVE", "↑"),
        Column("reconstruction", "fve_tree", "variance explained by the Tree SAE paper's formula", "↑"),
        Column("cross_entropy", "ce_loss_score", "CE loss score", "↑"),
        Column("cross_entropy", "spliced", "CE in nats", "↓"),
        Column("sparsity", "l0", "L0"),
        Column("dead", "dead_share", "dead features", "↓"),
    )),
    (_HIERARCHY, (
        Column("hierarchy", "tree", "by its forest", "↑"),
        Column("hierarchy", "mcs", "by MCS, as in the paper", "↑"),
        Column("hierarchy", "mcs_unconditional", "by MCS, any parents", "↑"),
        Column("hierarchy", "matched_tree", "n best, by its forest", "↑"),
        Column("hierarchy", "matched_mcs", "n best, by MCS", "↑"),
        Column("reconstruction_score", "s_res", "S_res of its edges", "↑"),
    )),
    ("What hierarchy breaks in flat SAEs", (
        Column("absorption", "full_absorption", "full absorption", "↓"),
        Column("absorption", "mean_absorption_fraction", "absorption fraction", "↓"),
        Column("absorption", "splitting", "splitting", "↓"),
        Column("composition", "mean", "composition", "↓"),
        Column("cooccurrence", "iou", "siblings together", "↓"),
        Column("mcs", "k_all_pairs", "|k|", "↓"),
    )),
    ("Interpretability and probing", (
        Column("autointerp", "autointerp_score", "AutoInterp", "↑"),
        Column("pair_judge", "yes", "pairs judged related", "↑"),
        Column("sparse_probing", "sae_top_1", "sparse probing, top 1", "↑"),
        Column("sparse_probing", "sae_top_5", "sparse probing, top 5", "↑"),
        Column("tpp", "tpp_20", "TPP, 20 features", "↑"),
    )),
    (_LEVELS, (
        Column("hsae", "hamming", "Hamming distance", "↓"),
        Column("hsae", "hamming_per_active", "Hamming distance per active feature", "↓"),
        Column("hsae", "p_parent_child", "P(parent | child)", "↑"),
        Column("hsae", "p_child_parent", "P(child | parent)", "↑"),
    )),
)  # fmt: skip
