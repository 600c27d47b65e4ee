"""The papers' own numbers (SPEC 9), to stand beside ours: of other models, other text and larger dictionaries.

Tree SAE paper (arXiv 2605.07922): GPT-2 small, 24,576 features unless said otherwise, 500M tokens of the Pile. The
values behind its figures are those its authors published with their code. HSAE paper (arXiv 2602.11881): Gemma-2-2b and
Qwen3-4B, 100M tokens.
"""

from __future__ import annotations

from typing import NamedTuple

TREE_PAPER = "GPT-2 small, 24,576 features, 500M tokens"
HSAE_PAPER = "Gemma-2-2b, 2,048 to 16,384 features, 100M tokens"
LINKS = {
    "Tree SAE paper": "https://arxiv.org/abs/2605.07922",
    "HSAE paper": "https://arxiv.org/abs/2602.11881",
}

L0 = (32.0, 48.0, 64.0, 80.0)
#: Matching Pursuit adapts its L0: as measured.
L0_MATCHING_PURSUIT = (31.5, 46.3, 61.8, 75.4)
SIZES = (6144, 24_576, 49_152)
#: at these L0, one for each size
L0_OF_SIZES = (8, 32, 64)

System = tuple[str, int]
TOPK, MP = ("topk", 1), ("matching_pursuit", 1)
MAT2, MAT4, TREE2, TREE4 = ("matryoshka", 2), ("matryoshka", 4), ("tree", 2), ("tree", 4)
Series = dict[System, tuple[float, ...]]

#: (measure, value) -> system -> one number for each of L0: figures 3, 4, 6 and 16
BY_L0: dict[tuple[str, str], Series] = {
    ("absorption", "splitting"): {
        TOPK: (1.5769, 1.3846, 1.6154, 1.4231),
        MP: (2.5385, 2.1538, 1.8077, 1.8462),
        MAT2: (1.3077, 1.2692, 1.0769, 1.0769),
        MAT4: (1.1923, 1.0385, 1.0769, 1.0769),
        TREE2: (1.2692, 1.1154, 1.1154, 1.1154),
        TREE4: (1.2692, 1.1154, 1.0769, 1.0),
    },
    ("absorption", "full_absorption"): {
        TOPK: (0.2161, 0.1643, 0.1547, 0.1405),
        MP: (0.3323, 0.315, 0.3066, 0.2722),
        MAT2: (0.1594, 0.1356, 0.1169, 0.1061),
        MAT4: (0.1253, 0.1043, 0.078, 0.0764),
        TREE2: (0.1661, 0.1394, 0.1145, 0.1128),
        TREE4: (0.1322, 0.1059, 0.1132, 0.079),
    },
    ("autointerp", "autointerp_score"): {
        TOPK: (0.8861, 0.8789, 0.8871, 0.8571),
        MP: (0.83036, 0.8143, 0.8086, 0.8089),
        MAT2: (0.8861, 0.8919, 0.8861, 0.8664),
        MAT4: (0.885, 0.8862, 0.8821, 0.8754),
        TREE2: (0.8907, 0.8705, 0.8886, 0.8819),
        TREE4: (0.8893, 0.8844, 0.8805, 0.877),
    },
    ("composition", "mean"): {
        TOPK: (0.3611, 0.3328, 0.3111, 0.2955),
        MP: (0.393, 0.3622, 0.3308, 0.3092),
        MAT2: (0.2816, 0.2583, 0.2445, 0.2335),
        MAT4: (0.2627, 0.2404, 0.2279, 0.2193),
        TREE2: (0.2735, 0.2552, 0.2487, 0.2416),
        TREE4: (0.2947, 0.2806, 0.2727, 0.2645),
    },
    ("reconstruction", "fve_tree"): {
        TOPK: (0.9926, 0.9929, 0.9931, 0.9934),
        MP: (0.9963, 0.9971, 0.9977, 0.998),
        MAT2: (0.9921, 0.9925, 0.9929, 0.9931),
        MAT4: (0.9917, 0.9922, 0.9927, 0.993),
        TREE2: (0.9951, 0.9958, 0.9961, 0.9965),
        TREE4: (0.9946, 0.9954, 0.9958, 0.9961),
    },
    ("cross_entropy", "spliced"): {
        TOPK: (3.9391, 3.9319, 3.9249, 3.9167),
        MP: (3.8372, 3.8085, 3.802, 3.8076),
        MAT2: (3.9588, 3.9533, 3.9477, 3.9375),
        MAT4: (4.0205, 3.9716, 3.9713, 3.9617),
        TREE2: (3.9009, 3.8731, 3.8619, 3.8568),
        TREE4: (3.9279, 3.8898, 3.8722, 3.8601),
    },
    ("hierarchy", "mcs"): {
        TOPK: (0.17, 0.12, 0.08, 0.22),
        MP: (0.01, 0.0, 0.0, 0.0),
        MAT2: (0.16, 0.16, 0.15, 0.16),
        MAT4: (0.19, 0.08, 0.06, 0.05),
        TREE2: (0.74, 0.66, 0.53, 0.48),
        TREE4: (0.63, 0.63, 0.59, 0.57),
    },
    ("hierarchy", "tree"): {TREE2: (0.70, 0.63, 0.58, 0.80), TREE4: (0.83, 0.88, 0.83, 0.78)},
    ("hierarchy", "variant_mcs_binary"): {TREE2: (0.74, 0.66, 0.53, 0.48), TREE4: (0.63, 0.63, 0.59, 0.57)},
    ("hierarchy", "variant_mcs_binary_scaled"): {
        TREE2: (0.67, 0.64, 0.52, 0.46),
        TREE4: (0.58, 0.60, 0.54, 0.59),
    },
    ("hierarchy", "variant_mcs_correlation"): {
        TREE2: (0.56, 0.48, 0.35, 0.37),
        TREE4: (0.44, 0.42, 0.38, 0.17),
    },
    ("hierarchy", "variant_mcs_correlation_scaled"): {
        TREE2: (0.17, 0.04, 0.08, 0.03),
        TREE4: (0.11, 0.06, 0.11, 0.02),
    },
    ("cooccurrence", "iou"): {TREE2: (0.013, 0.017, 0.025, 0.027), TREE4: (0.010, 0.019, 0.024, 0.028)},
    ("mcs", "k_all_pairs"): {TREE2: (0.044,), TOPK: (0.060,)},
}

