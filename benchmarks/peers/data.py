"""The activations that every library reads: one file of float32 rows for each width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saeforest.activations.sources import StoredActivations, open_store
from saeforest.errors import InputError

#: Batches in a file; workers go round them.
BATCHES = 8
_FEATURES_PER_D, _ACTIVE = 8, 32
# Frequencies of features and variances of directions fall as powers of their rank, as in language models.
_FREQUENCY_POWER, _SPECTRUM_POWER, _NOISE = 1.0, 0.5, 0.3


def synthetic(n: int, d: int, seed: int = 0) -> Tensor:
    """Rows that are sparse sums of more features than dimensions, plus noise; their mean norm is sqrt(d)."""
    generator = torch.Generator().manual_seed(seed)
    features = _FEATURES_PER_D * d
    spectrum = torch.arange(1, d + 1).pow(-_SPECTRUM_POWER)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    directions = torch.randn(features, d, generator=generator) * spectrum
    directions = torch.nn.functional.normalize(directions) @ rotation
    frequency = torch.arange(1, features + 1).pow(-_FREQUENCY_POWER)
    ids = torch.multinomial(frequency, n * _ACTIVE, replacement=True, generator=generator).view(n, _ACTIVE)
    values = 0.5 + torch.empty(n, _ACTIVE).exponential_(generator=generator)
    x = torch.nn.functional.embedding_bag(ids, directions, per_sample_weights=values, mode="sum")
    noise = torch.randn(n, d, generator=generator) * spectrum @ rotation
    x = x / x.norm(dim=1).mean() + _NOISE * noise / noise.norm(dim=1).mean()
    return x * (d**0.5 / x.norm(dim=1).mean())


def write(folder: Path, d: int, batch: int, store: StoredActivations | None) -> Path:
    """The file of width `d` for batches of that size: harvested rows where `store` has that width."""
    path = folder / f"{d}-{batch}.npy"
    if path.exists():
        return path
    x = synthetic(BATCHES * batch, d) if store is None or store.d_in != d else _stored(store, batch)
    np.save(path, x.numpy())
    return path


def _stored(store: StoredActivations, batch: int) -> Tensor:
    x = store.block(0, 0).x.float()[: BATCHES * batch]
    if len(x) < batch:
        raise InputError(f"{store.folder}: {len(x):,} rows fill no batch of {batch:,}; harvest more tokens")
    return x


def opened(folder: Path | None) -> StoredActivations | None:
    return None if folder is None else open_store(folder)
