"""The edges of which `relatedness` compares the texts, each with its matched pair, and the tokens of their features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from numpy import ndarray as Array
from torch import Tensor

from ..saes import SAE
from ..saes.encode import DENSE_ENTRIES
from ..spill import slices
from .matched import NullParents, Triple
from .own_detectors import detector_thresholds
from .subject import Subject

# Number of children whose detectors are run at once: where they are on takes 8 bytes a token at most.
_BLOCK = 128


class Rows(NamedTuple):
    """Tokens of the features of a triple: flat positions in the measured text, ascending.

    child:  where the child's own detector is on, whatever its parent does.
    parent: where the parent fires, without those of `child` and without those on which the child fires.
    null:   the same of the null parent.
    gated_child, gated_parent, gated_null: where the child fires, and where the parents fire without it.
    all_parent, all_null: where the parents fire, with or without it.
    """

    parent: Int64[Array, "p"]
    null: Int64[Array, "q"]
    child: Int64[Array, "u"]
    gated_parent: Int64[Array, "gated_p"]
    gated_null: Int64[Array, "gated_q"]
    gated_child: Int64[Array, "c"]
    all_parent: Int64[Array, "all_p"]
    all_null: Int64[Array, "all_q"]


class RelatedEdges:
    """Draws edges at random, each with a matched pair, and gives their tokens.

    n:          number of edges to draw.
    min_tokens: number of tokens that each of the first three members of `Rows` must have, and the firings of the child.
    too_rare:   number of edges passed over so far because they have fewer, or all edges that fire too rarely.
    unmatched:  number of edges passed over so far because no parent matches.
    """

    def __init__(self, subject: Subject, n: int, min_tokens: int, rng: np.random.Generator) -> None:
        self._subject, self._n, self._least, self._rng = subject, n, min_tokens, rng
        self._rows = subject.rows.numpy()
        fired = subject.pairs.marginals.n.numpy()
        self._nulls = NullParents(subject.forest, fired)
        self._parent, self._child = subject.forest.edges.numpy()
        enough = (fired[self._parent] >= min_tokens) & (fired[self._child] >= min_tokens)
        self._candidates = rng.permutation(np.flatnonzero(enough))
        self.too_rare, self.unmatched = int((~enough).sum()), 0

    def __iter__(self) -> Iterator[tuple[Triple, Rows]]:
        drawn = 0
        for first in range(0, len(self._candidates), _BLOCK):
            edges = self._candidates[first : first + _BLOCK]
            children = torch.from_numpy(self._child[edges])
            above = detector_thresholds(self._subject.pairs, children, self._least)
            on = where_on(self._subject.sae, self._subject.x, children, above)
            for e, own in zip(edges.tolist(), on, strict=True):
                if drawn == self._n:
                    return
                found = self._match(int(self._parent[e]), int(self._child[e]), own)
                if found is not None:
                    drawn += 1
                    yield found

    def _match(self, parent: int, child: int, own: Int64[Array, "u"]) -> tuple[Triple, Rows] | None:
        """A triple for an edge and its tokens. own: activations on which the child's detector is on."""
        fires = self._firings(child)
        either = np.union1d(fires, own)

        def apart(feature: int) -> Int64[Array, "p"]:
            return np.setdiff1d(self._firings(feature), either, assume_unique=True)

        if min(len(own), len(apart(parent))) < self._least:
            self.too_rare += 1
            return None
        null = self._nulls.draw((parent, child), self._rng, lambda q: len(apart(q)) >= self._least)
        if null is None:
            self.unmatched += 1
            return None
        above = [self._firings(feature) for feature in (parent, null)]
        gated = [np.setdiff1d(all_, fires, assume_unique=True) for all_ in above]
        parts = (apart(parent), apart(null), own, *gated, fires, *above)
        return Triple(parent, null, child), Rows(*(self._rows[part] for part in parts))

    def _firings(self, feature: int) -> Int64[Array, "n"]:
        """The activations on which a feature fires, ascending."""
        return self._subject.pairs.firings(feature)[0].numpy().astype(np.int64)


@torch.no_grad()
def where_on(
    sae: SAE, x: Float[Tensor, "n d_in"], features: Int[Tensor, "m"], above: Float[Tensor, "m"]
) -> list[Int64[Array, "u"]]:
    """The activations on which the detector of each feature exceeds its threshold, ascending (see `own_detectors`)."""
    if not len(features):
        return []
    features, above = features.to(sae.device), above.to(sae.device)
    parts: list[Int[Tensor, "2 some"]] = []
    first = 0
    for part in slices(x, max(DENSE_ENTRIES // max(len(features), 1), 1)):
        row, feature = (sae.detect(part.to(sae.device).float(), features) > above).nonzero(as_tuple=True)
        parts.append(torch.stack([row.cpu() + first, feature.cpu()]))
        first += len(part)
    row, feature = torch.cat(parts, dim=1).numpy()
    order = np.argsort(feature, kind="stable")
    ends = np.cumsum(np.bincount(feature, minlength=len(features)))
    return np.split(row[order], ends[:-1])
