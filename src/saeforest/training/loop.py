"""The training loop: it knows no system by name."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations import ActivationStream
from ..config import OptimConfig, TrainConfig
from ..errors import UserError
from ..progress import progress
from ..saes import SAE, Step, save_sae
from ..saes.base import Event
from ..saes.files import SAE_FOLDER
from ..session import within
from .adam import Adam
from .checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from .log import RunLog, describe_step, log_folder, peak_memory_mb

CHECKPOINTS = "checkpoints"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C (or SIGTERM) stopped the training after it had saved a checkpoint."""


def learning_rate(config: OptimConfig, step: int, n_steps: int) -> float:
    """Of step `step` (counted from 1): linear warm-up, constant, then the decay to 0 at the end of the run."""
    done = step / n_steps
    rate = config.lr
    if done < config.warmup:
        rate *= done / config.warmup
    if config.decay != "none" and done > config.decay_from:
        part = (done - config.decay_from) / max(1 - config.decay_from, 1e-12)
        rate *= 1 - part if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * part))
    return rate


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


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM has come. The second one stops at once."""
    stopped = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True
        # Not print: the signal may come in the middle of one.
        os.write(2, b"\nfinishing this step and saving it; again to stop at once\n")

    try:
        old = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: a caller's signals are the caller's
        old = {}
    try:
        yield lambda: stopped
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


@dataclass
class Trainee:
    """One SAE in training: its optimiser, its log, and the time its steps take."""

    name: str
    config: TrainConfig
    sae: SAE
    optimizer: Adam
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
            of = f" of {self.name}" if self.name else ""
            raise UserError(f"step {step}: the loss{of} is {loss}; lower optim.lr = {optim.lr}")
        update(self.optimizer, done.loss, learning_rate(optim, step, n_steps))
        events = self.sae.after_step(step, loss)
        self.seconds += time.perf_counter() - begin
        return done, events


def train(
    config: TrainConfig,
    saes: Mapping[str, SAE],
    stream: ActivationStream,
    n_steps: int,
    out: Path,
    *,
    fingerprint: str = "",
    lm_seconds: Callable[[], float] = lambda: 0.0,
) -> None:
    """Trains the SAEs of `config.members()` to step `n_steps`, on the same batches, and saves each in `out`.

    Goes on from the latest checkpoint in `out` if there is one. `lm_seconds` tells how long the language model has
    run so far, so that the log can say where the time went.

    Raises Interrupted after Ctrl-C, with a checkpoint saved; UserError where a loss stops being finite.
    """
    trainees = [
        Trainee(name, member, saes[name], make_optimizer(saes[name], member.optim))
        for name, member in config.members().items()
    ]
    trained = {t.name: (t.sae, t.optimizer) for t in trainees}
    batch_size, device = stream.batch_size, trainees[0].sae.device
    start = 0
    if checkpoint := latest_checkpoint(out / CHECKPOINTS):
        start = load_checkpoint(checkpoint, trained, stream, fingerprint, n_steps)
    logs = [RunLog(log_folder(out, t.name), resume_at=start) for t in trainees]
    if start == 0 and (harvest := lm_seconds()):
        for log in logs:
            log.step({"event": "harvest", "step": 0, "seconds": {"lm": round(harvest, 3)}} | stream.harvest)
    clock = _Clock(stream, lm_seconds, trainees)
    saved_at = time.monotonic()

    with (
        closing(stream),
        _stop_signals() as stopped,
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

            due = 0 < config.checkpoint_minutes * 60 < time.monotonic() - saved_at
            if stopped() or due or step == n_steps:
                save_checkpoint(out / CHECKPOINTS, step, trained, stream, fingerprint)
                saved_at = time.monotonic()
            if stopped() and step < n_steps:
                raise Interrupted(
                    f"stopped after step {step:,} of {n_steps:,}; a checkpoint is saved in {out}"
                )
        for trainee in trainees:
            trainee.sae.finish()
            save_sae(trainee.sae, within(out / SAE_FOLDER, trainee.name))
        shutil.rmtree(out / CHECKPOINTS)


def fit(sae: SAE, stream: ActivationStream, optim: OptimConfig, n_steps: int) -> Iterator[Step]:
    """Trains one SAE without a folder or a log, for toys and tests: a step each time the next is asked for."""
    trainee = Trainee("", TrainConfig(optim=optim), sae, make_optimizer(sae, optim))
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
