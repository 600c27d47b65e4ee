"""Which cases run."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import product

from .case import Case

K, BATCH = 32, 4096
WIDTHS = (6_144, 24_576, 98_304, 393_216, 1_048_576)
DS = (576, 2304)
TASKS = ("training_step", "encode")
QUICK_D, QUICK_WIDTH = 576, 24_576
#: Only with a GPU: d, batch, widths.
CUDA_EXTRA = (768, 8192, (24_576, 98_304))

BOTH, FULL, HALF = ("float32", "bfloat16"), ("float32",), ("bfloat16",)
#: Of every library the systems, and the types it multiplies in where the processor has bfloat16.
SYSTEMS: dict[str, dict[str, tuple[str, ...]]] = {
    "saeforest": {"topk": BOTH, "tree": BOTH, "matryoshka": HALF},
    "sae-lens": {"topk": BOTH, "matryoshka": FULL},
    "eai-sparsify": {"topk": BOTH},
    "dictionary-learning": {"topk": FULL, "matryoshka": FULL},
    "overcomplete": {"topk": FULL},
}
#: On a GPU one casts to bfloat16 whatever its user says, and another can.
SYSTEMS_CUDA = SYSTEMS | {
    "eai-sparsify": {"topk": HALF},
    "dictionary-learning": {"topk": BOTH, "matryoshka": FULL},
}
#: Matryoshka SAEs that choose over a batch are used as threshold SAEs: no top-k that could be compared.
ENCODERS = ("topk", "tree")
QUICK_LIBRARIES, QUICK_SYSTEMS = (
    ("saeforest", "sae-lens", "eai-sparsify", "dictionary-learning"),
    ("topk", "tree"),
)

_TREE_WIDTH, _TREE_SIZES, _TREE_K = 24_576, (1536, 3072, 9216, 10_752), (21, 5, 4, 2)


def tree_shape(width: int, k: int = K) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and k of the layers of a tree of `width` features.

    At 24,576 features and k 32 it is the paper's. Layer 0 grows with the square root of the width, the others share
    the rest in the paper's proportions; the children of later layers keep their share of k.
    """
    first, *others = _TREE_SIZES
    top = round(first * math.sqrt(width / _TREE_WIDTH))
    rest = width - top
    middle = [round(rest * size / sum(others)) for size in others[:-1]]
    below = [max(round(k * share / sum(_TREE_K)), 1) for share in _TREE_K[1:]]
    return (top, *middle, rest - sum(middle)), (k - sum(below), *below)


def planned(
    device: str,
    *,
    quick: bool = False,
    native_bf16: bool = True,
    widths: Sequence[int] | None = None,
    ds: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    libraries: Collection[str] | None = None,
    batch: int | None = None,
) -> list[list[Case]]:
    """The cases, in groups that are compared; the small ones first."""
    if quick:
        widths, ds, tasks = widths or (QUICK_WIDTH,), ds or (QUICK_D,), tasks or ("training_step",)
        libraries = libraries or QUICK_LIBRARIES
    sizes = set(product(ds or DS, widths or WIDTHS, (batch or BATCH,)))
    if device != "cpu" and not quick:
        d, many, wide = CUDA_EXTRA
        sizes |= {(d, w, batch or many) for w in wide if d in (ds or (d,)) and w in (widths or wide)}
    systems = SYSTEMS if device == "cpu" else SYSTEMS_CUDA
    groups: list[list[Case]] = []
    for task, (d, width, rows) in product(
        tasks or TASKS, sorted(sizes, key=lambda s: (s[0] * s[1] * s[2], s))
    ):
        group = [
            _case(library, system, task, device, dtype, d, width, rows)
            for library, own in systems.items()
            if libraries is None or library in libraries
            for system, dtypes in own.items()
            if (not quick or system in QUICK_SYSTEMS) and (task != "encode" or system in ENCODERS)
            for dtype in (dtypes if native_bf16 else FULL)
        ]
        if group:
            groups.append(group)
    return groups


def _case(
    library: str, system: str, task: str, device: str, dtype: str, d: int, width: int, batch: int
) -> Case:
    layers, k_per_layer = ((width,), (K,)) if system == "topk" else tree_shape(width)
    if system == "matryoshka":
        k_per_layer = (K,)
    return Case(library, system, task, device, dtype, d, width, K, batch, layers, k_per_layer)


def fitting(cases: Sequence[Case], needs: Sequence[int], limit: int) -> tuple[list[list[Case]], list[Case]]:
    """Cases in as few parts as need at most `limit` bytes each, and those that need more by themselves."""
    parts: list[tuple[int, list[Case]]] = []
    too_large: list[Case] = []
    for case, need in zip(cases, needs, strict=True):
        if need > limit:
            too_large.append(case)
            continue
        for i, (used, part) in enumerate(parts):
            if used + need <= limit:
                parts[i] = (used + need, [*part, case])
                break
        else:
            parts.append((need, [case]))
    return [part for _, part in parts], too_large
