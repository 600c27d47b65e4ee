"""The reallocation of dead children in a Tree SAE (App. C and G of its paper): what capacity parents collect, which
parents are eligible, and when children move."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..errors import InputError
from ..structure.forest import ROOT
from .allocation import Count, Growth, ReallocationSteps, greedy_allocation, reassign_dead
from .parents_from_data import Evidence, FromDataConfig, Seen, judge
from .promote import places, rearranged
from .training import PAPER_STEPS, Event, RunLength, Step

# The paper's schedule, as fractions of its run of 97,657 steps.
_PAPER_FIRST, _PAPER_CAP = 3_000 / PAPER_STEPS, 10_000 / PAPER_STEPS
# Firing rates are averaged over this many windows of `eligible_within_tokens` tokens.
_RATE_WINDOWS = 10


@dataclass(frozen=True)
class AllocationConfig:
    """When and how children are moved to other parents (App. C and G). Steps are training steps."""

    rule: Literal["capacity", "data"] = "capacity"
    """Which children move where. capacity: dead ones, to parents that have collected much loss (the paper); data: all,
    to the features that are active where the child's own detector is on (from_data)."""
    start: Literal["random", "root"] = "random"
    """Parents at the start. random: as in the paper; root: every feature hangs from the root until it is moved, so that
    training begins without a gate."""
    first: int | None = None
    """Step of the first reallocation, and length of the first interval. 0: no reallocation. None: 3% of the run
    (3,000 of the paper's 97,657 steps)."""
    growth: Growth = "double"
    """How the interval grows after each reallocation. double: to twice its length; add: by two steps."""
    cap: int | None = None
    """Longest interval, in steps. None: 10% of the run (10,000 of the paper's 97,657 steps)."""
    root_reset_at: float = 0.512
    """Fraction of the run at which all dead children move to the root (50,000 of the paper's 97,657 steps). 0: never.
    Unless `until` is set, reallocation ends there, and with 0 there is none at all."""
    until: float | None = None
    """Fraction of the run at which reallocation ends, with or without a reset to the root. None: at root_reset_at."""
    reinitialize: bool = False
    """Let dead features that are moved start anew, from what the reconstruction lacks where their new parent is active.
    With rule=data, all features that are dead at an update and about which there is no evidence, until
    from_data.dead_until. The paper's keep their weights."""
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
    """Which children count toward a parent's quota: all (the authors' code), or living, those not dead (the paper).
    With living every dead child may move; with all, only those of parents above their quota."""
    parents: Literal["any", "previous"] = "any"
    """Which features may be parents, besides the root. any: those of all earlier layers (the paper); previous: those
    of the previous layer."""
    min_root_share: float = 0.0
    """Smallest fraction of every layer that hangs from the root, at the start and with rule=capacity."""
    from_data: FromDataConfig = field(default_factory=FromDataConfig)

    def __post_init__(self) -> None:
        for name in ("root_reset_at", "until", "min_root_share"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise InputError(f"sae.allocation.{name} = {value}: expected a fraction from 0 to 1")
        least = {"first": 0, "dead_after_tokens": 1, "eligible_within_tokens": 1, "cap": 1}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise InputError(f"sae.allocation.{name} = {value}: expected {bound} or more")
        if self.rule == "data" and self.until is not None:
            raise InputError(
                f"sae.allocation.until = {self.until}: with rule = data, parents move until from_data.until, and dead "
                "features until from_data.dead_until; set those"
            )

    @property
    def ends_at_once(self) -> bool:
        """Whether there is no reallocation because nothing but `root_reset_at = 0` says so."""
        return self.rule == "capacity" and self.first != 0 and self.until is None and self.root_reset_at == 0

    def min_root_children(self, layer_size: int) -> int:
        """The smallest number of features of a layer that hang from the root."""
        return math.ceil(self.min_root_share * layer_size)

    def first_parent(self, layer: int, layer_sizes: tuple[int, ...]) -> int:
        """The first feature that may be a parent of the features in `layer`."""
        nearest = layer > 0 and self.parents == "previous"
        return sum(layer_sizes[: layer - 1]) if nearest else 0


class Moved(NamedTuple):
    """What happened to the parents after a step."""

    events: list[Event]
    dead: Int[Tensor, "m"]
    """The dead features among those that were moved or looked at, which may start anew."""


class Allocator(nn.Module):
    """Moves the dead children of a forest to the parents where they are needed most, or all to those the data support.

    Its buffers hold the capacity that parents have collected since the last reallocation, the rates at which features
    fire, and the evidence for parents from data.
    """

    capacity: Tensor
    rate: Tensor
    rate_weight: Tensor
    energy: Tensor | None

    def __init__(
        self,
        config: AllocationConfig,
        sizes: tuple[int, ...],
        run: RunLength,
        device: torch.device,
        *,
        k: int = 1,
    ) -> None:
        """k: the number of active features of a token, in all layers."""
        super().__init__()
        self._config, self._sizes = config, sizes
        self._starts = (0, *accumulate(sizes))
        self.root_reset = int(config.root_reset_at * run.n_steps)
        self.eligible_steps = max(2, run.steps_for(config.eligible_within_tokens))
        first = run.share(_PAPER_FIRST) if config.first is None else config.first
        cap = run.share(_PAPER_CAP) if config.cap is None else config.cap
        until = self.root_reset if config.until is None else int(config.until * run.n_steps)
        from_data = config.rule == "data"
        self.reallocations = ReallocationSteps(0 if from_data else first, config.growth, cap, until)
        self.updates = config.from_data.updates(run) if from_data else range(0)
        self.last_move = int(config.from_data.until * run.n_steps)
        """The last step after which living children may move to other parents."""
        self.last_revival = int(config.from_data.dead_until * run.n_steps)
        """The same for dead ones, with parents from data."""
        d_sae, zeros = sum(sizes), {"dtype": torch.float64, "device": device}
        # Row l: what each candidate parent of layer l has collected; entry start(l) is the root's.
        self.register_buffer("capacity", torch.zeros(len(sizes), d_sae + 1, **zeros))
        # The fraction of tokens on which each feature fires: a moving average, and the total weight in it so far.
        self.register_buffer("rate", torch.zeros(d_sae, **zeros))
        self.register_buffer("rate_weight", torch.zeros((), **zeros))
        self.evidence = None
        if from_data:
            self.evidence = Evidence(config.from_data, d_sae, k, device, batch=run.batch_size)
        # The sum of the squared activations of each feature since the last update.
        promotes = from_data and config.from_data.promote > 0
        self.register_buffer("energy", torch.zeros(d_sae, **zeros) if promotes else None)

    def looks(self, number: int) -> int:
        """On how many tokens of step `number` evidence for parents is wanted."""
        if self.evidence is None or number > min(self.last_move, max(self.updates, default=0)):
            return 0
        until_next = -number % self.updates.step
        return self.evidence.sample if until_next < self.evidence.n_steps else 0

    def after_step(
        self,
        step: Step,
        number: int,
        parent: Int[Tensor, "d_sae"],
        silence: Int[Tensor, "d_sae"],
        dead: Bool[Tensor, "d_sae"],
        seen: Seen | None = None,
    ) -> Moved:
        """Count step `number`, and move children if an update of the parents or the root reset is due.

        parent: the parent of every feature, modified in place.
        silence: steps since each feature last fired.
        dead: whether each feature is dead.
        seen: evidence for parents from this step.
        """
        self.count(step)
        self._collect(step)
        if self.evidence is not None and seen is not None:
            self.evidence.add(seen, number)
        moved = Moved([], silence[:0])
        if number == self.root_reset:
            moved = _moved(self._reset_dead_to_root(number, parent, dead), parent.device)
        elif number in self.reallocations:
            events = self._reallocate_all(number, parent, silence, dead, self._config.count)
            moved = _moved(events, parent.device)
        if self.evidence is not None and number in self.updates:
            update = self._update(self.evidence, number, parent, silence, dead)
            moved = Moved(moved.events + update.events, torch.cat([moved.dead, update.dead]).unique())
        return moved

    def promote(self, number: int, parent: Int[Tensor, "d_sae"]) -> tuple[Int[Tensor, "d_sae"], Event] | None:
        """Which feature is to be at each place from now on, after the update of step `number`; None if all stay.

        parent: the parent of every feature, modified in place.
        """
        energy, times = self.energy, self._config.from_data.promote
        if energy is None or self.evidence is None or number not in self.updates:
            return None
        at = places(energy, self._starts, times)
        energy.zero_()
        # Another update has to follow, for children that lose their parent.
        if number + self.updates.step > self.last_move:
            return None
        moved = at != torch.arange(len(at), device=at.device)
        if not bool(moved.any()):
            return None
        self.evidence.rearrange(at)
        self.rate.copy_(self.rate[at])
        new = rearranged(parent, at, self._starts, previous=self._config.parents == "previous")
        changed = (new != parent).nonzero().flatten()
        moves = torch.stack([changed, parent[changed], new[changed]], dim=1).tolist()
        parent.copy_(new)
        log = {"event": "promoted", "step": number, "features": int(moved.sum()), "moved": len(moves)}
        return at, Event(log, [(f, old, new) for f, old, new in moves])

    def _reallocate_all(
        self,
        number: int,
        parent: Int[Tensor, "d_sae"],
        silence: Int[Tensor, "d_sae"],
        dead: Bool[Tensor, "d_sae"],
        count: Count,
    ) -> list[Event]:
        layers = range(1, len(self._sizes))
        events = [self._reallocate(number, layer, parent, silence, dead, count) for layer in layers]
        self.capacity.zero_()
        return events

    def _update(
        self,
        evidence: Evidence,
        number: int,
        parent: Int[Tensor, "d_sae"],
        silence: Int[Tensor, "d_sae"],
        dead: Bool[Tensor, "d_sae"],
    ) -> Moved:
        """Move children to the parents that the data support, and dead ones without evidence as `dead` says."""
        config = self._config.from_data
        layers = torch.repeat_interleave(torch.arange(len(self._sizes)), torch.tensor(self._sizes))
        layers = layers.to(parent.device)
        events, lost = [], dead.clone()
        for layer in range(1, len(self._sizes)):
            start, own = self._starts[layer], slice(self._starts[layer], self._starts[layer + 1])
            new, said = parent[own].clone(), {}
            if number <= self.last_move:
                first = self._config.first_parent(layer, self._sizes)
                children, candidates = range(own.start, own.stop), range(first, start)
                judged = judge(config, evidence, parent, children, candidates, layers[first:start])
                new, said = judged.parent, judged.describe()
                lost[own] &= ~judged.known
            if config.dead == "root" and number <= self.last_revival:
                new = torch.where(lost[own], ROOT, new)
            event = self._move(number, layer, parent, new.cpu(), int(dead[own].sum()), "parents")
            event.log |= {"with_parent": float((new != ROOT).double().mean()), **said}
            events.append(event)
        if number > self.last_revival:
            return Moved(events, silence[:0])
        if config.dead == "capacity":
            events += self._reallocate_all(number, parent, silence, lost, "living")
        return Moved(events, lost.nonzero().flatten())

    def count(self, step: Step) -> None:
        """Update the rates at which features fire, if eligibility depends on them, and their energy."""
        if self.energy is not None:
            squares = step.code.values.detach().to(self.energy.dtype).square()
            self.energy.index_add_(0, step.code.ids.flatten(), squares.flatten())
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
        count: Count,
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
        moved = reassign_dead(parent[own].cpu(), dead[own].cpu(), quota, count=count)
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


def _moved(events: list[Event], device: torch.device) -> Moved:
    """Events, and the features that they moved, all of them dead."""
    features = torch.tensor([f for event in events for f, _, _ in event.moves], dtype=torch.int64)
    return Moved(events, features.to(device))
