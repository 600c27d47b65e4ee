"""The neighbors of every feature: by its decoder row, and by what fires together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int32, Int64
from torch import Tensor

from ...progress import progress
from ...structure.forest import ROOT, Forest
from ...structure.pairs import PairStatistics
from ..index.form import NEIGHBORS

# Cosines are computed for blocks of features with all features, of about this many entries.
_ENTRIES = 1 << 21
_SCALE, _IDS = 1 << 40, 1 << 22


class Neighbors(NamedTuple):
    """The neighbors of each feature, best first: -1 and NaN in places that are not used."""

    ids: Int32[Tensor, "d_sae 8"]
    value: Float32[Tensor, "d_sae 8"]


def _unused(d_sae: int) -> Neighbors:
    shape = d_sae, NEIGHBORS
    return Neighbors(torch.full(shape, -1, dtype=torch.int32), torch.full(shape, torch.nan))


def _best(
    score: Float[Tensor, "b d_sae"], allowed: Bool[Tensor, "b d_sae"], place: Int64[Tensor, "d_sae"]
) -> Int64[Tensor, "b n"]:
    """The columns with the largest scores in each row, at most `NEIGHBORS`; -1 where fewer are allowed.

    score: within -1 and 1; compared to about 12 digits. place: of equals, that with the lowest place comes first.
    """
    key = (score.double() * _SCALE).round().long() * _IDS + (_IDS - 1 - place)
    key = torch.where(allowed, key, torch.iinfo(torch.int64).min)
    found = key.topk(min(NEIGHBORS, key.shape[1]), dim=1)  # keys are distinct where allowed
    return torch.where(found.values > torch.iinfo(torch.int64).min, found.indices, -1)


def _write(to: Neighbors, block: Int64[Tensor, "b"], ids: Int64[Tensor, "b n"], value: Tensor) -> None:
    n = ids.shape[1]
    to.ids[block, :n] = ids.int()
    to.value[block, :n] = torch.where(ids >= 0, value.gather(1, ids.clamp(min=0)).double(), torch.nan).float()


@torch.no_grad()
def nearest(decoder: Float[Tensor, "d_sae d_out"]) -> Neighbors:
    """The features whose decoder rows have the largest cosines with each feature's."""
    rows = F.normalize(decoder.detach().float())
    d_sae = len(rows)
    found, ids = _unused(d_sae), torch.arange(d_sae)
    with progress("nearest features", d_sae, "features") as advance:
        for block in ids.split(max(_ENTRIES // d_sae, 1)):
            cosine = (rows[block.to(rows.device)] @ rows.T).cpu().clamp(-1, 1)
            _write(found, block, _best(cosine, block[:, None] != ids, ids), cosine)
            advance(len(block))
    return found


def by_coverage(
    pairs: PairStatistics, forest: Forest, min_count: int, features: Int64[Tensor, "m"]
) -> tuple[Neighbors, Neighbors]:
    """Candidate parents and children of some features, all others without: `over` and `under` of an index.

    over:  features g that fire with f, by P(g | f) - P(g) if that is above 0; the value is P(g | f). Of equals, the
           less frequent is first. Only for features f that fire `min_count` times.
    under: features g outside the subtree of f that fire `min_count` times, by P(f | g) - P(f) if that is above 0; the
           value is P(f | g). Of equals, the more frequent is first.
    """
    fired = pairs.marginals.n
    over, under = _unused(forest.d_sae), _unused(forest.d_sae)
    density = fired.double() / max(pairs.n_tokens, 1)
    rare_first, frequent_first = _places(fired), _places(-fired)
    ids = torch.arange(forest.d_sae)
    above = _ancestors(forest)
    with progress("neighbors", len(features), "features") as advance:
        for block, n in pairs.counts_of(features[fired[features] > 0]):
            apart = (n > 0) & (block[:, None] != ids)
            given = n / fired[block, None].double()
            score = given - density
            allowed = apart & (score > 0) & (fired[block, None] >= min_count)
            _write(over, block, _best(score, allowed, rare_first), given)
            given = n / fired.clamp(min=1).double()
            score = given - density[block, None]
            allowed = apart & (score > 0) & (fired >= min_count)
            for generation in above:
                allowed &= generation != block[:, None]
            _write(under, block, _best(score, allowed, frequent_first), given)
            advance(len(block))
    return over, under


def _places(key: Int64[Tensor, "d_sae"]) -> Int64[Tensor, "d_sae"]:
    """The place of each feature in ascending order of a key; of equals, the lower id first."""
    order = key.sort(stable=True).indices
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return place


def _ancestors(forest: Forest) -> Sequence[Int64[Tensor, "d_sae"]]:
    """The parents of all features, their parents' parents, and so on; -1 where there is none."""
    found, above = [], forest.parent
    while bool((above != ROOT).any()):
        found.append(above)
        above = torch.where(above != ROOT, forest.parent[above.clamp(min=0)], ROOT)
    return found
