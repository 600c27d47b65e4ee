"""Slow, obvious float64 versions of the measures, written from docs/spec/ alone.

Shapes: n tokens, d model width, F features. `on [n, F]` says whether a feature is above the threshold on a token.
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def fve(x: FloatArray, x_hat: FloatArray) -> float:
    return 1 - float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def fve_legacy(batches: list[tuple[FloatArray, FloatArray]]) -> float:
    ratios = []
    for x, x_hat in batches:
        centre = x.mean(0)
        for row, row_hat in zip(x, x_hat, strict=True):
            ratios.append(1 - ((row - row_hat) ** 2).sum() / ((row - centre) ** 2).sum())
    return float(np.mean(ratios))


def fve_tree(batches: list[tuple[FloatArray, FloatArray]]) -> float:
    values = []
    for x, x_hat in batches:
        residual = [((row - row_hat) ** 2).sum() for row, row_hat in zip(x, x_hat, strict=True)]
        variance = [((row - row.mean()) ** 2).sum() for row in x]
        values.append(1 - np.mean(residual) / (np.mean(variance) + 1e-10))
    return float(np.mean(values))


def saebench_explained_variance(batches: list[tuple[FloatArray, FloatArray]]) -> float:
    """As SAEBench 0.6.0 computes it: the square of a scalar mean over batches and dimensions, not of a vector's."""
    square = np.mean([(x**2).sum(1).mean() for x, _ in batches])
    entry = np.concatenate([(x**2).mean(0) for x, _ in batches]).mean()
    residual = np.mean([((x - x_hat) ** 2).sum(1).mean() for x, x_hat in batches])
    return float(1 - residual / (square - entry**2))


def fvu_uncentred(x: FloatArray, x_hat: FloatArray) -> float:
    return float(((x - x_hat) ** 2).sum() / (x**2).sum())


def cosine(x: FloatArray, x_hat: FloatArray) -> float:
    return float(
        np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(x, x_hat, strict=True)]),
    )


def norm_ratio(x: FloatArray, x_hat: FloatArray) -> float:
    return float(np.mean([np.sqrt((b @ b) / (a @ a)) for a, b in zip(x, x_hat, strict=True)]))


def l0(on: BoolArray) -> float:
    return float(np.mean([row.sum() for row in on]))


def coverage(on: BoolArray, parent: list[int]) -> dict[tuple[int, int], float]:
    """Of each edge whose child fired."""
    found = {}
    for c, p in enumerate(parent):
        if p >= 0 and on[:, c].any():
            found[p, c] = float((on[:, c] & on[:, p]).sum() / on[:, c].sum())
    return found


def cooccurrence(on: BoolArray, parent: list[int], layer: list[int], alive_only: bool) -> dict[int, float]:
    """Of each layer from 1 on that has a pair of siblings."""
    found = {}
    for the_layer in range(1, max(layer) + 1):
        values: list[float] = []
        for p in range(len(parent)):
            family = [c for c in range(len(parent)) if parent[c] == p and layer[c] == the_layer]
            if alive_only:
                family = [c for c in family if on[:, c].any()]
            ious = []
            for i in family:
                for j in family:
                    if i != j:
                        union = int((on[:, i] | on[:, j]).sum())
                        ious.append(int((on[:, i] & on[:, j]).sum()) / union if union else float("nan"))
            if not any(np.isnan(ious)):
                values += ious
        if values:
            found[the_layer] = float(np.mean(values))
    return found


def overlap_with_siblings(
    on: BoolArray, parent: list[int], layer: list[int], alive_only: bool
) -> dict[int, float]:
    """Of each child, the mean IoU with its siblings; of those in no family that `cooccurrence` counts, none."""
    found = {}
    for c in range(len(parent)):
        family = [i for i in range(len(parent)) if parent[i] == parent[c] and layer[i] == layer[c]]
        silent = [i for i in family if not on[:, i].any()]
        if alive_only:
            family = [i for i in family if i not in silent]
        elif len(silent) > 1:
            continue
        if parent[c] < 0 or c not in family or len(family) < 2:
            continue
        ious = [int((on[:, i] & on[:, c]).sum()) / int((on[:, i] | on[:, c]).sum()) for i in family if i != c]
        found[c] = float(np.mean(ious))
    return found


def next_token_losses(logits: FloatArray, ids: NDArray[np.int64]) -> FloatArray:
    """Of logits [ctx, vocab] and ids [ctx]: the loss at each position but the last, [ctx - 1], in nats."""
    losses = []
    for t in range(len(ids) - 1):
        top = logits[t].max()
        losses.append(top + np.log(np.exp(logits[t] - top).sum()) - logits[t, ids[t + 1]])
    return np.array(losses)


def divergences(clean: FloatArray, logits: FloatArray) -> FloatArray:
    """sum_v p_clean log(p_clean / p) at each position, of logits [ctx, vocab]: [ctx], in nats."""
    found = []
    for a, b in zip(clean, logits, strict=True):
        p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
        found.append(float((p * np.log(p / q)).sum()))
    return np.array(found)


def ce_loss_score(clean: float, spliced: float, ablated: float) -> float:
    return (ablated - spliced) / (ablated - clean)
