"""Steering by hand: one feature, one position, one token at a time, in double precision."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from saeforest.lm import LanguageModel
from saeforest.saes import SAE


def steered_logits(
    lm: LanguageModel, site: str, sae: SAE, ids: Tensor, values: Mapping[int, float], keep: Sequence[bool]
) -> Tensor:
    """Logits of one text with features set to values at the kept positions, by the code's definition."""
    x = lm.activations(ids[None], site)[0]
    new = x.clone()
    for place, kept in enumerate(keep):
        if not kept:
            continue
        code, stats = sae.encode_with_stats(x[place])
        dense = code.dense(sae.d_sae)
        for f, value in values.items():
            new[place] += stats.std * (value - dense[f]) * sae.W_dec[f]
    return lm.logits(ids[None], {site: lambda _: new[None]})[0]


def log_ratio(clean: Tensor, steered: Tensor, tokens: Sequence[int]) -> float:
    """ln of how many times as probable the tokens are together, at one position."""

    def probability(logits: Tensor) -> float:
        top = float(logits.max())
        every = [math.exp(float(v) - top) for v in logits]
        return sum(every[t] for t in tokens) / sum(every)

    return math.log(probability(steered)) - math.log(probability(clean))


def divergence(clean: Tensor, steered: Tensor) -> float:
    p, q = clean.softmax(-1), steered.softmax(-1)
    return float(sum(a * (math.log(a) - math.log(b)) for a, b in zip(p.tolist(), q.tolist(), strict=True)))


def typical(own: Sequence[int], others: Sequence[int], n: int, without: Sequence[int]) -> list[int]:
    mine, every = Counter(own), Counter([*own, *others])
    scores = {}
    for token, count in mine.items():
        p, q = count / len(own), every[token] / sum(every.values())
        score = p * math.log(p / q)
        if count >= 2 and token not in without and score > 0:
            scores[token] = score
    return sorted(scores, key=lambda t: (-scores[t], t))[:n]
