"""The true directions of a known tree's concepts (docs/spec/synthetic.md#true-directions).

There are two, and they answer different questions. The feature's own vector v_c is what tells c from everything else.
The concept's mean E[x | c] - E[x | not c] is what an activation has more of where c is active: v_c, and with it the
vectors of all ancestors, which are always active there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..structure.forest import ROOT
from .trees import TreeSpec
from .world import World


def mean_directions(world: World) -> Float[Tensor, "m d"]:
    """The unit direction of `E[x | c] - E[x | not c]` for every true feature c, from the world's probabilities.

    With `shift_ci = P(i | c) - P(i | not c)`, it is that of `sum_i shift_ci E|a_i| v_i`; no sample is drawn.

    Raises InputError for worlds whose probabilities are not products along the tree: with contests, correlated
    features, second parents, or activations that scale with those of parents; and if a feature fires never or always.
    """
    spec = world.spec
    if (
        "contest" in (spec.roots, spec.children)
        or spec.factor is not None
        or spec.scale_by_parent
        or spec.second is not None
    ):
        raise InputError(
            f"world {world.name}: exact mean directions need a world without contests, correlated features, second "
            "parents and activations that scale with their parents'"
        )
    given, p = _given(spec), _probabilities(spec)
    if not bool(((p > 0) & (p < 1)).all()):
        raise InputError(
            f"world {world.name}: expected features that fire with a probability between 0 and 1"
        )
    # P(i | not c) follows from P(i) = P(c) P(i | c) + P(not c) P(i | not c).
    shift = given - (p - p[:, None] * given) / (1 - p[:, None])
    weights = shift * _magnitudes(spec)
    return F.normalize((weights @ world.vectors.double()).float())


def _lines(spec: TreeSpec) -> Float[Tensor, "m m"]:
    """1 where the column's feature is the row's or one of its ancestors."""
    line = torch.eye(spec.m, dtype=torch.float64)
    for feature in spec.forest.depth.argsort(stable=True).tolist():  # parents before their children
        if (parent := int(spec.forest.parent[feature])) != ROOT:
            line[feature] += line[parent]
    return line


def _probabilities(spec: TreeSpec) -> Float[Tensor, "m"]:
    """How often each feature fires: the product of the probabilities along its line."""
    return torch.where(_lines(spec) > 0, spec.p, 1.0).prod(1)


def _given(spec: TreeSpec) -> Float[Tensor, "m m"]:
    """P(i | c): the row is c, the column i."""
    line, p = _lines(spec) > 0, _probabilities(spec)
    given = torch.empty(spec.m, spec.m, dtype=torch.float64)
    for c in range(spec.m):
        common = line & line[c]
        # What fires with certainty of i's line is shared with c; the rest of the line still has to fire.
        given[c] = p / torch.where(common, spec.p, 1.0).prod(1)
        apart = (
            ~line[c] & ~line[:, c]
        )  # neither is an ancestor of the other: their lines part at two siblings
        at_roots = ~common.any(1)
        if spec.children == "choice":
            given[c][apart & ~at_roots] = 0.0
        if spec.roots == "choice":
            given[c][at_roots] = 0.0
    return given


def _magnitudes(spec: TreeSpec) -> Float[Tensor, "m"]:
    """The mean of `|N(mean, std)|` for each feature."""
    mean, std = spec.mean.double(), spec.std.double()
    z = mean / std.clamp(min=1e-300)
    folded = mean * torch.erf(z / math.sqrt(2)) + std * math.sqrt(2 / math.pi) * torch.exp(-z.square() / 2)
    return torch.where(std > 0, folded, mean.abs())
