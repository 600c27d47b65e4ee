"""What the tests of HSAE and JumpReLU share: cases, an SAE and an oracle of each, and data."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch

from oracles.hsae import HSAEOptions, HSAEOracle
from saeforest.optim import OptimConfig
from saeforest.saes import (
    HSAE,
    HSAEConfig,
    JumpReLUConfig,
    JumpReLUSAE,
    ParentsConfig,
    RunLength,
    Setup,
    SparsityConfig,
    training_of,
)
from saeforest.saes.hsae import Hierarchy
from saeforest.saes.levels import LevelsSAE, LevelsTraining
from saeforest.structure.forest import ROOT

SIZES, K, D, BATCH, STEPS = (4, 7, 11), (1, 2, 3), 8, 16, 40
DEAD_STEPS = 3
RUN = RunLength(STEPS, BATCH)


@dataclass
class Case:
    """One set of switches, for the SAE and for the oracle."""

    normalize: float | str = "none"
    ghost: bool = True
    bandwidth: float | None = 0.1
    threshold_rate: float | None = 1.0
    threshold_init: float | None = None
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    constraint: float = 0.05
    perturbation: float = 0.2
    compare: Literal["vector", "projected"] = "vector"
    hierarchy: ParentsConfig = field(default_factory=lambda: ParentsConfig(period=6))
    parents: bool = False
    """Start from a random forest: for training without updates."""


SLOW = SparsityConfig(weight=0.02, rate=0.01, momentum=0.7, gain=0.05)
CASES = {
    "paper": Case(normalize=1.7, perturbation=0.05, constraint=0.01, threshold_rate=None),
    "wide kernel": Case(
        normalize="layer_norm",
        ghost=False,
        bandwidth=3.0,
        constraint=0.3,
        perturbation=0.5,
        sparsity=SLOW,
        hierarchy=ParentsConfig("fixed", 5, "decoder", max_children=2),
    ),
    "co-activation": Case(
        bandwidth=0.7,
        threshold_rate=0.3,
        threshold_init=0.02,
        constraint=0,
        perturbation=0.3,
        sparsity=SparsityConfig(weight=1e-6, rate=1, momentum=0, gain=0),
        hierarchy=ParentsConfig("alternate", 4, "coactivation", 0.8, unassigned=0.3),
    ),
    "conditional": Case(
        normalize=0.6,
        ghost=False,
        bandwidth=0.01,
        constraint=1.0,
        perturbation=0,
        hierarchy=ParentsConfig("alternate", 9, "conditional", unassigned=0.4, max_children=2),
    ),
    "binary, ghosts in a wide kernel": Case(
        normalize="layer_norm",
        bandwidth=2.0,
        threshold_init=0.3,
        perturbation=0.4,
        sparsity=SparsityConfig(gain=0.02),
        hierarchy=ParentsConfig("alternate", None, "encoder", unassigned=0, max_children=2),
    ),
    "never updated": Case(sparsity=SLOW, perturbation=0.5, hierarchy=ParentsConfig("none", 3), parents=True),
    "projected, without copies": Case(
        bandwidth=0.7,
        compare="projected",
        constraint=0.5,
        perturbation=0.4,
        hierarchy=ParentsConfig("alternate", 5, unassigned=0.1, max_cosine=0.4),
    ),
    "projected, binary, without copies": Case(
        normalize=1.7,
        ghost=False,
        compare="projected",
        hierarchy=ParentsConfig("alternate", 8, "conditional", 0.8, max_children=2, max_cosine=0.1),
    ),
    "after training": Case(constraint=0, perturbation=0, hierarchy=ParentsConfig("after", 3)),
}


def make_training(
    case: Case,
    sizes: tuple[int, ...] = SIZES,
    k: tuple[int, ...] = K,
    *,
    dtype: torch.dtype = torch.float64,
    lr: float = 0.02,
    run: RunLength = RUN,
) -> LevelsTraining:
    """Ready to be trained for STEPS."""
    common: dict[str, Any] = {
        "layer_sizes": sizes,
        "k_per_layer": k,
        "normalize_activations": case.normalize,
        "threshold_init": case.threshold_init,
        "bandwidth": case.bandwidth,
        "threshold_rate": case.threshold_rate,
        "sparsity": case.sparsity,
        "ghost": case.ghost,
        "dead_after_tokens": DEAD_STEPS * BATCH,
    }
    if len(sizes) == 1:
        sae = JumpReLUSAE(JumpReLUConfig(**common), D, seed=1)
    else:
        own: dict[str, Any] = {
            "constraint": case.constraint,
            "perturbation": case.perturbation,
            "compare": case.compare,
        }
        own |= {"hierarchy": case.hierarchy}
        sae = HSAE(HSAEConfig(**common, **own), D, seed=1)
    return train_levels(sae.to(dtype), run, lr)


def train_levels(sae: LevelsSAE, run: RunLength, lr: float, seed: int = 1) -> LevelsTraining:
    optim = OptimConfig(lr=lr, batch_size=run.batch_size, beta1=0.0, beta2=0.995)
    training = training_of(sae, Setup(run, optim, sae.encoder.dtype, seed))
    assert isinstance(training, LevelsTraining)
    return training


def hierarchy_of(training: LevelsTraining) -> Hierarchy:
    assert isinstance(training.links, Hierarchy)
    return training.links


def random_parent(seed: int = 0) -> torch.Tensor:
    """A forest of SIZES in which some features are orphans and some are childless."""
    rng = np.random.default_rng(seed)
    parent = [ROOT] * SIZES[0]
    start = 0
    for above, below in pairwise(SIZES):
        parent += [ROOT if rng.random() < 0.2 else start + int(rng.integers(above - 1)) for _ in range(below)]
        start += above
    return torch.tensor(parent)


def make_oracle(training: LevelsTraining, case: Case, eps: float) -> HSAEOracle:
    """With the weights and the forest of the SAE."""
    sae, sparsity = training.sae, training.sparsity
    how = {"layer_norm": "token"}.get(str(case.normalize), case.normalize)
    hierarchy = case.hierarchy
    options = HSAEOptions(
        normalize=how,
        bandwidth=case.bandwidth or 1e-3 * D**0.5,
        lam_min=1e-8 * D,
        lam_max=1e2 * D,
        theta_rate=case.threshold_rate or D**0.5,
        rho=case.constraint,
        projected=case.compare == "projected",
        ghost=case.ghost,
        dead_steps=DEAD_STEPS,
        target=sae.config.k_per_layer,
        eta=sparsity.rate if case.sparsity.rate is None else case.sparsity.rate,
        momentum=sparsity.momentum if case.sparsity.momentum is None else case.sparsity.momentum,
        gain=sparsity.gain if case.sparsity.gain is None else case.sparsity.gain,
        updates=hierarchy.updates,
        period=hierarchy.period or 2,
        similarity=hierarchy.similarity,
        coactivation_momentum=hierarchy.momentum,
        unassigned=hierarchy.unassigned,
        max_children=hierarchy.max_children,
        max_cosine=hierarchy.max_cosine,
        adam_eps=eps,
    )
    encoder, decoder, b_enc, threshold = (
        w.detach().numpy().copy() for w in (sae.encoder, sae.decoder, sae.b_enc, sae.threshold)
    )
    b_dec = sae.b_dec.detach().numpy().copy().reshape(len(sae.config.layer_sizes), D)
    sizes, weight = sae.config.layer_sizes, case.sparsity.weight * D
    parent = sae.parent.numpy().copy()
    return HSAEOracle(encoder, decoder, b_enc, threshold, b_dec, sizes, weight, options, parent)


def batches(n: int, dtype: torch.dtype = torch.float64, batch: int = BATCH) -> list[torch.Tensor]:
    """Activations of six sparse directions, with noise and an offset."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(6, D, generator=generator, dtype=dtype)
    found = []
    for _ in range(n):
        parts = torch.rand(batch, 6, generator=generator, dtype=dtype)
        parts *= torch.rand(batch, 6, generator=generator, dtype=dtype) < 0.3
        noise = torch.randn(batch, D, generator=generator, dtype=dtype)
        found.append(2 * parts @ directions + 0.1 * noise + 0.3)
    return found


