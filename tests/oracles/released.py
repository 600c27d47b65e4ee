"""Slow, obvious float64 reference for what the Tree SAE authors' released SAEs make of activations.

Written from docs/spec/tree-sae.md and docs/spec/baselines.md on the tensors as they are in the authors' files:
encoder.weight [F,d], decoder.weight [d,F], b_dec [d], parent_index_<l> [size of layer l], where the root is the number
after the last feature before the layer. Shapes: n tokens, d model width, F features.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .allocation import FloatArray, IntArray
from .tree import largest

STD_EPS = 1e-5
GATE = 1e-3
MP_TOLERANCE = 5e-3


def released_forward(
    config: Mapping[str, Any], tensors: Mapping[str, ArrayLike], x: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Codes [n,F] and reconstructions [n,d] of the raw activations x [n,d]."""
    kind = config["type"]
    raw = np.array(x, dtype=np.float64)
    decoder = np.array(tensors["decoder.weight"], dtype=np.float64)
    n, d = raw.shape
    n_features = decoder.shape[1]
    codes = np.zeros((n, n_features))
    xhat = np.zeros((n, d))
    for t in range(n):
        mean = raw[t].sum() / d
        std = np.sqrt(((raw[t] - mean) ** 2).sum() / (d - 1)) + STD_EPS
        standard = (raw[t] - mean) / std
        bias = np.zeros(d)
        if kind == "mp":
            codes[t] = matching_pursuit(standard, decoder, sum(config["k_per_layer"]))
        else:
            bias = np.array(tensors["b_dec"], dtype=np.float64)
            h = np.array(tensors["encoder.weight"], dtype=np.float64) @ (standard - bias)
            if kind == "tree":
                parents = [
                    np.array(tensors[f"parent_index_{layer}"], dtype=np.int64) if layer else None
                    for layer in range(len(config["features_per_layer"]))
                ]
                codes[t] = tree(h, config["features_per_layer"], config["k_per_layer"], parents)
            elif kind == "relu":
                codes[t] = np.where(h > 0, h, 0.0)
            else:
                for i in largest(h, sum(config["k_per_layer"])):
                    codes[t, i] = max(h[i], 0.0)
        reconstruction = bias.copy()
        for i in range(n_features):
            reconstruction += codes[t, i] * decoder[:, i]
        xhat[t] = std * reconstruction + mean
    return codes, xhat


def tree(h: FloatArray, sizes: list[int], ks: list[int], parents: list[IntArray | None]) -> FloatArray:
    """Code [F] of one token with pre-activations h [F]: gate, then the k largest of each layer, then ReLU.

    parents: for each layer [size], its first feature's number meaning the root; None where all hang from it.
    """
    selected = np.zeros(len(h))
    start = 0
    for size, k, parent in zip(sizes, ks, parents, strict=True):
        gated = np.zeros(size)
        for i in range(size):
            p = start if parent is None else int(parent[i])
            gate = 1.0 if p == start or selected[p] > GATE else 0.0
            gated[i] = h[start + i] * gate
        for i in largest(gated, k):
            selected[start + i] = gated[i]
        start += size
    return np.where(selected > 0, selected, 0.0)


def matching_pursuit(standard: FloatArray, atoms: FloatArray, k: int) -> FloatArray:
    """Code [F] of one standardized token [d] with the columns of atoms [d,F]."""
    code = np.zeros(atoms.shape[1])
    residual = standard.copy()
    for _ in range(k):
        products = np.array([max(float(residual @ atoms[:, i]), 0.0) for i in range(atoms.shape[1])])
        best = int(np.argmax(products))
        support = set(np.flatnonzero(code).tolist())
        code[best] += products[best]
        residual = residual - products[best] * atoms[:, best]
        if set(np.flatnonzero(code).tolist()) == support or np.sqrt((residual**2).sum()) < MP_TOLERANCE:
            break
    return code
