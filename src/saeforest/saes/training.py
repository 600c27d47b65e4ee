"""What trains an SAE: its losses and counters, the optimizer, and a step.

`Training` is for one SAE what all systems share; a system says what a batch's losses are (`forward`) and what follows
from a step (`follow`). A step's forward pass changes nothing: all that it found is in its `Step`, from which
`after_step` brings the counters forward, so that steps may be summed over processes in between.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import InputError
from ..optim import Adam, OptimConfig, learning_rate, resolve_precision
from ..sparse_code import SparseCode
from .base import SAE

#: The papers' schedules are for runs of so many steps (500M tokens of 5,120, or 100M of 1,024); here they are shares.
PAPER_STEPS = 97_657
# After so long a silence a feature is dead: 10M tokens of the papers' 500M, and never in too short a run to tell.
_DEAD_SHARE, _LEAST_DEAD_TOKENS = 1_953 / PAPER_STEPS, 100_000


class RunLength(NamedTuple):
    """How long a run is: what schedules are scaled to."""

    n_steps: int
    batch_size: int

    def steps_for(self, tokens: int) -> int:
        """Whole training steps within `tokens` (10M at 5,120 a step: 1,953)."""
        return max(tokens // self.batch_size, 1)

    def share(self, share: float) -> int:
        """That share of the run's steps, at least one."""
        return max(round(share * self.n_steps), 1)

    def dead_steps(self, tokens: int | None) -> int:
        """Silent steps after which a feature is dead; None: the papers' share of the run.

        The counter is 1 on the step a feature fires: windows of one step would call the living dead.
        """
        if tokens is None:
            return max(2, self.share(_DEAD_SHARE), self.steps_for(_LEAST_DEAD_TOKENS))
        return max(2, self.steps_for(tokens))


@dataclass(frozen=True)
class Setup:
    """How an SAE is trained, whatever its system."""

    run: RunLength
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: torch.dtype | None = None
    """The type in which features are chosen, in place of `optim.precision`."""
    seed: int = 0
    """Random seed for what training draws."""


@dataclass
class Event:
    """What a system did after a step: `log` goes to log.jsonl; `moves` (feature, from, to) to allocations.jsonl."""

    log: dict[str, Any]
    moves: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass
class Step:
    """One training step: tensors, of which `loss` alone carries a graph. Nothing here has waited for the device."""

    loss: Float[Tensor, ""]
    terms: dict[str, list[Tensor | None]]
    """The parts of the loss for the log: a scalar for each layer, None for a layer that has none."""
    code: SparseCode
    x_hat: Float[Tensor, "n d_out"]
    fired: Int[Tensor, "d_sae"]
    """The number of tokens on which each feature fired."""
    n_tokens: int
    events: list[Event] = field(default_factory=list)
    """What was done after the step."""


class NotFinite(InputError):
    """A loss is infinite, or no number at all."""

    def __init__(self, number: int, loss: float, lr: float) -> None:
        self._number, self._loss, self._lr = number, loss, lr
        super().__init__(self.said())

    def said(self, of: str = "") -> str:
        """The message; `of` tells the SAE from others in training."""
        return f"step {self._number}: the loss{of} is {self._loss}; lower optim.lr = {self._lr}"


