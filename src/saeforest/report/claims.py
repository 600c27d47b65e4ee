"""What the papers say of how the systems compare, as claims that the report checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .load import VARIANTS, Setting, kind_title
from .verdict import OURS, Claim, Null, PaperValue, Relation, Result, Side, Verdict, check

_MEASURE_NULLS = "the same score for the untrained SAE and for shuffled parents"
_GATE = Null(
    "A child of a Tree SAE fires only where its parent does, so every probe for the child points along the parent too, "
    f"whatever the two have learned. To be decided beside {_MEASURE_NULLS}."
)
_GATE_BY_MCS = Null(
    "By binary MCS the best pairs of a Tree SAE are its own edges, which have a coverage of 1 and meet the conditions "
    f"by the gate alone; the other variants and other SAEs give other pairs. To be decided beside {_MEASURE_NULLS}."
)
_SAME_PAIRS = Null(
    "Every edge of a Tree SAE has a coverage of 1, the most there is, so the pairs that binary MCS finds in it are the "
    "edges themselves: both sides count nearly the same pairs.",
    Verdict.SAME_PAIRS,
    always=True,
)
_ORTHOGONAL = Null(
    "Parents that are drawn at random are nearly orthogonal to their children as well (the mean |cosine| of random "
    "directions is sqrt(2 / (pi d))). To be decided beside |k| of shuffled parents."
)


def check_all(settings: Sequence[Setting]) -> list[Result]:
    return [check(claim, settings) for claim in CLAIMS]


def _claims() -> Iterable[Claim]:
    tree, topk, mat, mp = "tree", "topk", "matryoshka", "matching_pursuit"
    name = {kind: kind_title(kind) for kind in (topk, mat, mp)}

    topic = "Hierarchy"
    for flat in (topk, mat, mp):
        yield Claim(
            topic,
            f"More of a Tree SAE's edges are hierarchical pairs than of the pairs MCS finds in {name[flat]}",
            "Tree SAE paper, Figure 4",
            Side(tree, "hierarchy", "tree"),
            ">",
            Side(flat, "hierarchy", "mcs"),
            null=_GATE,
        )
    for flat in (topk, mat):
        yield Claim(
            topic,
            f"Even by MCS, more pairs of a Tree SAE are hierarchical than of {name[flat]} (in the tree only parents "
            "with children count, and as many pairs as they have)",
            "Tree SAE paper, Figure 4",
            Side(tree, "hierarchy", "mcs"),
            ">",
            Side(flat, "hierarchy", "mcs"),
            null=_GATE_BY_MCS,
        )
    yield Claim(
        topic,
        "With 4 layers, the tree's own edges are hierarchical pairs more often than the pairs MCS finds in it",
        "Tree SAE paper, Figure 4",
        Side(tree, "hierarchy", "tree", 4),
        ">",
        Side(tree, "hierarchy", "mcs", 4),
        null=_SAME_PAIRS,
    )
    for flat in (topk, mat):
        yield Claim(
            topic,
            f"By MCS without regard to the tree, more pairs of a Tree SAE are hierarchical than of {name[flat]}",
            OURS,
            Side(tree, "hierarchy", "mcs_unconditional"),
            ">",
            Side(flat, "hierarchy", "mcs_unconditional"),
            null=_GATE_BY_MCS,
        )
    yield Claim(
        topic,
        "Counting equally many pairs of both, the best first, a Tree SAE's edges are hierarchical pairs more often "
        "than the pairs MCS finds in it",
        OURS,
        Side(tree, "hierarchy", "matched_tree"),
        ">",
        Side(tree, "hierarchy", "matched_mcs"),
        null=_SAME_PAIRS,
    )
    for variant, said in VARIANTS[1:]:
        yield Claim(
            topic,
            f"In a Tree SAE, plain binary MCS finds more hierarchical pairs than {said}",
            "Tree SAE paper, Figure 16",
            Side(tree, "hierarchy", "variant_mcs_binary"),
            ">",
            Side(tree, "hierarchy", f"variant_{variant}"),
            null=_GATE_BY_MCS,
        )
    yield Claim(
        topic,
        "In TopK, a parent lies the nearer to its child's direction the more the two cover each other: the cosine "
        "falls with the child's rank by coverage",
        "Tree SAE paper, Figure 13",
        Side(topk, "hierarchy", "rank_trend"),
        "<",
        0.0,
        paper="a plot without numbers",
    )

    topic = "Absorption and splitting"
    comparisons: tuple[tuple[str, Relation, str], ...]
    for value, what in (("full_absorption", "absorption"), ("splitting", "splitting")):
        comparisons = (
            (tree, "<", f"A Tree SAE has less {what} than TopK"),
            (mat, "<", f"Matryoshka has less {what} than TopK"),
            (mp, ">", f"Matching Pursuit has more {what} than TopK"),
        )
        for left, relation, said in comparisons:
            yield Claim(
                topic,
                said,
                "Tree SAE paper, Figure 3",
                Side(left, "absorption", value),
                relation,
                Side(topk, "absorption", value),
            )

    topic = "Composition"
    for left, right, said in (
        (mat, tree, "Matryoshka's features are a little less alike than a Tree SAE's"),
        (tree, topk, "A Tree SAE's features are less alike than TopK's"),
        (topk, mp, "TopK's features are less alike than Matching Pursuit's"),
    ):
        yield Claim(
            topic,
            said,
            "Tree SAE paper, Figure 3",
            Side(left, "composition", "mean"),
            "<",
            Side(right, "composition", "mean"),
        )

    topic = "Reconstruction"
    order = (
        (mp, tree, "Matching Pursuit", "a Tree SAE"),
        (tree, topk, "A Tree SAE", "TopK"),
        (topk, mat, "TopK", "Matryoshka"),
    )
    for left, right, a, b in order:
        yield Claim(
            topic,
            f"{a} explains more variance than {b} (by the paper's formula; the paper counts the first position of a "
            "window too, which is left out here by default)",
            "Tree SAE paper, Figure 6",
            Side(left, "reconstruction", "fve_tree"),
            ">",
            Side(right, "reconstruction", "fve_tree"),
        )
    for left, right, a, b in order:
        yield Claim(
            topic,
            f"The language model's loss is lower with {a.replace('A Tree', 'a Tree')} in place than with {b} (judged "
            "by the CE loss score, the share of the loss that the reconstruction recovers)",
            "Tree SAE paper, Figure 6",
            # The order is that of the losses in nats, of whose intervals nearly all is the text's own variation.
            Side(left, "cross_entropy", "ce_loss_score"),
            ">",
            Side(right, "cross_entropy", "ce_loss_score"),
            paper_value=PaperValue("spliced", "nats", "<"),
        )

    topic = "The forest"
    yield Claim(
        topic,
        "Siblings in a Tree SAE rarely fire together: less than 3 %",
        "Tree SAE paper, Table 3",
        Side(tree, "cooccurrence", "iou"),
        "<",
        0.03,
    )
    yield Claim(
        topic,
        "Pairs with full coverage point in less similar directions in a Tree SAE than in TopK (|k|)",
        "Tree SAE paper, Table 4",
        Side(tree, "mcs", "k_all_pairs"),
        "<",
        Side(topk, "mcs", "k_all_pairs"),
        paper="0.044 against 0.060 (Tree SAE with 2 layers)",
        null=_ORTHOGONAL,
    )
    yield Claim(
        topic,
        "Reallocation leaves fewer dead features at the end of training",
        "Tree SAE paper, Figure 14",
        Side(tree, "dead_training", "end"),
        "<",
        Side("tree-fixed", "dead_training", "end"),
        paper="almost none in any layer against 8 % of the last layer",
    )

    topic = "Interpretability"
    yield Claim(
        topic,
        "Matching Pursuit's features are less interpretable than TopK's",
        "Tree SAE paper, Figure 3",
        Side(mp, "autointerp", "autointerp_score"),
        "<",
        Side(topk, "autointerp", "autointerp_score"),
    )
    yield Claim(
        topic,
        "A Tree SAE's features are as interpretable as Matryoshka's, within 0.02",
        "Tree SAE paper, Figure 3",
        Side(tree, "autointerp", "autointerp_score"),
        "=",
        Side(mat, "autointerp", "autointerp_score"),
        margin=0.02,
    )

    topic, hsae, base = "HSAE", "hsae", "hsae-baseline"
    where = "Gemma-2-2b, layer 13, L0 50"
    source = "HSAE paper, Table 3"
    links: tuple[tuple[str, Relation, str, str], ...] = (
        ("hamming", "<", "Parents differ less from the OR of their children than in the baseline", "21.3 against 36.1"),
        ("p_parent_child", ">", "A parent fires with its child more often than in the baseline", "0.769 against 0.662"),
        ("p_child_parent", ">", "A child fires with its parent more often than in the baseline", "0.432 against 0.343"),
    )  # fmt: skip
    for value, relation, said, paper in links:
        yield Claim(
            topic,
            said,
            source,
            Side(hsae, "hsae", value),
            relation,
            Side(base, "hsae", value),
            paper=f"{paper} ({where})",
        )
    yield Claim(
        topic,
        "It explains as much variance as the baseline, within 0.01 (SAEBench's explained_variance_legacy, as in the "
        "paper)",
        source,
        Side(hsae, "reconstruction", "fve_legacy"),
        "=",
        Side(base, "reconstruction", "fve_legacy"),
        paper=f"0.713 against 0.714 ({where})",
        margin=0.01,
    )
    yield Claim(
        topic,
        "Features with several children are more interpretable than the others",
        "HSAE paper, text",
        Side(hsae, "autointerp", "multi_child"),
        ">",
        Side(hsae, "autointerp", "other"),
        paper="2.49 % higher",
    )


CLAIMS: tuple[Claim, ...] = tuple(_claims())
