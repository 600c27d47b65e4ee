"""The training of one SAE: losses, counters, the optimizer, and a training step.

`Training` holds what all systems share. A system defines the losses of a batch (`forward`) and what happens after a
step other than the gradient update (`follow`). The forward pass changes no state: everything it found is in its
`Step`, from which `after_step` updates the counters. Between the two, steps may be summed over processes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import gradient_by_rows
from ..optim import Adam, OptimConfig, learning_rate, resolve_precision
from ..sparse_code import SparseCode
from .base import SAE

#: Number of steps in the papers' runs (500M tokens in batches of 5,120, or 100M in batches of 1,024). Their schedules
#: are scaled to the length of other runs.
PAPER_STEPS = 97_657
# A feature is dead if it has not fired within this fraction of the run (10M of the papers' 500M tokens), and at least
# this many tokens, because a shorter run cannot tell rare features from dead ones.
_DEAD_SHARE, _LEAST_DEAD_TOKENS = 1_953 / PAPER_STEPS, 100_000
# The systems that can keep their weights in bfloat16 while they are trained.
_FEW_BITS = ("topk", "tree")


class RunLength(NamedTuple):
    """The length of a training run, to which schedules are scaled."""

    n_steps: int
    batch_size: int

    def steps_for(self, tokens: int) -> int:
        """The number of whole training steps in `tokens` tokens, at least 1 (10M tokens at 5,120 per step: 1,953)."""
        return max(tokens // self.batch_size, 1)

    def share(self, share: float) -> int:
        """The number of steps in this fraction of the run, at least 1."""
        return max(round(share * self.n_steps), 1)

    def dead_steps(self, tokens: int | None) -> int:
        """The number of steps without firing after which a feature is dead, at least 2.

        tokens: the same as a number of tokens. None: the papers' fraction of the run.
        """
        # The counter is 1 on a step in which the feature fires, so with 1 every feature would be dead.
        if tokens is None:
            return max(2, self.share(_DEAD_SHARE), self.steps_for(_LEAST_DEAD_TOKENS))
        return max(2, self.steps_for(tokens))


def starts_without_edges(config: object) -> bool:
    """Whether training with this configuration starts with a gate, but without parents, and finds them later."""
    return getattr(config, "starts_without_edges", False)


@dataclass(frozen=True)
class Setup:
    """The settings of a training that do not depend on the system."""

    run: RunLength
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: torch.dtype | None = None
    """Data type in which features are selected. None: the one that `optim.precision` names."""
    seed: int = 0
    """Random seed for training."""


@dataclass
class Event:
    """Something a system did after a step, such as moving features to other parents.

    log: its line in log.jsonl.
    moves: (feature, old parent, new parent) for allocations.jsonl.
    """

    log: dict[str, Any]
    moves: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass
class Step:
    """The results of one training step, as tensors on the device. Only `loss` has a gradient graph."""

    loss: Float[Tensor, ""]
    terms: dict[str, list[Tensor | None]]
    """The parts of the loss, for the log: one scalar for each layer, None for a layer without this part."""
    code: SparseCode
    x_hat: Float[Tensor, "n d_out"]
    fired: Int[Tensor, "d_sae"]
    """The number of tokens on which each feature fired."""
    n_tokens: int
    events: list[Event] = field(default_factory=list)
    """What the system did after the step."""
    least: Float[Tensor, "b"] | None = None
    """The smallest score that each budget shared by the batch selected, infinite where it selected nothing. None: the
    system has no such budget, or finds it in `code`."""


class NotFinite(InputError):
    """A loss is infinite or NaN."""

    def __init__(self, number: int, loss: float, lr: float) -> None:
        self._number, self._loss, self._lr = number, loss, lr
        super().__init__(self.said())

    def said(self, of: str = "") -> str:
        """The message; `of` names the SAE if several are trained."""
        return f"step {self._number}: the loss{of} is {self._loss}; lower optim.lr = {self._lr}"


class Training(nn.Module, ABC):
    """One SAE in training, with all the state that only training needs.

    `state_dict` holds everything except the state of the optimizer, which `optimizer.state_dict` holds.
    """

    steps_since_fired: Tensor

    def __init__(
        self,
        sae: SAE,
        setup: Setup,
        *,
        dead_after_tokens: int | None,
        rates: Mapping[nn.Parameter, float] | None = None,
        weights: Sequence[nn.Parameter] | None = None,
        unit_rows: nn.Parameter | None = None,
    ) -> None:
        """dead_after_tokens: number of tokens without firing after which a feature is dead. None: the papers'
        fraction of the run.
        rates: learning rates of single parameters, as multiples of `optim.lr`.
        weights: the parameters to train. None: all parameters of the SAE that require gradients.
        unit_rows: the parameter whose rows are kept at unit norm. None: the SAE's decoder.
        """
        super().__init__()
        self.sae, self.run, self.optim = sae, setup.run, setup.optim
        self.precision = setup.precision or resolve_precision(setup.optim.precision, sae.device)
        self.done = 0
        """Number of training steps so far."""
        self.dead_steps = self.run.dead_steps(dead_after_tokens)
        # Training steps since each feature fired; 1 if it fired on the last step.
        silence = torch.zeros(sae.d_sae, dtype=torch.int64, device=sae.device)
        self.register_buffer("steps_since_fired", silence)
        if self.optim.weights != "float32":
            check_weights(sae.config.architecture, self.optim)
            for weight in (sae.encoder, sae.decoder):
                weight.data = weight.data.to(getattr(torch, self.optim.weights))
                weight.grad_dtype = torch.float32
        trained = [p for p in sae.parameters() if p.requires_grad] if weights is None else weights
        unit = sae.decoder if unit_rows is None else unit_rows
        self.optimizer = _make_optimizer(trained, self.optim, rates or {}, unit)

    def get_extra_state(self) -> Tensor:
        """The number of steps so far, for `state_dict`."""
        return torch.tensor(self.done)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of steps from `state_dict`."""
        self.done = int(state)

    @property
    def at_rest(self) -> bool:
        """Whether the weights are those after `done` steps: not so within a step, once the optimizer has run."""
        states = self.optimizer.state.values()
        return all(int(state["step"]) == self.done for state in states)

    # -- one step

    def step(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None = None) -> Step:
        """Run a whole training step on a batch. The first step also initializes the SAE from the batch.

        target: what a transcoder reconstructs; by default `x`.
        Raises NotFinite if the loss is infinite or NaN; the weights are then unchanged.
        """
        if target is not None and not self.sae.is_transcoder:
            raise InputError(
                "target: this SAE reconstructs its input; only an SAE built with d_out (a transcoder) has a target"
            )
        target = x if target is None else target
        number = self.done + 1
        if number == 1:
            self.initialize(x, target)
        step = self(x, target)
        loss = float(
            step.loss.detach()
        )  # the only wait for the device in a step, for the decision that follows
        if not math.isfinite(loss):
            raise NotFinite(number, loss, self.optim.lr)
        self.update(step.loss)
        step.events = self.after_step(step, number)
        self.done = number
        return step

    @torch.no_grad()
    def initialize(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> None:
        """Initialize the SAE from its first batch.

        A trained `b_dec` starts at the geometric median (docs/spec/tree-sae.md#initialization).
        """
        sae = self.sae
        if sae.b_dec.requires_grad:
            target = target.to(sae.dtype)
            normalizer = sae.target_normalizer or sae.normalizer
            raw = sae.config.b_dec_init == "raw"
            sae.b_dec.copy_(geometric_median(target if raw else normalizer.apply(target)[0]))
        self.begin(x)

    def begin(self, x: Float[Tensor, "n d_in"]) -> None:
        """Initialize what else a system takes from its first batch."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> Step:
        """The losses of a batch. Changes no state."""

    def update(self, loss: Float[Tensor, ""]) -> None:
        """Update the weights by one step of the optimizer."""
        self.optimizer.zero_grad()
        loss.backward()
        rate = learning_rate(self.optim, self.done + 1, self.run.n_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.optimizer.step()

    @torch.no_grad()
    def after_step(self, step: Step, number: int) -> list[Event]:
        """Update all counters and schedules after step `number`, counted from 1."""
        self.steps_since_fired = self.silence_after(step.fired)
        return self.follow(step, number)

    def follow(self, step: Step, number: int) -> list[Event]:
        """Whatever else a system does after step `number`, once features have been counted."""
        return []

    @property
    def first_update(self) -> int | None:
        """The first step after which `follow` takes much longer than usual. None: there is no such step."""
        return None

    @torch.no_grad()
    def finish(self) -> SAE:
        """End the training, and return the SAE ready to be used and saved.

        Decoder rows are scaled to unit norm once more, since the last step has changed their norms slightly.
        """
        self.conclude()
        self._widen()
        self.sae.decoder.copy_(F.normalize(self.sae.decoder))
        self.sae.fold_scale()
        return self.sae.eval()

    def _widen(self) -> None:
        """Give weights that were kept in fewer bits the data type of all others."""
        for weight in (self.sae.encoder, self.sae.decoder):
            if weight.dtype != self.sae.dtype:
                weight.grad = None
                weight.data = weight.data.to(self.sae.dtype)

    def conclude(self) -> None:
        """Whatever a system does at the end of training."""

    @torch.no_grad()
    def untrained(
        self,
        x: Float[Tensor, "n d_in"],
        target: Float[Tensor, "n d_out"],
        learned: Int[Tensor, "d_sae"] | None = None,
    ) -> SAE:
        """The SAE before its first step, ready to be used.

        x, target: its first batch.
        learned: the parents at the end of training. If training starts without edges, the SAE has these, and is gated
            by them from its first batch on; otherwise it has its own.
        """
        if learned is not None and starts_without_edges(self.sae.config):
            self.sae.parent.copy_(learned)
        self.initialize(x, target)
        self.take_from_first_batch(x, target)
        self._widen()
        self.sae.fold_scale()
        return self.sae.eval()

    def take_from_first_batch(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> None:
        """Take from a first batch what the SAE cannot be used without, and otherwise gets from training steps."""

    # -- dead features

    @property
    def dead(self) -> Bool[Tensor, "d_sae"]:
        """Which features are dead: they have not fired for at least `dead_steps` steps."""
        return self.steps_since_fired >= self.dead_steps

    def silence_after(self, fired: Int[Tensor, "d_sae"]) -> Int[Tensor, "d_sae"]:
        """The value of `steps_since_fired` after a step on which features fired this often."""
        return torch.where(fired > 0, 1, self.steps_since_fired + 1)

    def dead_after(self, fired: Int[Tensor, "d_sae"]) -> Bool[Tensor, "d_sae"]:
        """Which features are dead after a step on which features fired this often."""
        return self.silence_after(fired) >= self.dead_steps

    def fired(self, code: SparseCode) -> Int[Tensor, "d_sae"]:
        """The number of tokens on which each feature fires."""
        return code.fired(self.sae.d_sae, self.sae.config.activation_threshold)


def check_weights(architecture: str, optim: OptimConfig) -> None:
    """Raise InputError if training this architecture reads its weights elsewhere than in kernels."""
    if optim.weights != "float32" and architecture not in _FEW_BITS:
        raise InputError(
            f"optim.weights = {optim.weights}: expected float32 for architecture {architecture}; only "
            f"{' and '.join(_FEW_BITS)} keep their weights in fewer bits"
        )


def _make_optimizer(
    weights: Sequence[nn.Parameter],
    config: OptimConfig,
    rates: Mapping[nn.Parameter, float],
    unit_rows: nn.Parameter,
) -> Adam:
    groups = [
        {
            "params": [p],
            "rate": rates.get(p, 1.0),
            "lr": rates.get(p, 1.0) * config.lr,
            "unit_rows": p is unit_rows,
            "project": config.project_gradient,
            "rows": config.rows,
        }
        for p in weights
    ]
    if config.rows == "active":
        for matrix in weights:
            gradient_by_rows(matrix)
    state = None if config.state == "float32" else getattr(torch, config.state)
    return Adam(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, state=state)


def scalars(terms: Float[Tensor, "L"] | list[Tensor]) -> list[Tensor | None]:
    """The terms of a loss as scalars without gradients, for the log."""
    return [term.detach() for term in (terms if isinstance(terms, list) else terms.unbind())]


@torch.no_grad()
def geometric_median(
    x: Float[Tensor, "n d"], iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, "d"]:
    """The point with the smallest sum of distances to all rows of `x`, by Weiszfeld's algorithm."""
    median = x.mean(0)
    for _ in range(iterations):
        weights = 1 / (x - median).norm(dim=1).clamp(min=1e-8)
        moved = weights @ x / weights.sum()
        done = (moved - median).norm() < tolerance
        median = moved
        if done:
            break
    return median
