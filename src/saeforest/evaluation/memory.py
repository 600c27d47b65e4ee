"""The memory that studies take beyond what they are given, in bytes: what grows with the SAE or with the text."""

from __future__ import annotations

from typing import NamedTuple

from ..measures.probes import probes_memory
from ..structure.pairs import SCORES, scores_memory, sorted_memory

# Cosines of decoder rows come in blocks of so many (`composition`, `reconstruction_score`), with what is asked of each.
_BLOCK_ENTRIES, _BYTES_OF_COSINE = 1 << 24, 5


class Measured(NamedTuple):
    """What an SAE's studies look at."""

    d_sae: int
    d_in: int
    n_tokens: int
    n_firings: int
    n_probes: int
    """Features whose directions are asked for, at most."""


def studies_memory(names: tuple[str, ...], of: Measured) -> int:
    """The most that any of these studies takes, with what all of them share.

    Those that read text of their own (absorption, sparse_probing, tpp) and a judge are not known beforehand.
    """
    shared = sorted_memory(of.n_firings, of.d_sae)
    return shared + max((_study(name, of) for name in names), default=0)


def _study(name: str, of: Measured) -> int:
    decoder = 4 * of.d_sae * of.d_in
    cosines = _BYTES_OF_COSINE * min(_BLOCK_ENTRIES, of.d_sae**2)
    match name:
        case "composition":
            return decoder + cosines
        case "mcs":
            return decoder + scores_memory(of.d_sae, SCORES[:5])
        case "hierarchy":
            # Directions by LDA stand beside the probes: a float64 mean for every feature.
            by_lda = 8 * of.d_sae * of.d_in
            return decoder + max(
                scores_memory(of.d_sae, ("mcs_correlation",)),
                by_lda + cosines,
                probes_memory(of.n_tokens, of.d_in, of.n_probes),
            )
        case "reconstruction_score":
            return decoder + max(cosines, probes_memory(of.n_tokens, of.d_in, of.n_probes))
        case "geometry" | "autointerp" | "pair_judge":
            return decoder
        case _:
            return 0