def same(found: Any, expected: Any, what: str = "") -> None:
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    expected = np.asarray(expected)
    assert found.shape == expected.shape, what
    scale = min(float(np.abs(expected).max(initial=0.0)), 1.0)
    assert (np.abs(found - expected) <= 1e-9 * np.abs(expected) + 1e-9 * scale + 1e-13).all(), what


ONE_LEVEL = {
    "defaults": Case(normalize=1.7, bandwidth=None),
    "wide kernel": Case(normalize="layer_norm", ghost=False, bandwidth=3.0, sparsity=SLOW),
    "wide kernel and ghosts": Case(bandwidth=2.0, threshold_init=0.2, sparsity=SLOW),
}


def brute_force(similarity: list[list[float]], unassigned: float, max_children: int | None) -> list[int]:
    """Take the most similar pair that is still open, again and again; then drop the least similar children."""
    n_above, n_below = len(similarity), len(similarity[0])
    parent: dict[int, int] = {}
    while True:
        full = [a for a in range(n_above) if list(parent.values()).count(a) == (max_children or n_below)]
        # max takes the first of equals: by child, then by parent
        free = [(b, a) for b in range(n_below) for a in range(n_above) if b not in parent and a not in full]
        pairs = [(b, a) for b, a in free if similarity[a][b] > -np.inf]
        if not pairs:
            break
        child, above = max(pairs, key=lambda pair: similarity[pair[1]][pair[0]])
        parent[child] = above
    best = [similarity[parent[b]][b] if b in parent else -np.inf for b in range(n_below)]
    dropped = sorted(range(n_below), key=lambda b: best[b])[: int(unassigned * n_below)]
    return [ROOT if b in dropped else parent.get(b, ROOT) for b in range(n_below)]
