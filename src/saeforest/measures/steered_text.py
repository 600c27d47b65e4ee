"""What features do to a language model's predictions when they are set to a value, on some windows of text.

Every condition is compared with the clean model on the same positions, which are those where the features at hand are
silent. With P(S) the probability that the next token is one of S,

    effect(S) = mean over positions of ln P_steered(S) - ln P_clean(S), in nats
    kl        = mean over positions of KL(clean || steered), in nats
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from numpy import ndarray as Array
from torch import Tensor

from ..activations import ActivationReader
from ..interventions import Edit, edited
from ..interventions.splice import Splice
from ..interventions.steer import hooks_of
from ..lm.shared_start import SharedStart, blocks_before
from ..saes import SAE
from ..text import Tokens

# Number of windows whose predictions are compared at once: those of large vocabularies take much memory.
_AT_ONCE = 4


class Effect(NamedTuple):
    """What steering does: the effect on each set of tokens, and the divergence from the clean predictions."""

    on: tuple[float, ...]
    kl: float


class SteeredText:
    """Windows of text with the clean model's predictions, on which features are set.

    n, length: number of windows drawn at random, and how many of their first tokens are read.
    """

    def __init__(
        self,
        sae: SAE,
        reader: ActivationReader,
        tokens: Tokens,
        n: int,
        length: int,
        rng: np.random.Generator,
    ) -> None:
        self._sae, self._reader = sae, reader
        drawn = np.sort(rng.permutation(len(tokens.ids))[:n])
        ids = tokens.ids[torch.from_numpy(drawn), :length].long().to(reader.lm.device)
        self._parts = list(ids.split(min(reader.batch_size, _AT_ONCE)))
        self._keep: list[Bool[Tensor, "w ctx"]] = []
        self._clean: list[Float32[Tensor, "p vocab"]] = []
        active: list[Bool[Tensor, "p d_sae"]] = []
        # What is before the site runs once for all that is steered.
        before = blocks_before(reader.lm, reader.site) if reader.others else reader.shared_blocks
        self._starts = [SharedStart(reader.lm, before) for _ in self._parts]
        for part, start in zip(self._parts, self._starts, strict=True):
            x = reader.lm.activations(part, reader.site)
            keep = reader.keep(part, x)
            code = sae.encode(x[keep].to(sae.device).float()).dense(sae.d_sae)
            active.append((code > sae.config.activation_threshold).cpu())
            self._keep.append(keep)
            with start.first_pass():
                self._clean.append(_log_p(reader.lm.logits(part), keep))
        self._active = torch.cat(active)

    @property
    def n_positions(self) -> int:
        """Number of positions that are steered."""
        return len(self._active)

    def silent(self, features: Sequence[int]) -> Bool[Tensor, "p"]:
        """The positions where none of the features is active in the clean model."""
        return ~self._active[:, list(features)].any(1)

    @torch.no_grad()
    def effect(
        self, edits: Sequence[Edit], sets: Sequence[Int64[Array, "_"]], at: Bool[Tensor, "p"]
    ) -> Effect:
        """The effect of edits, made at all positions, on the probability of each set of tokens.

        at: the positions over which effects are averaged; at least one.
        """
        places = [torch.from_numpy(tokens) for tokens in sets]
        sums, kl = np.zeros(len(sets)), 0.0
        edit, first = edited(edits), 0
        texts = zip(self._parts, self._starts, self._keep, self._clean, strict=True)
        for part, start, keep, clean in texts:
            splice = Splice(self._sae, edit, error=True, keep=keep)
            hooks = hooks_of(splice, self._reader)
            steered = _log_p(start.logits(part, hooks), keep)
            mine = at[first : first + len(clean)].to(clean.device)
            first += len(clean)
            before, after = clean[mine], steered[mine]
            kl += float((before.exp() * (before - after)).sum(1).double().sum())
            for i, of in enumerate(places):
                moved = after[:, of].logsumexp(1) - before[:, of].logsumexp(1)
                sums[i] += float(moved.double().sum())
        count = int(at.sum())
        return Effect(tuple((sums / count).tolist()), kl / count)


def _log_p(logits: Float[Tensor, "w ctx vocab"], keep: Bool[Tensor, "w ctx"]) -> Float32[Tensor, "p vocab"]:
    return logits[keep].float().log_softmax(-1)


def typical(
    own: Int[Array, "a"], others: Int[Array, "b"], n: int, without: Int64[Array, "_"]
) -> Int64[Array, "some"]:
    """Up to `n` tokens that are typical of a sample among all of `own` and `others`, the most typical first.

    They are those with the largest share of the divergence between the distributions of `own` and of both samples,
    p ln(p / q), and that occur in `own` at least twice. without: tokens that are not to be among them.
    """
    found, count = np.unique(own, return_counts=True)
    every, total = np.unique(np.concatenate([own, others]), return_counts=True)
    q = total[np.searchsorted(every, found)] / total.sum()
    p = count / max(len(own), 1)
    score = np.where((count > 1) & ~np.isin(found, without), p * np.log(p / q), 0)
    order = np.argsort(-score, kind="stable")[:n]
    return found[order[score[order] > 0]].astype(np.int64)
