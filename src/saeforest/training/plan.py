"""What a run will take, before it starts: sizes, memory, steps and a measured estimate of the time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from rich.table import Table

from ..config import TrainConfig, resolve_precision
from ..saes import SAE
from ..session import open_reader
from ..text import Tokens
from .loop import make_optimizer
from .run import choose_store, count_steps, new_sae

_PROBE_WINDOWS, _PROBE_STEPS = 16, 3


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds a run is expected to take."""

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
    """Times a little of the real work on this machine: the language model on a few windows, and a few SAE steps."""
    reader = open_reader(config)
    d_in = reader.lm.site_width(reader.site)
    n_tokens = config.tokens // config.text.context * config.text.context
    n_steps = count_steps(config, n_tokens)
    store = choose_store(config, n_tokens, d_in, reader.lm.dtype.itemsize)

    ids = torch.randint(len(reader.lm.tokenizer), (_PROBE_WINDOWS, config.text.context), dtype=torch.int32)
    probe = Tokens(ids, torch.zeros(1, dtype=torch.int64), ("probe",))
    reader.read(probe, torch.arange(_PROBE_WINDOWS))
    before = reader.seconds
    x = reader.read(probe, torch.arange(_PROBE_WINDOWS)).x
    lm_per_token = (reader.seconds - before) / ids.numel()
    lm_passes = config.epochs if store == "live" else 1

    sae = new_sae(config, d_in, n_steps, reader)
    n_parameters = sum(p.numel() for p in sae.parameters())
    return Estimate(
        d_in=d_in,
        d_sae=sae.d_sae,
        n_parameters=n_parameters,
        n_steps=n_steps,
        store=store,
        bytes_sae=4 * 4 * n_parameters,  # weights, gradients and Adam's two moments, float32
        bytes_lm=sum(p.numel() * p.element_size() for p in reader.lm.model.parameters()),
        bytes_activations=0 if store == "live" else n_tokens * d_in * reader.lm.dtype.itemsize,
        seconds_lm=lm_per_token * n_tokens * lm_passes,
        seconds_sae=_seconds_per_step(config, sae, x) * n_steps,
    )


def _seconds_per_step(config: TrainConfig, sae: SAE, x: torch.Tensor) -> float:
    rows = torch.randint(len(x), (config.optim.batch_size,))
    batch = x[rows].to(sae.device).float()
    batch += 0.1 * batch.std() * torch.randn_like(batch)
    sae.initialize(batch)
    optimizer = make_optimizer(sae, config.optim)
    seconds = []
    for _ in range(_PROBE_STEPS):
        start = time.perf_counter()
        step = sae.training_step(batch)
        optimizer.zero_grad()
        step.loss.backward()
        sae.before_optimizer()
        optimizer.step()
        float(step.loss.detach())  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def describe(config: TrainConfig, e: Estimate) -> Table:
    """The estimate as a table for the terminal."""
    table = Table(title="What this run will take", title_justify="left", show_header=False, box=None)
    device = "the GPU's" if config.device.startswith("cuda") else "this machine's"
    rows = [
        ("model, site", f"{config.model}, {config.site} (width {e.d_in})"),
        (
            "SAE",
            f"{config.sae.architecture}, {e.d_sae:,} features in {len(config.sae.layer_sizes)} layers "
            f"{list(config.sae.layer_sizes)}, k {list(config.sae.k_per_layer)}, {e.n_parameters / 1e6:.1f}M parameters",
        ),
        ("text", f"{config.data}: {config.tokens:,} tokens, {config.epochs} epoch(s)"),
        ("steps", f"{e.n_steps:,} of {config.optim.batch_size:,} activations"),
        (
            "memory",
            f"SAE {_size(e.bytes_sae)}, language model {_size(e.bytes_lm)}, "
            f"activations {_size(e.bytes_activations)} ({e.store})",
        ),
        (
            "time",
            f"language model {_minutes(e.seconds_lm)}, SAE {_minutes(e.seconds_sae)} "
            f"(from a few steps at {device} present speed, no dead features)",
        ),
        ("precision", f"dense encode {resolve_precision(config.optim.precision, torch.device('cpu'))}"),
    ]
    for name, text in rows:
        table.add_row(name, text)
    return table


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def _minutes(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"