#: (measure, value) -> system -> one number for each of SIZES: figures 5, 7 and 8
BY_SIZE: dict[tuple[str, str], Series] = {
    ("absorption", "splitting"): {
        MAT2: (1.6154, 1.3077, 1.2308),
        MAT4: (1.6538, 1.1923, 1.2692),
        TREE2: (1.8846, 1.2692, 1.2307),
        TREE4: (1.9615, 1.2692, 1.2308),
    },
    ("absorption", "full_absorption"): {
        MAT2: (0.2085, 0.1594, 0.1348),
        MAT4: (0.2001, 0.1253, 0.1232),
        TREE2: (0.144, 0.1661, 0.1329),
        TREE4: (0.1473, 0.1322, 0.1268),
    },
    ("autointerp", "autointerp_score"): {
        MAT2: (0.8529, 0.8861, 0.8822),
        MAT4: (0.8271, 0.885, 0.8833),
        TREE2: (0.8611, 0.8907, 0.8887),
        TREE4: (0.8517, 0.8893, 0.8738),
    },
    ("composition", "mean"): {
        MAT2: (0.4781, 0.2816, 0.2492),
        MAT4: (0.4613, 0.2627, 0.2357),
        TREE2: (0.2861, 0.2735, 0.2444),
        TREE4: (0.371, 0.2947, 0.2569),
    },
    ("reconstruction", "fve_tree"): {
        MAT2: (0.9871, 0.9921, 0.9932),
        MAT4: (0.9864, 0.9917, 0.993),
        TREE2: (0.9881, 0.9951, 0.9967),
        TREE4: (0.9877, 0.9946, 0.9966),
    },
    ("cross_entropy", "spliced"): {
        MAT2: (4.4197, 3.9588, 3.9545),
        MAT4: (4.5387, 4.0205, 3.9676),
        TREE2: (4.5181, 3.9009, 3.8583),
        TREE4: (4.5812, 3.9279, 3.8544),
    },
    ("hierarchy", "mcs"): {
        MAT2: (0.15, 0.16, 0.12),
        MAT4: (0.14, 0.19, 0.10),
        TREE2: (0.72, 0.74, 0.48),
        TREE4: (0.81, 0.63, 0.67),
    },
    ("hierarchy", "tree"): {TREE2: (0.68, 0.70, 0.51), TREE4: (0.81, 0.83, 0.65)},
}

