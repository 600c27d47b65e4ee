"""What a run will take, before it starts: sizes, memory, steps and a measured estimate of the time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
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
    n_parameters: dict[str, int]
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

    n_ids = min(len(reader.lm.tokenizer), reader.lm.vocab_size)
    ids = (
        torch.arange(_PROBE_WINDOWS * config.text.context, dtype=torch.int32).view(_PROBE_WINDOWS, -1) % n_ids
    )
    probe = Tokens(ids, torch.zeros(1, dtype=torch.int64), ("probe",))
    reader.read(probe, torch.arange(_PROBE_WINDOWS))
    before = reader.seconds
    x = reader.read(probe, torch.arange(_PROBE_WINDOWS)).x
    lm_per_token = (reader.seconds - before) / ids.numel()
    lm_passes = 0 if harvested else config.epochs if store == "live" else 1

    n_parameters, seconds_per_step = {}, 0.0
    for name, member in config.members().items():
        sae = new_sae(member, d_in, n_steps, reader)
        n_parameters[name] = sum(p.numel() for p in sae.parameters())
        if member.sae.normalize_activations == "dataset_scale":
            scale = math.sqrt(d_in) / float(x.float().norm(dim=1).mean())
            sae.config = replace(sae.config, normalize_activations=scale)  # pyright: ignore[reportArgumentType]
        seconds_per_step += _seconds_per_step(member, sae, x)
    return Estimate(
        config=config,
        device=reader.lm.device,
        d_in=d_in,
        n_parameters=n_parameters,
        n_steps=n_steps,
        store=store,
        bytes_sae=sum(_bytes(m) * n_parameters[name] for name, m in config.members().items()),
        bytes_lm=sum(p.numel() * p.element_size() for p in reader.lm.model.parameters()),
        bytes_activations=0 if store == "live" else n_rows * d_in * reader.lm.dtype.itemsize,
        seconds_lm=lm_per_token * n_rows * lm_passes,
        seconds_sae=seconds_per_step * n_steps,
    )


def _bytes(config: TrainConfig) -> int:
    """Of a parameter: itself and its gradient, in float32, and Adam's two moments."""
    return 2 * 4 + 2 * (2 if config.optim.state == "bfloat16" else 4)


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
        update(optimizer, step.loss, config.optim.lr)
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
        *((f"SAE {name}".strip(), _describe_sae(e, name)) for name in config.members()),
        ("text", f"{config.data}: {config.tokens:,} tokens (if it has so many), {config.epochs} epoch(s)"),
        ("steps", f"{e.n_steps:,} of {config.batch_size:,} activations"),
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


def _describe_sae(e: Estimate, name: str) -> str:
    sae = e.config.members()[name].sae
    sizes, k = list(sae.layer_sizes), list(sae.k_per_layer)
    layers = f"{len(sizes)} layer" + ("s" if len(sizes) > 1 else "")
    return (
        f"{sae.architecture}, {sum(sizes):,} features in {layers} {sizes}, k {k}, "
        f"{e.n_parameters[name] / 1e6:.1f}M parameters"
    )


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def _minutes(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"
