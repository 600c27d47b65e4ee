"""What a case must compute and move, counted from its algorithm. A multiply-add is two FLOPs.

Counted are matrix products and the sparse products of active features: normalization, top-k, losses and bookkeeping
are small beside them. Nothing is counted for the auxiliary loss, since nothing is dead in so few steps.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from .case import Case

_FLOAT, _HALF = 4, 2
#: Matrices of the size of the dictionary: encoder and decoder; of each Adam keeps the gradient and two moments.
_MATRICES, _STATES = 2, 4
#: Adam reads weight, gradient and both moments, and writes all but the gradient.
_ADAM_MOVES = 7
#: Products over active features: ours are values, reconstruction, gradients of values, encoder and decoder; sparsify's
#: have the gradient of the input too, and keep the values of the dense encode.
_SPARSE_TRAINING, _SPARSE_ENCODE = 5, 1
#: [batch, width] matrices that are alive at once, at most, as measured; Matryoshka SAEs have more, an encode fewer.
_DENSE_ALIVE = {"sae-lens": 9, "dictionary-learning": 6, "overcomplete": 7, "eai-sparsify": 2}
_DENSE_ALIVE_MATRYOSHKA, _DENSE_ALIVE_ENCODE = 3, 3
#: An interpreter with torch and a library in it.
_PROCESS = 520 << 20
#: What saeforest selects features from is cut into slices of so many bytes.
_SLICE = 128 << 20


class Cost(NamedTuple):
    flops: float
    bytes: float
    """At least to be moved between memory and processor: with Adam, weights and moments; else the encoder."""


def expected_children(layer_sizes: tuple[int, ...], k_per_layer: tuple[int, ...]) -> list[float]:
    """For each layer after the first, how many of its features have an active parent, on average.

    In a fresh forest a parent is drawn uniformly from all features of earlier layers and the root, which is always
    active.
    """
    before, active = list(accumulate(layer_sizes)), list(accumulate(k_per_layer))
    return [
        size * (1 + k) / (1 + n) for size, n, k in zip(layer_sizes[1:], before[:-1], active[:-1], strict=True)
    ]


def counted(case: Case) -> Cost:
    products = case.batch * case.d  # multiply-adds for each feature that meets the whole batch
    dense = case.batch * case.d * case.width
    sparse = case.batch * case.d * case.k
    encode = case.task == "encode"
    if case.library == "saeforest":
        met: float = case.width  # features whose pre-activation is computed for every activation
        if case.system == "tree":
            met = case.layer_sizes[0] + sum(expected_children(case.layer_sizes, case.k_per_layer))
        macs = products * met + sparse * (_SPARSE_ENCODE if encode else _SPARSE_TRAINING)
    elif encode:
        macs = dense
    elif case.library == "eai-sparsify":
        macs = dense + sparse * _SPARSE_TRAINING
    elif case.library == "overcomplete":
        macs = 5 * dense  # no gradient of its input, for it has no bias before the encoder
    elif (case.library, case.system) == ("sae-lens", "matryoshka"):
        # Forward and backward again for every prefix but the whole.
        macs = 6 * dense + 3 * products * sum(case.layer_sizes[:-1])
    else:
        macs = 6 * dense
    weights = case.d * case.width
    if encode:
        moved = weights * (_HALF if case.dtype == "bfloat16" else _FLOAT)
    else:
        moved = _ADAM_MOVES * _MATRICES * weights * _FLOAT
    return Cost(2.0 * macs, float(moved))


def flops_per_bdf(case: Case) -> float:
    """FLOPs as a multiple of batch * d * width: 2 is one dense product."""
    return counted(case).flops / (case.batch * case.d * case.width)


def least_seconds(case: Case, flops_per_s: float, bytes_per_s: float) -> float:
    """How long the case takes on a machine that does nothing else and waits for nothing."""
    flops, moved = counted(case)
    return max(flops / flops_per_s, moved / bytes_per_s)


def memory(case: Case) -> int:
    """About how many bytes a worker needs at its peak."""
    encode, matryoshka = case.task == "encode", case.system == "matryoshka"
    weights = _MATRICES * case.d * case.width * _FLOAT * (1 if encode else _STATES)
    matrix = case.batch * case.width * _FLOAT
    if case.library == "saeforest":
        return _PROCESS + weights + 4 * _SLICE
    alive = _DENSE_ALIVE[case.library] + (_DENSE_ALIVE_MATRYOSHKA if matryoshka else 0)
    if encode:
        return _PROCESS + weights + min(alive, _DENSE_ALIVE_ENCODE) * matrix
    # sparsify makes a row for every active feature, twice.
    rows = 2 * case.batch * case.k * case.d * _FLOAT if case.library == "eai-sparsify" else 0
    return _PROCESS + weights + alive * matrix + rows
