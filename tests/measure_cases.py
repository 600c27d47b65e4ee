"""A small language model's text, random batches of activations, and SAEs, for tests of measures."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from oracles import measures as oracle
from saeforest.evaluation import (
    MEASURES,
    MeasureOptions,
    Source,
)
from saeforest.measures import EvalBatch, Record, Study, WindowLosses
from saeforest.saes import SAE, TreeConfig, TreeSAE
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import Forest
from saeforest.structure.pairs import PairStatistics
from saeforest.text import Tokens
from subject_cases import given

VOCAB, D, CONTEXT, N_WINDOWS, EOS, LAYER = 30, 16, 12, 22, 2, 1
SIZES, K = (6, 12, 16), (4, 3, 3)
SITE = f"blocks.{LAYER}.hook_resid_post"
SOURCE = Source("test text", "held_out", 0, "the sae")


def ce(n_tokens: int) -> MeasureOptions:
    """The cross-entropy taken on so many tokens."""
    return MeasureOptions(ce_tokens=n_tokens, nulls="no")


def tree_sae(d_in: int = D, sizes: tuple[int, ...] = SIZES, k: tuple[int, ...] = K) -> TreeSAE:
    """Random weights; encoder and decoder differ."""
    sae = TreeSAE(TreeConfig(layer_sizes=sizes, k_per_layer=k), d_in, seed=3)
    generator = torch.Generator().manual_seed(7)
    sae.encoder.data += 0.2 * torch.randn(sae.encoder.shape, generator=generator)
    sae.b_dec.data += 0.1 * torch.randn(sae.b_dec.shape, generator=generator)
    return sae


def keep_by_hand(tokens: Tokens) -> Tensor:
    keep = tokens.ids > EOS
    keep[:, 0] = False
    return keep


def shuffled(forest: Forest) -> Forest:
    """Another forest of the same layers."""
    generator = torch.Generator().manual_seed(4)
    parent = forest.parent.clone()
    for start, size in zip(forest.layer_starts[1:], forest.layer_sizes[1:], strict=True):
        parent[start : start + size] = torch.randint(-1, start, (size,), generator=generator)
    return Forest(parent, forest.layer_sizes)


def code_of(rows: list[list[int]], value: float = 1.0) -> SparseCode:
    """The features active on each token."""
    k = max(map(len, rows))
    ids = torch.tensor([row + [0] * (k - len(row)) for row in rows])
    used = torch.tensor([[1.0] * len(row) + [0.0] * (k - len(row)) for row in rows])
    return SparseCode(value * used, ids)


def eval_batch(
    x: Tensor | None, x_hat: Tensor | None, code: SparseCode | None, n_windows: int = 1, first: int = 0
) -> EvalBatch:
    """Rows dealt in order to windows of equal length, from window `first` on."""
    n = len(next(part for part in (x, code and code.values) if part is not None))
    x = torch.ones(n, 2) if x is None else x
    window = first + torch.arange(n) * n_windows // n
    return EvalBatch(
        x=x,
        rows=torch.arange(n),
        window=window,
        windows=torch.arange(first, first + n_windows),
        code=code_of([[]] * (n - 1) + [[0]]) if code is None else code,
        x_hat=x if x_hat is None else x_hat,
    )


def measured(name: str, sae: SAE, batches: list[EvalBatch], forest: Forest | None = None) -> Record:
    spec = MEASURES[name]
    if isinstance(spec, Study):
        pairs = PairStatistics(sae.d_sae, sae.config.activation_threshold)
        for batch in batches:
            pairs.add(batch.code)
        x = torch.cat([batch.x for batch in batches])
        supplied = given(sae, firings=pairs, activations=x, forest=forest or sae.forest)
        return spec.run(supplied, MeasureOptions().config_of(name))
    measure = spec.make(given(sae, forest=forest or sae.forest), MeasureOptions().config_of(name))
    for batch in batches:
        measure.update(batch)
    return measure.record({})


def on_flat_forest(layer_sizes: tuple[int, ...]) -> TreeSAE:
    """An SAE of these layers whose own forest has no edges, so that another can be measured on it."""
    sae = tree_sae(2, layer_sizes, tuple(1 for _ in layer_sizes))
    sae.parent.fill_(-1)
    return sae


def random_batches(
    n_batches: int, n_windows: int, per_window: int = 6, d: int = 5, seed: int = 0
) -> list[EvalBatch]:
    """Data with a mean far from zero, as activations have, and a reconstruction that misses some of it."""
    generator = torch.Generator().manual_seed(seed)
    mean = 2 * torch.randn(d, generator=torch.Generator().manual_seed(99))
    batches = []
    for i in range(n_batches):
        x = mean + torch.randn(n_windows * per_window, d, generator=generator)
        x_hat = x + 0.3 * torch.randn(x.shape, generator=generator)
        batches.append(eval_batch(x, x_hat, None, n_windows, first=i * n_windows))
    return batches


def doubles(batches: list[EvalBatch]) -> list[tuple[oracle.FloatArray, oracle.FloatArray]]:
    return [(b.x.double().numpy(), b.x_hat.double().numpy()) for b in batches]


def close(value: float | None, expected: float, tolerance: float = 1e-10) -> bool:
    return value is not None and math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)


def losses(
    clean: float, spliced: float, ablated: float, kl: tuple[float, float] = (0.1, 1.0), n_windows: int = 3
) -> EvalBatch:
    """Windows of four predictions each, with these mean losses and divergences."""

    def four(mean: float) -> Tensor:
        return torch.full((n_windows,), 4 * mean, dtype=torch.float64)

    n = torch.full((n_windows,), 4)
    found = WindowLosses(n, four(clean), four(spliced), four(ablated), n, four(kl[0]), four(kl[1]))
    return replace(eval_batch(torch.ones(n_windows, 2), None, None, n_windows), losses=found)
