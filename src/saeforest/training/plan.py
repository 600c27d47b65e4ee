"""What a run will take, before it starts: sizes, memory, steps and a measured estimate of the time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from ..activations import open_store
from ..activations.sources import is_store
from ..config import TrainConfig, resolve
from ..saes import SAE
from ..session import open_reader, read_tokens
from ..text import Tokens
from .data import as_harvested, choose_store
from .loop import make_optimizer, update
from .run import count_steps, new_sae

_PROBE_WINDOWS, _PROBE_STEPS = 16, 3


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds a run is expected to take."""

    config: TrainConfig
    device: torch.device
    d_in: int
    d_sae: int
    n_parameters: int
    n_steps: int
    store: str
    bytes_sae: int
    bytes_lm: int
    bytes_activations: int
    seconds_lm: float
    seconds_sae: float


def estimate(config: TrainConfig) -> Estimate:
    """Times a little of the real work on this machine: the language model on a few windows, and a few SAE steps.

    Raises UserError where the model, the site or the text is not to be had, as the run itself would.
    """
    config = as_harvested(resolve(config))
    reader = open_reader(config)
    d_in = reader.lm.site_width(reader.site)
    harvested = is_store(Path(config.data))
    if harvested:
        n_rows = open_store(Path(config.data)).n_rows
        store = "harvested"
    else:
        read_tokens(config, reader, "train", config.text.context)
        n_rows = config.tokens // config.text.context * config.text.context
        store = choose_store(config, n_rows, d_in, reader.lm.dtype.itemsize)
    n_steps = count_steps(config, n_rows)

    n_ids = len(reader.lm.tokenizer)
    ids = (
        torch.arange(_PROBE_WINDOWS * config.text.context, dtype=torch.int32).view(_PROBE_WINDOWS, -1) % n_ids
    )
    probe = Tokens(ids, torch.zeros(1, dtype=torch.int64), ("probe",))
    reader.read(probe, torch.arange(_PROBE_WINDOWS))
    before = reader.seconds
    x = reader.read(probe, torch.arange(_PROBE_WINDOWS)).x
    lm_per_token = (reader.seconds - before) / ids.numel()
    lm_passes = 0 if harvested else config.epochs if store == "live" else 1

    sae = new_sae(config, d_in, n_steps, reader)
    n_parameters = sum(p.numel() for p in sae.parameters())
    return Estimate(
        config=config,
        device=reader.lm.device,
        d_in=d_in,
        d_sae=sae.d_sae,
        n_parameters=n_parameters,
        n_steps=n_steps,
        store=store,
        bytes_sae=4 * 4 * n_parameters,  # weights, gradients and Adam's two moments, float32
        bytes_lm=sum(p.numel() * p.element_size() for p in reader.lm.model.parameters()),
        bytes_activations=0 if store == "live" else n_rows * d_in * reader.lm.dtype.itemsize,
        seconds_lm=lm_per_token * n_rows * lm_passes,
        seconds_sae=_seconds_per_step(config, sae, x) * n_steps,
    )


def _seconds_per_step(config: TrainConfig, sae: SAE, x: torch.Tensor) -> float:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(x), (config.optim.batch_size,), generator=generator)
    batch = x[rows].float()
    batch += 0.1 * batch.std() * torch.randn(batch.shape, generator=generator)
    batch = batch.to(sae.device)
    sae.initialize(batch)
    optimizer = make_optimizer(sae, config.optim)
    seconds = []
    for _ in range(_PROBE_STEPS):
        start = time.perf_counter()
        step = sae.training_step(batch)
        update(sae, optimizer, step.loss, config.optim.lr)
        float(step.loss.detach())  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def describe(e: Estimate) -> Table:
    """The estimate as a table for the terminal."""
    config = e.config
    table = Table(title="What this run will take", title_justify="left", show_header=False, box=None)
    device = "this machine's" if e.device.type == "cpu" else "the GPU's"
    rows = [
        ("model, site", f"{config.model}, {config.site} (width {e.d_in})"),
        (
            "SAE",
            f"{config.sae.architecture}, {e.d_sae:,} features in {len(config.sae.layer_sizes)} layers "
            f"{list(config.sae.layer_sizes)}, k {list(config.sae.k_per_layer)}, {e.n_parameters / 1e6:.1f}M parameters",
        ),
        ("text", f"{config.data}: {config.tokens:,} tokens (if it has so many), {config.epochs} epoch(s)"),
        ("steps", f"{e.n_steps:,} of {config.optim.batch_size:,} activations"),
        (
            "memory",
            f"SAE with gradients and optimiser {_size(e.bytes_sae)}, language model {_size(e.bytes_lm)}, "
            f"activations {_size(e.bytes_activations)} ({e.store})",
        ),
        (
            "time",
            f"language model {_minutes(e.seconds_lm)}, SAE {_minutes(e.seconds_sae)} "
            f"(from a few steps at {device} present speed, no dead features)",
        ),
        (
            "precision",
            f"language model {config.lm.dtype}, dense encode {config.optim.precision}; on {e.device}",
        ),
    ]
    for name, text in rows:
        table.add_row(name, text)
    return table


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def _minutes(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"
