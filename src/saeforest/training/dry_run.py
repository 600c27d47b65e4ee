"""A dry run: the sizes, memory, steps and time of a run, estimated from a few steps before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from rich.table import Table

from ..activations import ActivationBatch, ActivationReader
from ..activations.reader import concatenated
from ..activations.sources import BLOCK_ROWS, LIVE_ROWS, SHARDS_MIXED
from ..activations.writer import SHARD_ROWS
from ..config import TrainConfig, resolve_device
from ..errors import InputError
from ..memory import available, give_back, on_gpu, peak, reset_peak, resident, size
from ..saes.systems import SYSTEMS
from ..session import read_tokens
from ..text import Tokens
from .data import StoredSource, TextSource, open_source
from .rehearsal import Rehearsal, rehearse
from .run import count_steps, new_training
from .settle import settle, settle_scale, settle_store

_PROBE_WINDOWS = 16
_PROBE_ROWS = 2048


@dataclass(frozen=True)
class PeakMemory:
    """The peak memory of a run, in bytes, and what it consists of during training."""

    peak: int
    """Peak of the whole run, in the memory of the CPU."""
    base: int
    """Memory of the libraries, the language model and the text."""
    activations: int
    """Memory of the activations that are kept for training."""
    state: int
    """Memory of the SAEs with their gradients and the optimizer's moments."""
    dead: int
    """Peak if most features were dead."""
    lower: str
    """The setting to lower if the peak is too high."""
    measured: bool
    """Whether training steps were tried. They are not if not even the state fits in memory."""
    gpu: int = 0
    """Peak memory that PyTorch reserved on the GPU."""


@dataclass(frozen=True)
class RunEstimate:
    """The bytes and seconds that a run is expected to take."""

    config: TrainConfig
    device: torch.device
    d_in: int
    n_parameters: dict[str, int]
    n_steps: int
    store: str
    bytes_sae: int
    bytes_lm: int
    bytes_activations: int
    memory: PeakMemory
    seconds_lm: float
    seconds_sae: float | None
    """Seconds of training; None if no step could be tried."""


def estimate(config: TrainConfig) -> RunEstimate:
    """Estimate a run by a small part of its work: the language model on a few windows, and a few training steps.

    Raises InputError for anything wrong with the model, the site or the text, as the run itself would.
    """
    config = settle(config)
    source = open_source(config)
    d_in, device = source.d_in, resolve_device(config.device)
    width = d_in + (source.d_out or 0)
    match source:
        case StoredSource():
            first, n_rows, store = source.sample(_PROBE_ROWS), source.n_rows, "harvested"
            seconds_lm, reading, bytes_lm = 0.0, 0, 0
        case TextSource(reader=reader):
            n_probe = max(_PROBE_WINDOWS, reader.batch_size)
            tokens = read_tokens(config, reader, "train", min(n_probe * config.text.context, config.tokens))
            n_rows = config.tokens // config.text.context * config.text.context
            store = settle_store(config, n_rows, width, reader.lm.dtype.itemsize).activations.store
            held = resident()
            reset_peak()
            first, lm_per_token = _activations(reader, tokens, n_probe)
            reading = peak() - held
            seconds_lm = lm_per_token * n_rows * (config.epochs if store == "live" else 1)
            bytes_lm = sum(p.numel() * p.element_size() for p in reader.lm.model.parameters())
    give_back()
    n_steps = count_steps(config, n_rows)

    members = config.members()
    n_parameters = {name: _n_parameters(member, d_in, source.d_out) for name, member in members.items()}
    bytes_sae = sum(_bytes(member) * n_parameters[name] for name, member in members.items())
    row = width * first.x.element_size() + 8  # an activation, and its position in the text
    base, waiting = resident(), _Waiting(store, n_rows, row, device)
    tried = None
    if device.type != "cpu" or bytes_sae + waiting.held < available():
        trained, bytes_sae = {}, 0
        for name, member in members.items():
            member = settle_scale(member, lambda: first)
            training = trained[name] = new_training(member, d_in, n_steps, source.model, source.d_out)
            n_parameters[name] = sum(p.numel() for p in training.sae.parameters())
            # Not every system trains all rows of its SAE: an H-SAE trains factors of them.
            n_trained = sum(p.numel() for group in training.optimizer.param_groups for p in group["params"])
            n_all = sum(p.numel() for p in training.parameters())
            bytes_sae += _bytes(member) * n_trained + 4 * (n_all - n_trained)
        target = None if config.target is None else first.others[config.target]
        tried = rehearse(trained, first.x, base, target)
    return RunEstimate(
        config=config,
        device=device,
        d_in=d_in,
        n_parameters=n_parameters,
        n_steps=n_steps,
        store=store,
        bytes_sae=bytes_sae,
        bytes_lm=bytes_lm,
        bytes_activations=0 if store == "live" else n_rows * width * first.x.element_size(),
        memory=_peak_memory(base, reading, waiting, bytes_sae, bytes_lm, tried, device),
        seconds_lm=seconds_lm,
        seconds_sae=None if tried is None else tried.seconds_per_step * n_steps,
    )


