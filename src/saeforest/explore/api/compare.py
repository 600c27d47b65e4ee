"""Comparing an SAE with others: features matched by the cosine of their decoder rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from ...errors import InputError
from ...saes import SAE
from ...schema import listed, shown
from ...seeds import seeded
from ...structure.forest import ROOT, Forest
from ..answers.compare import CompareAnswer, OtherForest, Pair, RunsAnswer, Side
from ..answers.parts import Array
from ..errors import NotFound, Unavailable
from ..index import Index
from . import matching
from .matching import Compared, Nearest, nearest

if TYPE_CHECKING:
    from .api import Api

#: Two features match if the cosine of their decoder rows is at least this.
THRESHOLD = 0.7


@dataclass(frozen=True)
class Opened:
    """Another SAE and its forest. api: what answers questions about it, None without an index; missing: why."""

    sae: SAE
    forest: Forest
    api: Api | None = None
    missing: str | None = None


Other = Callable[[], Opened]
"""Opens another SAE."""


class Comparing:
    """Compares an SAE with others that were named when it was opened. Each is opened and compared once.

    index: the SAE's own.
    """

    def __init__(self, sae: SAE, forest: Forest, index: Index, others: Mapping[str, Other]) -> None:
        self._sae, self._forest, self._index, self._others = sae, forest, index, others
        self._opened: dict[str, Opened] = {}
        self._made: dict[str, CompareAnswer] = {}
        self._lock = Lock()

    def runs(self) -> RunsAnswer:
        """`compare` without `other`."""
        return RunsAnswer(tuple(self._others))

    def answer(self, other: str) -> CompareAnswer:
        """`compare`. Raises NotFound if there is no such SAE, InputError if it does not fit this one."""
        opened = self._open(other)
        with self._lock:
            if other not in self._made:
                self._made[other] = self._compare(other, opened)
            return self._made[other]

    def api(self, other: str) -> Api:
        """What answers questions about another SAE. Raises NotFound if there is no such SAE, Unavailable if it has no
        index."""
        opened = self._open(other)
        if opened.api is None:
            raise Unavailable(opened.missing or f"compare {other}: it has no index")
        return opened.api

    def _open(self, other: str) -> Opened:
        if other not in self._others:
            raise NotFound(
                f"compare: no SAE {shown(other)} to compare with; expected {listed(self._others)}; "
                "`saeforest explore RUN --compare OTHER` offers another"
                if self._others
                else "compare: no SAE to compare with; start the explorer with `saeforest explore RUN --compare OTHER`"
            )
        with self._lock:
            if other not in self._opened:
                self._opened[other] = self._others[other]()
            return self._opened[other]

    @torch.no_grad()
    def _compare(self, name: str, other: Opened) -> CompareAnswer:
        if other.sae.W_dec.shape[1] != self._sae.W_dec.shape[1]:
            raise InputError(
                f"compare {name}: its decoder writes width {other.sae.W_dec.shape[1]}, this SAE's "
                f"{self._sae.W_dec.shape[1]}; expected SAEs of the same activations"
            )
        index = other.api.explorer.index if other.api else None
        here = _compared(self._sae, self._forest, self._index)
        there = _compared(other.sae, other.forest, index)
        ahead, back = nearest(here.rows, there.rows)
        cos, place = ahead
        random = F.normalize(torch.randn(there.rows.shape, generator=seeded(0, "random directions")), dim=1)
        chance = matching.by_chance(here.rows, random, seeded(0, "sample"))
        agree, known = parents_match(self._forest.parent, other.forest.parent, place)
        shuffled = other.forest.parent[
            torch.randperm(len(there.rows), generator=torch.Generator().manual_seed(0))
        ]
        null_agree, null_known = parents_match(self._forest.parent, shuffled, place)
        matched = cos >= THRESHOLD
        labels = (
            {feature: label for feature, (label, _) in other.api.labels.all().items()} if other.api else {}
        )
        pairs = zip(place.tolist(), cos.tolist(), agree.tolist(), known.tolist(), strict=True)
        return CompareAnswer(
            other=name,
            threshold=THRESHOLD,
            matched_share=float(matched.double().mean()),
            mean_cos=float(cos.double().mean()),
            parents_share=_share(agree, known & matched),
            pairs=tuple(
                Pair(i, j, labels.get(j), round(c, 4), bool(a) if k else None)
                for i, (j, c, a, k) in enumerate(pairs)
            ),
            null={
                "matched_share": float((chance >= THRESHOLD).double().mean()),
                "mean_cos": float(chance.double().mean()),
                "parents_share": _share(null_agree, null_known & matched),
            },
            here=_side(here, there, ahead),
            there=_side(there, here, back),
            forest=OtherForest(
                parent=Array.of(other.forest.parent),
                layer=Array.of(other.forest.level),
                density=Array.of(index.density) if index else None,
                dead=Array.of(index.n_fired == 0) if index else None,
                labels={str(feature): label for feature, label in labels.items()},
                indexed=index is not None,
                missing=other.missing,
            ),
        )


def _compared(sae: SAE, forest: Forest, index: Index | None) -> Compared:
    rows = F.normalize(sae.W_dec.detach().cpu().float(), dim=1)
    alive = torch.ones(len(rows), dtype=torch.bool) if index is None else index.n_fired > 0
    return Compared(rows, forest, alive)


def _side(own: Compared, other: Compared, found: Nearest) -> Side:
    parent = own.forest.parent
    return Side(
        match=Array.of(found.id),
        cos=Array.of(found.cos),
        kept=Array.of(matching.kept_edges(parent, other.forest.parent, found.id)),
        chance=Array.of(matching.kept_by_chance(parent, other.forest, found.id)),
        measures=matching.shared(own, other, found, seed=0),
    )


def parents_match(
    own: Int[Tensor, "a"], other: Int[Tensor, "b"], place: Int[Tensor, "a"]
) -> tuple[Tensor, Tensor]:
    """Whether the parent of each feature is paired with the parent of the feature it is paired with; and whether both
    parents exist.

    own, other: parents of the features of the two SAEs. place: the pairs.
    """
    known = (own != ROOT) & (other[place] != ROOT)
    return known & matching.kept_edges(own, other, place), known


def _share(holds: Tensor, of: Tensor) -> float | None:
    return float(holds[of].double().mean()) if bool(of.any()) else None
