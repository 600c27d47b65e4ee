"""The batches of a whole run, and what is explained while it goes on, in the environment of any library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Watch:
    """Hands out the batches of one run. Between some of them it measures the SAE on other rows, while clocks rest."""

    rows: Tensor
    """The activations to train on, in the order of training."""
    others: Tensor
    """Those to measure on."""
    batch: int
    looks: int
    """How often to measure before the end, at equal numbers of steps."""
    warmup: int
    """Number of steps in which the learning rate rises."""
    dead_steps: int
    """Number of steps after which a feature that has not fired is dead."""
    lr: float | None = None
    """Learning rate. None: the library's own."""
    reconstruct: Callable[[Tensor], Tensor] | None = None
    """What the SAE makes of activations; whoever trains it sets this."""
    found: list[dict[str, Any]] = field(default_factory=list)
    _spent: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _since: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.rows) // self.batch

    def begin(self) -> None:
        """Start the clocks."""
        self._since = [time.perf_counter(), time.process_time()]

    def batches(self) -> Iterator[Tensor]:
        at = {self.steps * look // (self.looks + 1) for look in range(1, self.looks + 1)}
        for step in range(self.steps):
            if step in at:
                self.look(step)
            yield self.rows[step * self.batch : (step + 1) * self.batch].clone()

    @torch.no_grad()
    def look(self, step: int) -> None:
        """Note the time so far, and the fraction of variance explained after `step` steps."""
        now = [time.perf_counter(), time.process_time()]
        self._spent = [spent + b - a for spent, a, b in zip(self._spent, self._since, now, strict=True)]
        assert self.reconstruct is not None
        lost = sum(float((self.reconstruct(x).float() - x).square().sum()) for x in self.others.split(1024))
        fve = 1 - lost / float((self.others - self.others.mean(0)).square().sum())
        clock, processor = self._spent
        self.found.append({"step": step, "clock_s": clock, "processor_s": processor, "fve": fve})
        self.begin()