class Training(nn.Module, ABC):
    """One SAE in training, with all the state that only training needs.

    `state_dict` holds everything but the optimizer's state, which is that of `optimizer`.
    """

    steps_since_fired: Tensor

    def __init__(
        self,
        sae: SAE,
        setup: Setup,
        *,
        dead_after_tokens: int | None,
        rates: Mapping[nn.Parameter, float] | None = None,
    ) -> None:
        """dead_after_tokens: a feature silent for so long is dead. None: the papers' share of the run.

        rates: parameters whose learning rate is a multiple of the run's.
        """
        super().__init__()
        self.sae, self.run, self.optim = sae, setup.run, setup.optim
        self.precision = setup.precision or resolve_precision(setup.optim.precision, sae.device)
        self.done = 0
        """Steps so far."""
        self.dead_steps = self.run.dead_steps(dead_after_tokens)
        # Counts training steps; 1 on a step in which the feature fires.
        silence = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
        self.register_buffer("steps_since_fired", silence)
        self.optimizer = _make_optimizer(sae, self.optim, rates or {})

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.done)

    def set_extra_state(self, state: Tensor) -> None:
        self.done = int(state)

    # -- one step

    def step(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None = None) -> Step:
        """A whole training step on a batch. The first begins with what an SAE learns from its first batch.

        target: what a transcoder reconstructs; by default `x`.
        Raises NotFinite where the loss is, before it reaches the weights.
        """
        if target is not None and not self.sae.is_transcoder:
            raise ValueError("this SAE reconstructs its input; one built with d_out has a target of its own")
        target = x if target is None else target
        number = self.done + 1
        if number == 1:
            self.initialize(x, target)
        step = self(x, target)
        loss = float(step.loss.detach())  # the one wait for the device in a step: a decision depends on it
        if not math.isfinite(loss):
            raise NotFinite(number, loss, self.optim.lr)
        self.update(step.loss)
        step.events = self.after_step(step, number)
        self.done = number
        return step

    @torch.no_grad()
    def initialize(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> None:
        """A trained `b_dec` starts at the first batch's geometric median (docs/spec/tree-sae.md#initialization)."""
        sae = self.sae
        if sae.b_dec.requires_grad:
            target = target.to(sae.decoder.dtype)
            normalizer = sae.target_normalizer or sae.normalizer
            raw = sae.config.b_dec_init == "raw"
            sae.b_dec.copy_(geometric_median(target if raw else normalizer.apply(target)[0]))
        self.begin(x)

    def begin(self, x: Float[Tensor, "n d_in"]) -> None:
        """What a system takes from its first batch beside `b_dec`."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> Step:
        """The losses of a batch. Changes nothing."""

    def update(self, loss: Float[Tensor, ""]) -> None:
        """The optimizer's step."""
        self.optimizer.zero_grad()
        loss.backward()
        rate = learning_rate(self.optim, self.done + 1, self.run.n_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.optimizer.step()

    @torch.no_grad()
    def after_step(self, step: Step, number: int) -> list[Event]:
        """Brings all counters and schedules to where they are after step `number`, counted from 1."""
        self.steps_since_fired = self.silence_after(step.fired)
        return self.follow(step, number)

    def follow(self, step: Step, number: int) -> list[Event]:
        """What a system does after a step, when features have been counted."""
        return []

    @property
    def first_update(self) -> int | None:
        """The first step after which `follow` does work on a large scale; None where it never does."""
        return None

    @torch.no_grad()
    def finish(self) -> SAE:
        """The trained SAE, ready to be saved and used: with unit rows, which the last step left slightly off."""
        self.conclude()
        self.sae.decoder.copy_(F.normalize(self.sae.decoder))
        self.sae.fold_scale()
        return self.sae.eval()

    def conclude(self) -> None:
        """What a system does when training has ended."""

    # -- dead features

    @property
    def dead(self) -> Bool[Tensor, "d_sae"]:
        """Which features have not fired for too long."""
        return self.steps_since_fired >= self.dead_steps

    def silence_after(self, fired: Int[Tensor, "d_sae"]) -> Int[Tensor, "d_sae"]:
        """`steps_since_fired` as it will be after a step."""
        return torch.where(fired > 0, 1, self.steps_since_fired + 1)

    def dead_after(self, fired: Int[Tensor, "d_sae"]) -> Bool[Tensor, "d_sae"]:
        """Which features are dead when a step has been counted."""
        return self.silence_after(fired) >= self.dead_steps

    def fired(self, code: SparseCode) -> Int[Tensor, "d_sae"]:
        """The number of tokens on which each feature fires."""
        return code.fired(self.sae.d_sae, self.sae.config.activation_threshold)


def _make_optimizer(sae: SAE, config: OptimConfig, rates: Mapping[nn.Parameter, float]) -> Adam:
    groups = [
        {
            "params": [p],
            "rate": rates.get(p, 1.0),
            "lr": rates.get(p, 1.0) * config.lr,
            "unit_rows": p is sae.decoder,
            "project": config.project_gradient,
        }
        for p in sae.parameters()
        if p.requires_grad
    ]
    state = torch.bfloat16 if config.state == "bfloat16" else None
    return Adam(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, state=state)


def scalars(terms: Float[Tensor, "L"] | list[Tensor]) -> list[Tensor | None]:
    """The terms of a loss for the log."""
    return [term.detach() for term in (terms if isinstance(terms, list) else terms.unbind())]


@torch.no_grad()
def geometric_median(
    x: Float[Tensor, "n d"], iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, "d"]:
    """The point of least summed distance to all rows, by Weiszfeld's iteration."""
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - median).norm(dim=1).clamp(min=1e-8)
        moved = weights @ x / weights.sum()
        done = (moved - median).norm() < tolerance
        median = moved
        if done:
            break
    return median
