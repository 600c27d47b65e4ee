"""A few training steps for a dry run: how long they take, and how much memory they need."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..memory import peak, reset_peak
from ..saes import Step, Training

# If a step would take longer than this, smaller batches are tried, and the time of a whole one is extrapolated.
_SECONDS_PER_STEP = 30.0
_SMALL_SHARE, _SMALL_ROWS = 16, 512
# Freed memory is not completely reused: the peak stops growing only after a few steps on different batches.
_LEAST_STEPS, _MOST_STEPS, _SECONDS = 3, 8, 10.0


@dataclass(frozen=True)
class Rehearsal:
    """The time and memory of the steps. Memory is in addition to what the process held before the SAEs were built."""

    seconds_per_step: float
    """Seconds of one step of all SAEs together."""
    steps: int
    """Peak bytes during training."""
    dead: int
    """Peak bytes during training while most features are dead."""
    saving: int
    """Peak bytes while the SAEs are saved."""


@dataclass
class _Tried:
    training: Training
    x: Float[Tensor, "rows d_in"]
    """The activations from which batches are made."""
    target: Float[Tensor, "rows d_out"]
    batches: int = 0
    last: Step | None = None

    @property
    def n(self) -> int:
        """Number of activations in a batch."""
        return self.training.run.batch_size

    @property
    def few(self) -> int:
        """Number of activations in a small batch."""
        return min(self.n, max(self.n // _SMALL_SHARE, _SMALL_ROWS))

    def batch(self, n: int) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
        """Random rows like those of `x` and `target`, different in every step."""
        self.batches += 1
        x = _like(self.x, n, self.batches).to(self.training.sae.device)
        if self.target is self.x:
            return x, x
        return x, _like(self.target, n, self.batches).to(self.training.sae.device)

    def step(self, n: int) -> float:
        """Run a training step on `n` activations. Returns its time in seconds."""
        batch = self.batch(n)
        start = time.perf_counter()
        self.last = step = self.training(*batch)
        self.training.update(step.loss)
        float(step.loss.detach())  # waits for a GPU
        return time.perf_counter() - start

    def find_forest(self) -> None:
        """Do the work that follows the first step after which parents are chosen, if the system has such a step."""
        due = self.training.first_update
        if self.last is not None and due is not None and due <= self.training.run.n_steps:
            self.training.after_step(self.last, due)


def _like(x: Float[Tensor, "rows d"], n: int, seed: int) -> Float[Tensor, "n d"]:
    generator = torch.Generator().manual_seed(seed)
    batch = x[torch.randint(len(x), (n,), generator=generator)].float()
    spread = float(batch.std())
    for part in batch.split(1024):
        part += 0.1 * spread * torch.randn(part.shape, generator=generator)
    return batch


def rehearse(
    trained: Mapping[str, Training],
    x: Float[Tensor, "n d_in"],
    before: int,
    target: Float[Tensor, "n d_out"] | None = None,
) -> Rehearsal:
    """Train all SAEs for a few steps, as their run would, on batches made from a few activations.

    The SAEs are changed and must not be used afterwards.

    before: bytes of memory that the process held before the SAEs were built.
    target: the targets of transcoders.
    """
    reset_peak()
    tried = [_Tried(training, x, x if target is None else target) for training in trained.values()]
    begun = [_begin(one, before) for one in tried]
    whole = [first if first.slow else _measured(one, before) for one, first in zip(tried, begun, strict=True)]
    seconds = sum(found.seconds for found in whole)
    most = max(max(first.beginning for first in begun), max(found.growth for found in whole))
    dead = most
    for one, first in zip(tried, begun, strict=True):
        if not first.slow:
            one.training.steps_since_fired.fill_(one.training.dead_steps)
            dead = max(dead, _measured(one, before, 1, 1).growth)
    reset_peak()
    for one in tried:
        sae = one.training.finish()
        written = {name: t.detach().contiguous().cpu() for name, t in sae.tensors().items()}
        del written
    return Rehearsal(seconds, most, dead, peak() - before)


class _Found(NamedTuple):
    """The time and memory of a step on a whole batch. Memory is the peak minus what was held before."""

    seconds: float
    growth: int
    beginning: int = 0
    """Peak bytes before the first step on a whole batch."""

    @property
    def slow(self) -> bool:
        return self.seconds > _SECONDS_PER_STEP


def _begin(one: _Tried, before: int) -> _Found:
    """Bring an SAE into the state that it soon has in training: with gradients, moments and a forest.

    Returns the time and memory of a whole batch, extrapolated linearly from two small ones.
    """
    batch = one.batch(one.n)
    one.training.initialize(*batch)
    del batch
    one.step(one.few)  # compiles and loads what steps need
    one.find_forest()
    beginning = peak() - before
    found = []
    for n in (one.few, min(2 * one.few, one.n)):
        reset_peak()
        found.append((one.step(n), peak() - before))
    reset_peak()
    one.find_forest()
    (s, m), (s2, m2) = found
    times = max(one.n / one.few - 2, 0)
    work = round(times * max(m2 - m, 0))
    growth = max(beginning, max(m2, peak() - before) + work)
    return _Found(s2 + times * max(s2 - s, s2 / 8), growth, beginning)


def _measured(one: _Tried, before: int, least: int = _LEAST_STEPS, most: int = _MOST_STEPS) -> _Found:
    """The time and memory of a step, measured on whole batches."""
    reset_peak()
    seconds: list[float] = []
    while len(seconds) < least or (len(seconds) < most and sum(seconds) < _SECONDS):
        seconds.append(one.step(one.n))
    one.find_forest()
    return _Found(min(seconds), peak() - before)
