"""Attributions beside ablation by the book (docs/spec/attribution.md): lists and loops, in float64."""

from __future__ import annotations

import math


def values(texts: list[list[tuple[float, float, bool]]]) -> dict[str, float]:
    """Of texts, each with what was ablated: its attribution, its effect, whether it is one of the largest."""
    every = [one for text in texts for one in text]
    mean_a = sum(a for a, _, _ in every) / len(every)
    mean_e = sum(e for _, e, _ in every) / len(every)
    both = sum((a - mean_a) * (e - mean_e) for a, e, _ in every)
    alone_a = sum((a - mean_a) ** 2 for a, _, _ in every)
    alone_e = sum((e - mean_e) ** 2 for _, e, _ in every)
    big = [abs(e) for _, e, largest in every if largest]
    small = [abs(e) for _, e, largest in every if not largest]
    same = [(a > 0) == (e > 0) and (a < 0) == (e < 0) for a, e, _ in every]
    return {
        "correlation": both / math.sqrt(alone_a * alone_e),
        "same_sign": sum(same) / len(same),
        "largest": sum(big) / len(big),
        "others": sum(small) / len(small),
        "over_others": sum(big) / len(big) - sum(small) / len(small),
    }
