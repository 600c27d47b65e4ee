"""The training loop: it knows no system by name."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations import ActivationStream
from ..config import TrainConfig
from ..errors import UserError
from ..optim import Adam, OptimConfig, learning_rate
from ..output import note
from ..progress import progress
from ..run_folder import RunFolder
from ..saes import SAE, Step, save_sae
from ..saes.base import Event
from ..stopping import stopping
from .checkpoint import SINGLE, latest_checkpoint, load_checkpoint, save_checkpoint
from .log import RunLog, describe_step, peak_memory_mb


def make_optimizer(sae: SAE, config: OptimConfig) -> Adam:
    rates, unit_rows = sae.rates(), sae.unit_rows
    groups = [
        {
            "params": [p],
            "rate": rates.get(p, 1.0),
            "lr": rates.get(p, 1.0) * config.lr,
            "unit_rows": p is unit_rows,
            "project": config.project_gradient,
        }
        for p in sae.parameters()
        if p.requires_grad
    ]
    state = torch.bfloat16 if config.state == "bfloat16" else None
    return Adam(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, state=state)


@dataclass
class Trainee:
    """One SAE in training: its optimiser, its log, and the time its steps take."""

    name: str
    config: TrainConfig
    sae: SAE
    optimizer: Adam
    of: str = ""
    """How messages tell it from the others of a run."""
    seconds: float = 0.0

    def step(self, x: Float[Tensor, "n d_in"], step: int, n_steps: int) -> tuple[Step, list[Event]]:
        """One training step. Raises UserError where the loss stops being finite."""
        begin = time.perf_counter()
        optim = self.config.optim
        if step == 1:
            self.sae.initialize(x)
        done = self.sae.training_step(x)
        loss = float(done.loss.detach())
        if not math.isfinite(loss):
            raise UserError(f"step {step}: the loss{self.of} is {loss}; lower optim.lr = {optim.lr}")
        update(self.optimizer, done.loss, learning_rate(optim, step, n_steps))
        events = self.sae.after_step(step, loss)
        self.seconds += time.perf_counter() - begin
        return done, events


def train(
    config: TrainConfig,
    saes: Mapping[str, SAE],
    stream: ActivationStream,
    n_steps: int,
    run: RunFolder,
    *,
    fingerprint: str = "",
    about: Mapping[str, Any] | None = None,
    lm_seconds: Callable[[], float] = lambda: 0.0,
) -> None:
    """Trains the SAEs of `config.members()` to step `n_steps`, on the same batches, and saves each in the run.

    Goes on from the latest checkpoint in it if there is one. `fingerprint` and `about` are kept in checkpoints (see
    `save_checkpoint`). `lm_seconds` tells how long the language model has run so far, so that the log can say where the
    time went. A checkpoint that the disk has no room for is left out, and a line says so.

    Raises Interrupted when a signal asks to stop, with a checkpoint saved; UserError where a loss stops being finite;
    OSError where the logs, the SAE, or the checkpoint before stopping cannot be written.
    """
    trainees = [
        Trainee(
            name,
            member,
            saes[name],
            make_optimizer(saes[name], member.optim),
            f" of {name}" if config.saes else "",
        )
        for name, member in config.members().items()
    ]
    trained = {t.name if config.saes else SINGLE: (t.sae, t.optimizer) for t in trainees}
    batch_size, device = stream.batch_size, trainees[0].sae.device
    start = 0
    if checkpoint := latest_checkpoint(run.checkpoints):
        start = load_checkpoint(checkpoint, trained, stream, fingerprint, n_steps)
    logs = [RunLog(run.logs(t.name), resume_at=start) for t in trainees]
    if start == 0 and (harvest := lm_seconds()):
        for log in logs:
            log.step({"event": "harvest", "step": 0, "seconds": {"lm": round(harvest, 3)}} | stream.harvest)
    clock = _Clock(stream, lm_seconds, trainees)
    saved_at = time.monotonic()

    def save(step: int) -> None:
        for log in logs:
            log.sync()
        save_checkpoint(run.checkpoints, step, trained, stream, fingerprint, about)

    with (
        closing(stream),
        stopping("it") as stopped,
        progress("train", n_steps * batch_size, before=start * batch_size) as advance,
    ):
        for step in range(start + 1, n_steps + 1):
            x = stream.next().x.to(device).float()
            logged = step % config.log_every == 0 or step in (1, n_steps)
            clock.steps += 1
            losses, lines = [], []
            for trainee, log in zip(trainees, logs, strict=True):
                done, events = trainee.step(x, step, n_steps)
                for event in events:
                    log.event(event)
                losses.append(f"{float(done.loss.detach()):.4f}")
                if logged:
                    lines.append(describe_step(trainee.sae, x, done))
            for trainee, log, line, lap in zip(
                trainees, logs, lines, clock.lap() if logged else [], strict=False
            ):
                rate = learning_rate(trainee.config.optim, step, n_steps)
                log.step({"step": step, "tokens": step * batch_size, "lr": rate} | line | lap)
            advance(batch_size, "loss " + " ".join(losses[:4]) + (" ..." if len(losses) > 4 else ""))

            if stopped() and step < n_steps:
                save(step)
                raise stopped.interrupted(
                    f"stopped after step {step:,} of {n_steps:,}; a checkpoint is saved in {run}"
                )
            due = 0 < config.checkpoint_minutes * 60 < time.monotonic() - saved_at
            if due or step == n_steps:
                try:
                    save(step)
                except OSError as error:
                    note(
                        f"step {step:,}: no checkpoint: {error.filename}: {os.strerror(error.errno or 0)}; going on"
                    )
                saved_at = time.monotonic()
        for log in logs:
            log.finish(n_steps)
        for trainee in trainees:
            trainee.sae.finish()
            save_sae(trainee.sae, run.sae(trainee.name))
        shutil.rmtree(run.checkpoints, ignore_errors=True)


def fit(sae: SAE, stream: ActivationStream, optim: OptimConfig, n_steps: int) -> Iterator[Step]:
    """Trains one SAE without a folder or a log, for toys and tests: a step each time the next is asked for."""
    trainee = Trainee(sae.config.architecture, TrainConfig(optim=optim), sae, make_optimizer(sae, optim))
    for step in range(1, n_steps + 1):
        yield trainee.step(stream.next().x.to(sae.device).float(), step, n_steps)[0]


def update(optimizer: Adam, loss: Tensor, rate: float) -> None:
    """One optimiser step on the loss of a training step."""
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    optimizer.step()


class _Clock:
    """Where the time between two logged steps went: that of the language model, of the data, and of each SAE.

    `data` is what the training waited for data other than the language model. Where the language model reads in the
    background, its time runs beside that of the SAEs, and the waiting may be less than it: then `data` is 0.
    """

    def __init__(
        self, stream: ActivationStream, lm_seconds: Callable[[], float], trainees: list[Trainee]
    ) -> None:
        self._stream, self._lm_seconds, self._trainees = stream, lm_seconds, trainees
        self.steps = 0
        self._mark = self._now()

    def _now(self) -> list[float]:
        run = [time.perf_counter(), self._stream.seconds, self._lm_seconds()]
        return run + [t.seconds for t in self._trainees]

    def lap(self) -> list[dict[str, Any]]:
        """What to log of each SAE."""
        now = self._now()
        total, fetch, lm, *saes = (b - a for a, b in zip(self._mark, now, strict=True))
        tokens_per_s = round(self.steps * self._stream.batch_size / max(total, 1e-9), 1)
        memory = round(peak_memory_mb(), 1)
        self._mark, self.steps = now, 0
        return [
            {
                "tokens_per_s": tokens_per_s,
                "seconds": {"lm": round(lm, 3), "data": round(max(fetch - lm, 0.0), 3), "sae": round(sae, 3)},
                "peak_memory_mb": memory,
            }
            for sae in saes
        ]
