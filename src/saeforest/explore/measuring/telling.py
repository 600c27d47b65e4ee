"""The tokens that tell a feature from its parent, or a root from all text: what the simplest labels are made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int, Int32
from torch import Tensor

from ...progress import progress
from ...structure.forest import ROOT, Forest
from ...structure.pairs import PairStatistics
from ..index.form import TELLING

# A lift below this is rounding: the token is as frequent as anywhere.
_ROUNDING = 1e-9


class Telling(NamedTuple):
    """The most telling tokens of each feature, best first: -1 and NaN in places that are not used."""

    ids: Int32[Tensor, "d_sae 5"]
    lift: Float32[Tensor, "d_sae 5"]


def telling_tokens(pairs: PairStatistics, token_of: Int[Tensor, "n"], forest: Forest) -> Telling:
    """The most telling tokens of every feature.

    token_of: the id of the token of each activation in `pairs`.

    Where a child fires n_c times, n of them on some token, which makes up the share q of the tokens on which the child
    or its parent fires (for a root: of all tokens),

        p = (n + q) / (n_c + 1)      lift = log2(p / q)

    The tokens with the largest p * lift come first, if their lift is above 0. One firing at random is added, so that a
    token seen once says little. Of equals, the lower id comes first.
    """
    shape = forest.d_sae, TELLING
    found = Telling(torch.full(shape, -1, dtype=torch.int32), torch.full(shape, torch.nan))
    token = token_of.numpy()
    size = int(token.max()) + 1 if len(token) else 1
    fired = pairs.marginals.n
    with progress("telling tokens", forest.d_sae, "features") as advance:
        for parent in [ROOT, *(forest.n_children > 0).nonzero().flatten().tolist()]:
            above = None if parent == ROOT else pairs.firings(parent)[0].numpy()
            base = np.bincount(token if above is None else token[above], minlength=size)
            for child in forest.children(parent):
                if fired[child]:
                    firings = pairs.firings(child)[0].numpy()
                    ids, lift = _telling(token, firings, above, base)
                    found.ids[child, : len(ids)] = torch.from_numpy(ids.astype(np.int32))
                    found.lift[child, : len(ids)] = torch.from_numpy(lift.astype(np.float32))
                advance(1)
    return found


def _telling(
    token: np.ndarray, firings: np.ndarray, above: np.ndarray | None, base: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a child and their lifts. above: where its parent fires. base: number of each token there."""
    ids, n = np.unique(token[firings], return_counts=True)
    of_base, total = base[ids].astype(np.float64), float(base.sum())
    if above is not None:
        alone = token[np.setdiff1d(firings, above, assume_unique=True)]
        of_base += np.bincount(np.searchsorted(ids, alone), minlength=len(ids))
        total += len(alone)
    q = of_base / total
    p = (n + q) / (len(firings) + 1)
    lift = np.log2(p / q)
    order = np.lexsort((ids, -p * lift))
    order = order[lift[order] > _ROUNDING][:TELLING]
    return ids[order], lift[order]
