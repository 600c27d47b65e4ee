"""How siblings overlap, beside what their densities alone give (docs/spec/explorer-index.md#sibling-overlap).

The null leaves each child as many firings as it has on tokens with its parent, and as many on tokens without (none, if
there is a gate), and lets chance choose which tokens. The number of tokens with both of two children is then the sum of
two hypergeometric numbers, so mean and place are exact, without drawing.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..answers.features import Overlap
from ..answers.parts import Array


def overlap(children: list[int], fires: list[Bool[Tensor, "n"]], parent: Bool[Tensor, "n"]) -> Overlap:
    """The overlap of children. fires: where each of them fires; parent: where their parent does."""
    expected, place = null_overlap(fires, parent)
    return Overlap(tuple(children), Array.of(jaccard(fires)), Array.of(expected), Array.of(place))


def jaccard(fires: list[Bool[Tensor, "n"]]) -> Float[Tensor, "m m"]:
    """For each pair of features, the tokens on which both fire, as a share of those on which either does; 0 if none do.

    fires: where each feature fires.
    """
    if not fires:
        return torch.zeros(0, 0)
    each = torch.stack(fires).float()
    both, n = each @ each.T, each.sum(1)
    return both / (n[:, None] + n[None] - both).clamp(min=1)


def null_overlap(
    fires: list[Bool[Tensor, "n"]], parent: Bool[Tensor, "n"]
) -> tuple[Float64[Tensor, "m m"], Float64[Tensor, "m m"]]:
    """For each pair of features, the mean of `jaccard` under the null, and the place of the observed one in it.

    The place is the probability of a smaller overlap, ties half: 0.5 is chance, near 0 is less overlap than by chance.
    Both are NaN on the diagonal and where one of the two does not fire.
    """
    m = len(fires)
    expected, place = (torch.full((m, m), torch.nan, dtype=torch.float64) for _ in range(2))
    inside = [int((on & parent).sum()) for on in fires]
    outside = [int((on & ~parent).sum()) for on in fires]
    n_inside, n_outside = int(parent.sum()), int((~parent).sum())
    for i in range(m):
        for j in range(i):
            n_either = inside[i] + outside[i] + inside[j] + outside[j]
            if not (inside[i] + outside[i] and inside[j] + outside[j]):
                continue
            p = np.convolve(
                hypergeometric(n_inside, inside[i], inside[j]),
                hypergeometric(n_outside, outside[i], outside[j]),
            )
            both = np.arange(len(p))
            seen = int((fires[i] & fires[j]).sum())
            expected[i, j] = expected[j, i] = float(p @ (both / (n_either - both)))
            place[i, j] = place[j, i] = float(p[:seen].sum() + p[seen] / 2)
    return expected, place


def hypergeometric(n: int, a: int, b: int) -> Float64[np.ndarray, "least_and_1"]:
    """The probabilities that sets of a and b of n tokens, drawn at random, share 0, 1, ... min(a, b) of them."""
    both = np.arange(max(0, a + b - n), min(a, b) + 1)
    logs = log_choose(a, both) + log_choose(n - a, b - both)
    p = np.zeros(min(a, b) + 1)
    p[both] = np.exp(logs - logs.max())
    return p / p.sum()


def log_choose(n: int, k: Int64[np.ndarray, "m"]) -> Float64[np.ndarray, "m"]:
    """The logarithm of n over k."""
    factorial = torch.arange(1, n + 2, dtype=torch.float64).lgamma().numpy()
    return factorial[n] - factorial[k] - factorial[n - k]
