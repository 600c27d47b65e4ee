"""Comparing an SAE with others: features matched by the cosine of their decoder rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import InputError
from ...saes import SAE
from ...schema import listed, shown
from ...structure.forest import ROOT, Forest
from ..answers.whole import CompareAnswer, Pair, RunsAnswer
from ..errors import NotFound

#: Two features match if the cosine of their decoder rows is at least this.
THRESHOLD = 0.7
_ROWS = 2048

Other = Callable[[], tuple[SAE, Forest]]
"""Loads another SAE and its forest."""


class Comparing:
    """Compares an SAE with others that were named when it was opened. Each comparison is made once."""

    def __init__(self, sae: SAE, forest: Forest, others: Mapping[str, Other]) -> None:
        self._sae, self._forest, self._others = sae, forest, others
        self._made: dict[str, CompareAnswer] = {}
        self._lock = Lock()

    def runs(self) -> RunsAnswer:
        """`compare` without `other`."""
        return RunsAnswer(tuple(self._others))

    def answer(self, other: str) -> CompareAnswer:
        """`compare`. Raises NotFound if there is no such SAE, InputError if it does not fit this one."""
        if other not in self._others:
            raise NotFound(
                f"compare: no SAE {shown(other)} here, but {listed(self._others)}; start the explorer with "
                "`saeforest explore RUN --compare OTHER`"
            )
        with self._lock:
            if other not in self._made:
                self._made[other] = self._compare(other)
            return self._made[other]

    @torch.no_grad()
    def _compare(self, name: str) -> CompareAnswer:
        other, forest = self._others[name]()
        if other.W_dec.shape[1] != self._sae.W_dec.shape[1]:
            raise InputError(
                f"compare {name}: its decoder writes width {other.W_dec.shape[1]}, this SAE's "
                f"{self._sae.W_dec.shape[1]}; expected SAEs of the same activations"
            )
        own, rows = self._sae.W_dec.detach().cpu().float(), other.W_dec.detach().cpu().float()
        cos, place = nearest(own, rows)
        random = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
        by_chance, _ = nearest(own, random)
        agree, known = parents_match(self._forest.parent, forest.parent, place)
        shuffled = forest.parent[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
        null_agree, null_known = parents_match(self._forest.parent, shuffled, place)
        matched = cos >= THRESHOLD
        pairs = zip(place.tolist(), cos.tolist(), agree.tolist(), known.tolist(), strict=True)
        return CompareAnswer(
            other=name,
            threshold=THRESHOLD,
            matched_share=float(matched.double().mean()),
            mean_cos=float(cos.double().mean()),
            parents_share=_share(agree, known & matched),
            pairs=tuple(
                Pair(i, j, None, round(c, 4), bool(a) if k else None) for i, (j, c, a, k) in enumerate(pairs)
            ),
            null={
                "matched_share": float((by_chance >= THRESHOLD).double().mean()),
                "mean_cos": float(by_chance.double().mean()),
                "parents_share": _share(null_agree, null_known & matched),
            },
        )


def nearest(
    own: Float[Tensor, "a d"], other: Float[Tensor, "b d"]
) -> tuple[Float[Tensor, "a"], Int[Tensor, "a"]]:
    """For each row of `own`, the largest cosine with a row of `other`, and which row that is."""
    other = F.normalize(other, dim=1)
    found = [(F.normalize(part, dim=1) @ other.T).max(1) for part in own.split(_ROWS)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def parents_match(
    own: Int[Tensor, "a"], other: Int[Tensor, "b"], place: Int[Tensor, "a"]
) -> tuple[Tensor, Tensor]:
    """Whether the parent of each feature is paired with the parent of the feature it is paired with; and whether both
    parents exist.

    own, other: parents of the features of the two SAEs. place: the pairs.
    """
    there = other[place]
    known = (own != ROOT) & (there != ROOT)
    return known & (place[own.clamp(min=0)] == there), known


def _share(holds: Tensor, of: Tensor) -> float | None:
    return float(holds[of].double().mean()) if bool(of.any()) else None