#: Table 1: system -> for each of L0 the average L0 of its layers
L0_BY_LAYER: dict[System, tuple[tuple[float, ...], ...]] = {
    MAT2: ((26.11, 5.89), (39.70, 8.30), (53.01, 10.99), (68.51, 10.49)),
    TREE2: ((26, 6), (40, 8), (53, 11), (69, 11)),
    MAT4: (
        (20.68, 4.71, 3.79, 2.82),
        (32.22, 6.87, 5.20, 3.71),
        (43.41, 9.02, 6.33, 5.24),
        (55.94, 10.79, 7.51, 5.76),
    ),
    TREE4: ((21, 5, 4, 2), (32, 7, 5, 4), (44, 9, 6, 5), (56, 11, 7, 6)),
}

#: Table 2: system -> the same at 6,144 and at 49,152 features
L0_BY_LAYER_OF_SIZES: dict[System, tuple[tuple[float, ...], ...]] = {
    MAT2: ((5.80, 2.20), (55.94, 8.06)),
    TREE2: ((6, 2), (55, 9)),
    MAT4: ((5.25, 0.41, 0.89, 1.45), (51.30, 3.37, 5.22, 4.11)),
    TREE4: ((5, 1, 1, 1), (51, 4, 5, 4)),
}


class HSAERow(NamedTuple):
    """A row of the HSAE paper's Table 3; `where`: model and layer."""

    where: str
    l0: float
    fve: float
    p_parent_child: float
    p_child_parent: float
    hamming: float


HSAE_TABLE: dict[str, tuple[HSAERow, ...]] = {
    "hsae": (
        HSAERow("gemma-2-2b, layer 6", 50.1, 0.759, 0.752, 0.403, 23.2),
        HSAERow("gemma-2-2b, layer 13", 50.1, 0.713, 0.769, 0.432, 21.3),
        HSAERow("gemma-2-2b, layer 13", 80.1, 0.743, 0.749, 0.421, 36.2),
        HSAERow("gemma-2-2b, layer 13", 100.7, 0.757, 0.747, 0.415, 46.3),
        HSAERow("gemma-2-2b, layer 20", 50.0, 0.729, 0.800, 0.461, 19.4),
        HSAERow("qwen3-4b, layer 18", 50.2, 0.988, 0.347, 0.197, 28.7),
    ),
    "hsae-baseline": (
        HSAERow("gemma-2-2b, layer 6", 50.0, 0.759, 0.651, 0.331, 34.6),
        HSAERow("gemma-2-2b, layer 13", 49.8, 0.714, 0.662, 0.343, 36.1),
        HSAERow("gemma-2-2b, layer 13", 80.0, 0.743, 0.634, 0.326, 61.9),
        HSAERow("gemma-2-2b, layer 13", 100.0, 0.758, 0.619, 0.317, 78.9),
        HSAERow("gemma-2-2b, layer 20", 50.0, 0.727, 0.729, 0.395, 30.6),
        HSAERow("qwen3-4b, layer 18", 50.0, 0.988, 0.309, 0.179, 46.4),
    ),
}


def numbers(measure: str, value: str, system: System) -> tuple[float, ...]:
    """What the paper reports of the system over its L0; empty if nothing."""
    if system[0] in HSAE_TABLE:
        rows = HSAE_TABLE[system[0]]
        # Its variance explained is SAEBench's explained_variance_legacy (SPEC 6.2).
        field = {"fve_legacy": "fve", "fve": ""}.get(value, value)
        return tuple(getattr(row, field) for row in rows) if field in HSAERow._fields else ()
    return BY_L0.get((measure, value), {}).get(system, ())


def source_model(kind: str) -> str:
    return HSAE_PAPER if kind in HSAE_TABLE else TREE_PAPER