@dataclass(frozen=True)
class _Waiting:
    """The memory for activations before they are trained on."""

    store: str
    n_rows: int
    row: int
    """Bytes of one activation."""
    device: torch.device

    @property
    def held(self) -> int:
        """Bytes during a training step: all activations, or the current block and the one being read."""
        match self.store:
            case "memory":
                return (self.n_rows + min(self.n_rows, BLOCK_ROWS)) * self.row
            case "live":
                return (1 if self.device.type == "cpu" else 3) * self._live
            case _:
                return 3 * min(self.n_rows, SHARDS_MIXED * SHARD_ROWS) * self.row

    @property
    def harvesting(self) -> int:
        """Bytes while activations are harvested, before training."""
        shards = 2 * min(self.n_rows, SHARD_ROWS) * self.row
        match self.store:
            case "memory":
                return self.n_rows * self.row + shards
            case "disk":
                return shards
            case _:
                return 0

    @property
    def between(self) -> int:
        """Bytes while the next block is read from the language model between training steps."""
        return 2 * self._live if self.store == "live" else 0

    @property
    def _live(self) -> int:
        return min(self.n_rows, LIVE_ROWS) * self.row


def _peak_memory(
    base: int,
    reading: int,
    waiting: _Waiting,
    state: int,
    lm: int,
    tried: Rehearsal | None,
    device: torch.device,
) -> PeakMemory:
    cuda = device.type == "cuda"
    own = 0 if cuda else state  # the part of the SAEs' memory that is on the CPU
    steps, dead, saving = (tried.steps, tried.dead, tried.saving) if tried else (own, own, own)
    harvest = base + reading + waiting.harvesting
    training = base + max(waiting.held + max(steps, saving), own + reading + waiting.between)
    highest = max(harvest, training)
    by_size = {
        _lower_activations(waiting.store): max(waiting.held, waiting.between),
        "sae.layer_sizes": own,
        "optim.batch_size or sae.layer_sizes": steps - own,
        "lm.dtype to bfloat16, or choose a smaller model": 0 if cuda else lm,
        "lm.batch_size or text.context": reading if harvest > training else 0,
    }
    return PeakMemory(
        peak=highest,
        base=base,
        activations=waiting.held,
        state=state,
        dead=max(highest, base + waiting.held + dead),
        lower=max(by_size, key=by_size.__getitem__),
        measured=tried is not None,
        gpu=on_gpu() if cuda else 0,
    )


def _lower_activations(store: str) -> str:
    match store:
        case "harvested":
            return "the number of harvested activations"
        case "live":
            return "tokens"
        case _:
            return "tokens, or set activations.store to live"


