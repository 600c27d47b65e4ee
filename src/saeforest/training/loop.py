"""The training loop: it knows no system by name."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ..activations import ActivationStream
from ..config import OptimConfig, TrainConfig
from ..errors import UserError
from ..progress import progress
from ..saes import SAE, save_sae
from ..saes.files import SAE_FOLDER
from .checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from .log import RunLog, describe_step, peak_memory_mb

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


def make_optimizer(sae: SAE, config: OptimConfig) -> torch.optim.Adam:
    trained = [p for p in sae.parameters() if p.requires_grad]
    betas = (config.beta1, config.beta2)
    return torch.optim.Adam(trained, lr=config.lr, betas=betas, eps=config.eps, fused=True)


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


def train(
    config: TrainConfig,
    sae: SAE,
    stream: ActivationStream,
    n_steps: int,
    out: Path,
    *,
    fingerprint: str = "",
    lm_seconds: Callable[[], float] = lambda: 0.0,
) -> None:
    """Trains to step `n_steps`, from the latest checkpoint in `out` if there is one, and saves the SAE in `out`.

    `lm_seconds` tells how long the language model has run so far, so that the log can say where the time went.

    Raises Interrupted after Ctrl-C, with a checkpoint saved; UserError where the loss stops being finite.
    """
    optimizer = make_optimizer(sae, config.optim)
    start = 0
    if checkpoint := latest_checkpoint(out / CHECKPOINTS):
        start = load_checkpoint(checkpoint, sae, optimizer, stream, fingerprint)
    log = RunLog(out, resume_at=start)
    if start == 0 and (harvest := lm_seconds()):
        log.step({"event": "harvest", "step": 0, "seconds": {"lm": round(harvest, 3)}})
    clock = _Clock(stream, lm_seconds)
    saved_at = time.monotonic()
    batch_size = config.optim.batch_size

    with (
        _stop_signals() as stopped,
        progress("train", n_steps * batch_size, before=start * batch_size) as advance,
    ):
        for step in range(start + 1, n_steps + 1):
            x = stream.next().x.to(sae.device).float()
            if step == 1:
                sae.initialize(x)
            rate = learning_rate(config.optim, step, n_steps)
            out_step = sae.training_step(x)
            loss = float(out_step.loss.detach())
            if not math.isfinite(loss):
                raise UserError(f"step {step}: the loss is {loss}; lower optim.lr = {config.optim.lr}")
            update(sae, optimizer, out_step.loss, rate)
            for event in sae.after_step(step, loss):
                log.event(event)

            clock.steps += 1
            note = f"loss {loss:.4f}"
            if step % config.log_every == 0 or step in (1, n_steps):
                line = {"step": step, "tokens": step * batch_size, "lr": rate}
                line |= describe_step(sae, x, out_step) | clock.lap(batch_size)
                log.step(line)
            advance(batch_size, note)

            due = 0 < config.checkpoint_minutes * 60 < time.monotonic() - saved_at
            if stopped() or due or step == n_steps:
                save_checkpoint(out / CHECKPOINTS, step, sae, optimizer, stream, fingerprint)
                saved_at = time.monotonic()
            if stopped() and step < n_steps:
                raise Interrupted(
                    f"stopped after step {step:,} of {n_steps:,}; a checkpoint is saved in {out}"
                )
        sae.finish()
        save_sae(sae, out / SAE_FOLDER)
        shutil.rmtree(out / CHECKPOINTS)


def update(sae: SAE, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    """One optimiser step on the loss of a training step."""
    optimizer.zero_grad()
    loss.backward()
    sae.before_optimizer()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


class _Clock:
    """Where the time between two logged steps went."""

    def __init__(self, stream: ActivationStream, lm_seconds: Callable[[], float]) -> None:
        self._stream, self._lm_seconds = stream, lm_seconds
        self.steps = 0
        self._mark = self._now()

    def _now(self) -> tuple[float, float, float]:
        return time.perf_counter(), self._stream.seconds, self._lm_seconds()

    def lap(self, batch_size: int) -> dict[str, Any]:
        now = self._now()
        total, fetch, lm = (b - a for a, b in zip(self._mark, now, strict=True))
        line = {
            "tokens_per_s": round(self.steps * batch_size / max(total, 1e-9), 1),
            "seconds": {
                "lm": round(lm, 3),
                "data": round(fetch - lm, 3),
                "sae": round(total - fetch, 3),
            },
            "peak_memory_mb": round(peak_memory_mb(), 1),
        }
        self._mark, self.steps = now, 0
        return line
