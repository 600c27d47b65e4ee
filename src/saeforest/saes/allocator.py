"""The reallocation of dead children in a Tree SAE (App. C and G of its paper): what capacity parents collect, which
parents are eligible, and when children move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..errors import InputError
from ..structure.forest import ROOT
from .allocation import Growth, ReallocationSteps, greedy_allocation, reassign_dead
from .training import PAPER_STEPS, Event, RunLength, Step

# The paper's schedule, as fractions of its run of 97,657 steps.
_PAPER_FIRST, _PAPER_CAP = 3_000 / PAPER_STEPS, 10_000 / PAPER_STEPS
# Firing rates are averaged over this many windows of `eligible_within_tokens` tokens.
_RATE_WINDOWS = 10


@dataclass(frozen=True)
class AllocationConfig:
    """When and how dead children are reallocated to other parents (App. C and G). Steps are training steps."""

    first: int | None = None
    """Step of the first reallocation, and length of the first interval. 0: no reallocation. None: 3% of the run
    (3,000 of the paper's 97,657 steps)."""
    growth: Growth = "double"
    """How the interval grows after each reallocation. double: to twice its length; add: by two steps."""
    cap: int | None = None
    """Longest interval, in steps. None: 10% of the run (10,000 of the paper's 97,657 steps)."""
    root_reset_at: float = 0.512
    """Fraction of the run at which all dead children move to the root and reallocation ends (50,000 of the paper's
    97,657 steps). 0: no reallocation at all."""
    capacity: Literal["per_batch", "per_instance"] = "per_batch"
    """How much of each step's loss a parent collects. per_batch: an equal share among the parents that fired;
    per_instance: the loss times the number of tokens on which it fired."""
    dead_after_tokens: int | None = None
    """Number of tokens without firing after which a feature is dead. None: 2% of the run (the paper's 10M of 500M
    tokens), at least 100,000, so that rare features are not taken for dead."""
    eligibility: Literal["window", "rate"] = "window"
    """Which parents may be given children. window: those that fired within the last eligible_within_tokens tokens (the
    authors' code); rate: those that fire on average once in that many tokens (the paper)."""
    eligible_within_tokens: int = 50_000
    """Number of tokens within which an eligible parent fires once."""
    count: Literal["all", "living"] = "all"
    """Which children count toward a parent's quota: all (the authors' code), or living, those not dead (the paper)."""
    parents: Literal["any", "previous"] = "any"
    """Which features may be parents, besides the root. any: those of all earlier layers (the paper); previous: those
    of the previous layer."""
    min_root_share: float = 0.0
    """Smallest fraction of every layer that hangs from the root."""

    def __post_init__(self) -> None:
        for name in ("root_reset_at", "min_root_share"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"sae.allocation.{name} = {value}: expected a fraction from 0 to 1")
        least = {"first": 0, "dead_after_tokens": 1, "eligible_within_tokens": 1, "cap": 1}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise InputError(f"sae.allocation.{name} = {value}: expected {bound} or more")

    def min_root_children(self, layer_size: int) -> int:
        """The smallest number of features of a layer that hang from the root."""
        return math.ceil(self.min_root_share * layer_size)

    def first_parent(self, layer: int, layer_sizes: tuple[int, ...]) -> int:
        """The first feature that may be a parent of the features in `layer`."""
        nearest = layer > 0 and self.parents == "previous"
        return sum(layer_sizes[: layer - 1]) if nearest else 0


class Allocator(nn.Module):
    """Moves the dead children of a forest to the parents where they are needed most.

    Its buffers hold the capacity that parents have collected since the last reallocation, and the rates at which
    features fire.
    """

    capacity: Tensor
    rate: Tensor
    rate_weight: Tensor

    def __init__(
        self, config: AllocationConfig, sizes: tuple[int, ...], run: RunLength, device: torch.device
    ) -> None:
        super().__init__()
        self._config, self._sizes = config, sizes
        self._starts = (0, *accumulate(sizes))
        self.root_reset = int(config.root_reset_at * run.n_steps)
        self.eligible_steps = max(2, run.steps_for(config.eligible_within_tokens))
        first = run.share(_PAPER_FIRST) if config.first is None else config.first
        cap = run.share(_PAPER_CAP) if config.cap is None else config.cap
        self.reallocations = ReallocationSteps(first, config.growth, cap, until=self.root_reset)
        d_sae, zeros = sum(sizes), {"dtype": torch.float64, "device": device}
        # Row l: what each candidate parent of layer l has collected; entry start(l) is the root's.
        self.register_buffer("capacity", torch.zeros(len(sizes), d_sae + 1, **zeros))
        # The fraction of tokens on which each feature fires: a moving average, and the total weight in it so far.
        self.register_buffer("rate", torch.zeros(d_sae, **zeros))
        self.register_buffer("rate_weight", torch.zeros((), **zeros))

    def after_step(
        self,
        step: Step,
        number: int,
        parent: Int[Tensor, "d_sae"],
        silence: Int[Tensor, "d_sae"],
        dead: Bool[Tensor, "d_sae"],
    ) -> list[Event]:
        """Count step `number`, and move children if a reallocation or the root reset is due.

        parent: the parent of every feature, modified in place.
        silence: steps since each feature last fired.
        dead: whether each feature is dead.
        """
        self.count(step)
        self._collect(step)
        if number == self.root_reset:
            return self._reset_dead_to_root(number, parent, dead)
        if number not in self.reallocations:
            return []
        layers = range(1, len(self._sizes))
        events = [self._reallocate(number, layer, parent, silence, dead) for layer in layers]
        self.capacity.zero_()
        return events

    def count(self, step: Step) -> None:
        """Update the rates at which features fire, if eligibility depends on them."""
        if self._config.eligibility == "rate":
            horizon = _RATE_WINDOWS * self._config.eligible_within_tokens
            kept = math.exp(-step.n_tokens / horizon)
            self.rate.mul_(kept).add_((1 - kept) * step.fired.to(self.rate.dtype) / step.n_tokens)
            self.rate_weight.mul_(kept).add_(1 - kept)

    def _collect(self, step: Step) -> None:
        """Add the loss to the capacity of the root and of the parents that fired (docs/spec/tree-sae.md#capacity)."""
        fired = step.fired.to(self.capacity.dtype)
        loss = step.loss.detach().to(self.capacity.dtype)
        per_instance = self._config.capacity == "per_instance"
        for layer, start in enumerate(self._starts[1:-1], 1):
            if per_instance:
                share = torch.cat([fired[:start], fired.new_full((1,), float(step.n_tokens))])
            else:
                share = torch.cat([(fired[:start] > 0).to(fired.dtype), fired.new_ones(1)])
                share = share / share.sum()
            self.capacity[layer, : start + 1] += loss * share

    def eligible(self, start: int, silence: Int[Tensor, "d_sae"]) -> Bool[Tensor, "start"]:
        """Which of the features before `start` may be given children (docs/spec/tree-sae.md#eligibility)."""
        if self._config.eligibility == "window":
            return silence[:start] < self.eligible_steps
        return self.rate[:start] * self._config.eligible_within_tokens >= self.rate_weight

    def _reallocate(
        self,
        number: int,
        layer: int,
        parent: Int[Tensor, "d_sae"],
        silence: Int[Tensor, "d_sae"],
        dead: Bool[Tensor, "d_sae"],
    ) -> Event:
        """Eq. 10: allocate by capacity (Algorithm 1), then move dead children to match (Algorithm 2)."""
        start, size = self._starts[layer], self._sizes[layer]
        eligible = torch.ones(start + 1, dtype=torch.bool)
        eligible[:start] = self.eligible(start, silence).cpu()
        eligible[: self._config.first_parent(layer, self._sizes)] = False
        quota = greedy_allocation(
            self.capacity[layer, : start + 1].cpu(),
            eligible,
            size,
            min_last=self._config.min_root_children(size),
        )
        own = slice(start, start + size)
        moved = reassign_dead(parent[own].cpu(), dead[own].cpu(), quota, count=self._config.count)
        return self._move(number, layer, parent, moved, int(dead[own].sum()), "reallocation")

    def _reset_dead_to_root(
        self, number: int, parent: Int[Tensor, "d_sae"], dead: Bool[Tensor, "d_sae"]
    ) -> list[Event]:
        events = []
        for layer in range(1, len(self._sizes)):
            own = slice(self._starts[layer], self._starts[layer + 1])
            moved = torch.where(dead[own], ROOT, parent[own]).cpu()
            events.append(self._move(number, layer, parent, moved, int(dead[own].sum()), "root_reset"))
        return events

    def _move(
        self,
        number: int,
        layer: int,
        parent: Int[Tensor, "d_sae"],
        new: Int[Tensor, "s"],
        n_dead: int,
        kind: str,
    ) -> Event:
        start = self._starts[layer]
        own = slice(start, self._starts[layer + 1])
        old = parent[own].cpu()
        changed = (old != new).nonzero().flatten()
        moves = torch.stack([changed + start, old[changed], new[changed]], dim=1).tolist()
        parent[own] = new.to(parent.device)
        log = {
            "event": kind,
            "step": number,
            "layer": layer,
            "dead": n_dead,
            "moved": len(moves),
            "from_root": sum(o == ROOT for _, o, _ in moves),
            "to_root": sum(n == ROOT for _, _, n in moves),
            "donors": len({o for _, o, _ in moves}),
            "receivers": len({n for _, _, n in moves}),
        }
        return Event(log, [(f, o, n) for f, o, n in moves])
