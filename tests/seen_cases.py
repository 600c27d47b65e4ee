"""What one pass over text has shown of an SAE, made up: given firings, forest, decoder and directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from saeforest.measures.probes import ProbeConfig, Probes
from saeforest.measures.subject import Subject
from saeforest.saes import SAE, TreeConfig, TreeSAE
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import Forest
from saeforest.structure.pairs import PairStatistics
from subject_cases import given

THRESHOLD = 1e-3


class Ungated(TreeSAE):
    """A tree whose children may fire without their parents."""

    gated = False


class GivenProbes(Probes):
    """Directions of all features that are given, not trained; counts how often they are asked for."""

    def __init__(self, x: Tensor, pairs: PairStatistics, table: Tensor) -> None:
        super().__init__(x, pairs, ProbeConfig())
        self.table, self.calls = torch.nn.functional.normalize(table), 0

    def directions(self, features: Int[Tensor, "b"]) -> Float32[Tensor, "b d_in"]:
        assert bool(self.defined(features).all())
        self.calls += 1
        return self.table[features]


def with_decoder(sae: SAE, decoder: Tensor) -> SAE:
    sae.decoder.data = torch.nn.functional.normalize(decoder.float())
    return sae


def tree_of(forest: Forest, decoder: Tensor, kind: type[TreeSAE] = Ungated) -> SAE:
    """An SAE with this forest and decoder."""
    k = tuple(1 for _ in forest.layer_sizes)
    config = TreeConfig(layer_sizes=forest.layer_sizes, k_per_layer=k, normalize_activations="none")
    sae = kind(config, decoder.shape[1])
    sae.parent.copy_(forest.parent)
    return with_decoder(sae, decoder)


def seen_of(
    sae: SAE,
    values: Tensor,
    *,
    forest: Forest | None = None,
    x: Tensor | None = None,
    directions: Tensor | None = None,
    probes: ProbeConfig | None = None,
) -> Subject:
    """`values [n, d_sae]` of the features on activations `x` (random ones); everything else is not looked at."""
    n, d_sae = values.shape
    if x is None:
        x = torch.randn(n, sae.d_in, generator=torch.Generator().manual_seed(9))
    pairs = PairStatistics(d_sae, THRESHOLD)
    pairs.add(SparseCode(values.float(), torch.arange(d_sae).expand(n, d_sae).contiguous()))
    table = torch.randn(d_sae, sae.d_in, generator=torch.Generator().manual_seed(8))
    of_table = GivenProbes(x, pairs, table if directions is None else directions)
    return given(
        sae,
        {"model": "made up"},
        forest=sae.forest if forest is None else forest,
        firings=pairs,
        activations=x,
        probes=of_table if probes is None else Probes(x, pairs, probes),
    )


def random_values(seed: int, n: int = 120, d_sae: int = 14) -> Tensor:
    """Features of different frequencies, some within others; one never fires, one always does."""
    rng = np.random.default_rng(seed)
    on = rng.random((n, d_sae)) < np.linspace(0.7, 0.1, d_sae)
    on[:, 3] = True
    on[:, 6] &= on[:, 0]
    on[:, 9] &= on[:, 1]
    on[:, 10] = on[:, 9]
    on[:, 12] = False
    small = np.where(rng.random((n, d_sae)) < 0.1, THRESHOLD / 2, 0)
    return torch.from_numpy(np.where(on, 3 * rng.random((n, d_sae)) + 2 * THRESHOLD, small))


def above_threshold(values: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    a = values.float().double().numpy()
    return np.where(a > THRESHOLD, a, 0)