def _n_parameters(config: TrainConfig, d_in: int, d_out: int | None) -> int:
    """The number of parameters of an SAE, without building it, except those that do not grow with the dictionary."""
    shapes = SYSTEMS[config.sae.architecture].tensor_shapes(d_in, sum(config.sae.layer_sizes), d_out)
    return sum(math.prod(shape) for name, shape in shapes.items() if name != "parent")


def _bytes(config: TrainConfig) -> int:
    """Bytes for each parameter: itself, its gradient in float32, and Adam's two moments. Gradients of active rows
    alone do not grow with the dictionary; they are among the working memory."""
    gradient = 0 if config.optim.rows == "active" else 4
    weight, moment = (getattr(torch, name).itemsize for name in (config.optim.weights, config.optim.state))
    return weight + gradient + 2 * moment


def _activations(reader: ActivationReader, tokens: Tokens, n_windows: int) -> tuple[ActivationBatch, float]:
    """The first activations, read as in the run, and the seconds per token."""
    windows = torch.arange(min(n_windows, len(tokens.ids)))
    reader.read(tokens, windows[: min(_PROBE_WINDOWS, reader.batch_size)])
    before = reader.seconds
    x = concatenated([batch for batch, _ in reader.batches(tokens, windows)])
    if not len(x):
        raise InputError("no activations: every position of the text is excluded; give longer text")
    return x, (reader.seconds - before) / (len(windows) * tokens.context)


def describe(e: RunEstimate) -> Table:
    """The estimate as a table for the terminal."""
    config = e.config
    table = Table(title="Estimate for this run", title_justify="left", show_header=False, box=None)
    device = "this machine's" if e.device.type == "cpu" else "the GPU's"
    rows = [
        ("model, site", f"{config.model}, {config.site} (width {e.d_in})"),
        *([] if config.target is None else [("target", config.target)]),
        *((f"SAE {name}" if config.saes else "SAE", _describe_sae(e, name)) for name in config.members()),
        ("text", f"{config.data}: at most {config.tokens:,} tokens, {config.epochs} epoch(s)"),
        ("steps", f"{e.n_steps:,} of {config.batch_size:,} activations"),
        (
            "sizes",
            f"SAE with gradients and optimizer {size(e.bytes_sae)}, language model {size(e.bytes_lm)}, "
            f"activations {size(e.bytes_activations)} ({e.store})",
        ),
        ("peak memory", _describe_memory(e.memory)),
        (
            "time",
            f"language model {_minutes(e.seconds_lm)}, SAE {_minutes(e.seconds_sae)} "
            f"(from a few steps at {device} current speed, without dead features)",
        ),
        (
            "precision",
            f"language model {config.lm.dtype}, dense encode {config.optim.precision}; on {e.device}",
        ),
    ]
    for name, text in rows:
        table.add_row(name, text)
    return table


def _describe_sae(e: RunEstimate, name: str) -> str:
    sae = e.config.members()[name].sae
    sizes, k = list(sae.layer_sizes), list(sae.k_per_layer)
    layers = f"{len(sizes)} layer" + ("s" if len(sizes) > 1 else "")
    return (
        f"{sae.architecture}, {sum(sizes):,} features in {layers} {sizes}, k {k}, "
        f"{e.n_parameters[name] / 1e6:.1f}M parameters"
    )


def _describe_memory(m: PeakMemory) -> str:
    work = m.peak - m.base - m.activations - (0 if m.gpu else m.state)
    parts = {
        "libraries, language model and text": m.base,
        "activations": m.activations,
        **({} if m.gpu else {"SAE with gradients and optimizer": m.state}),
        "working memory": max(work, 0),
    }
    text = f"{size(m.peak)}: " + ", ".join(f"{name} {size(n)}" for name, n in parts.items())
    if not m.measured:
        text += " (or more: there is not enough memory to try a step)"
    elif m.dead > 1.05 * m.peak:
        text += f"; up to {size(m.dead)} while most features are dead"
    text += f"; another {size(available())} are available"
    return text + (f"; on the GPU {size(m.gpu)} and its own context" if m.gpu else "")


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"
