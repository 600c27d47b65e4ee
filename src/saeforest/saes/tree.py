"""Tree SAE (Cao et al., arXiv 2605.07922): features in privilege layers, each under a parent in an earlier layer.

A child fires only where its parent fires (Eq. 6), every layer's cumulative reconstruction must stand on its own
(Eq. 7), and dead children are reallocated to the parents where they are needed most (Eq. 10, Algorithms 1 and 2).
Where the text and the authors' code differ, options name the two readings (SPEC 5.6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..kernels import top_children
from ..sparse_code import SparseCode, concat_rows, concat_slots
from ..structure.forest import ROOT, Families, families
from .allocation import Growth, ReallocationSteps, greedy_allocation, reassign_dead
from .auxiliary import AuxConfig, auxiliary_loss
from .base import (
    PAPER_STEPS,
    SAE,
    Event,
    Normalization,
    Step,
    TokenStats,
    TrainingPlan,
    check_sizes,
)
from .select import largest, top_k

# The paper's schedule as shares of its run of 97,657 steps.
_PAPER_FIRST, _PAPER_CAP = 3_000 / PAPER_STEPS, 10_000 / PAPER_STEPS
# The rate at which a feature fires is averaged over so many of the tokens within which a parent must fire once.
_RATE_WINDOWS = 10
# Rows are independent: so many at a time bound what their features' children take.
_ROWS = 1 << 14


@dataclass(frozen=True)
class TreeAuxConfig(AuxConfig):
    """The auxiliary loss (Eq. 8): dead features of a layer reconstruct what the layers so far leave over."""

    layers: tuple[int, ...] | None = (0,)
    """The layers that have one; None: all."""
    coefficient: float | tuple[float, ...] = 1 / 32  # pyright: ignore[reportIncompatibleVariableOverride]
    """Its weight in the loss, one for all those layers or one for each of them."""

    def check_coefficients(self) -> None:
        weights = self.coefficient if isinstance(self.coefficient, tuple) else (self.coefficient,)
        if any(weight < 0 for weight in weights):
            raise UserError(f"sae.aux.coefficient = {self.coefficient}: expected 0 or more")

    def weights(self, n_layers: int) -> dict[int, float]:
        """Of the layers that have an auxiliary loss. Raises UserError where layers or weights don't fit."""
        layers = tuple(range(n_layers)) if self.layers is None else self.layers
        for layer in layers:
            if not 0 <= layer < n_layers:
                raise UserError(
                    f"sae.aux.layers names layer {layer}: expected 0 to {n_layers - 1}, the layers of sae.layer_sizes"
                )
        weights = self.coefficient
        if not isinstance(weights, tuple):
            weights = (weights,) * len(layers)
        if len(weights) != len(layers):
            raise UserError(
                f"sae.aux.coefficient {list(weights)}: expected one number, or one for each of the {len(layers)} "
                "layers with an auxiliary loss"
            )
        return {layer: weight for layer, weight in zip(layers, weights, strict=True) if weight}


@dataclass(frozen=True)
class AllocationConfig:
    """When and how dead children are reallocated (App. C and G). Steps are training steps."""

    first: int | None = None
    """Step of the first reallocation, and the first interval; 0 turns reallocation off.
    None: 3,000 of the paper's 97,657 steps, in proportion to the run."""
    growth: Growth = "double"
    """How the interval grows after each reallocation: twofold, or by two steps."""
    cap: int | None = None
    """The longest interval. None: 10,000 of the paper's 97,657 steps, in proportion."""
    root_reset_at: float = 0.512
    """At this share of the run all dead children move to the root and reallocation ends (50,000 of 97,657 steps).
    0: neither ever happens."""
    capacity: Literal["per_batch", "per_instance"] = "per_batch"
    """Share of each step's loss a parent collects: equal among parents that fired, or by tokens it fired on."""
    dead_after_tokens: int | None = None
    """A feature is dead that has not fired for so many tokens. None: the paper's 10M of 500M, in proportion to the
    run but 100,000 at least: in fewer tokens a rare feature is only rare."""
    eligibility: Literal["window", "rate"] = "window"
    """A parent may be given children if it has fired within `eligible_within_tokens` (the authors' code), or if it
    fires on average once in so many (the text)."""
    eligible_within_tokens: int = 50_000
    count: Literal["all", "living"] = "all"
    """A parent's number of children is that of all (the authors' code) or of those not dead (the text)."""
    parents: Literal["any", "previous"] = "any"
    """Which features may be parents of a layer's: those of any earlier layer (the paper), or of the one before it.
    The root may always be."""
    min_root_share: float = 0.0
    """At least this share of every layer hangs from the root."""

    def __post_init__(self) -> None:
        for name in ("root_reset_at", "min_root_share"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"sae.allocation.{name} = {value}: expected a share from 0 to 1")
        least = {"first": 0, "dead_after_tokens": 1, "eligible_within_tokens": 1, "cap": 1}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise UserError(f"sae.allocation.{name} = {value}: expected {bound} or more")

    def min_root_children(self, layer_size: int) -> int:
        return math.ceil(self.min_root_share * layer_size)


@dataclass(frozen=True)
class TreeConfig:
    """A Tree SAE and its training. The defaults are the paper's 4-layer SAE at L0 32."""

    layer_sizes: tuple[int, ...] = (1536, 3072, 9216, 10752)
    """Features in each privilege layer."""
    k_per_layer: tuple[int, ...] = (21, 5, 4, 2)
    """Active features in each layer, at most."""
    normalize_activations: Normalization = "layer_norm"
    """layer_norm: every activation to mean 0 and deviation 1; dataset_scale: a factor that makes the mean norm
    sqrt(d_in); none; or the factor itself."""
    activation_threshold: float = 1e-3
    """A feature is active above this value."""
    b_dec_init: Literal["normalized", "raw"] = "normalized"
    """b_dec starts at the geometric median of the first batch; the authors' code takes it before normalisation."""
    aux: TreeAuxConfig = field(default_factory=TreeAuxConfig)
    allocation: AllocationConfig = field(default_factory=AllocationConfig)
    architecture: Literal["tree"] = "tree"

    @property
    def encoder_bias(self) -> bool:
        return False

    def __post_init__(self) -> None:
        check_sizes(self.layer_sizes, self.k_per_layer)
        self.aux.weights(len(self.layer_sizes))


class TreeSAE(SAE):
    config_class = TreeConfig
    title, color, marker = "Tree SAE", "#D55E00", "o"
    color_of_two_layers = "#E69F00"
    at_most_k = gated = True

    config: TreeConfig
    capacity: Tensor
    rate: Tensor
    rate_weight: Tensor

    def __init__(self, config: TreeConfig, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        self._starts = (*self.forest.layer_starts, self.d_sae)
        self._layers = list(zip(self._starts, config.layer_sizes, config.k_per_layer, strict=False))
        self._grouped: tuple[Tensor, list[Families]] | None = None
        # Row l: what each candidate parent of layer l has collected; entry start(l) is the root's.
        self.register_buffer("capacity", torch.zeros(len(self._layers), self.d_sae + 1, dtype=torch.float64))
        # Of each feature the share of tokens on which it fires: a moving average, and the weight it has so far.
        self.register_buffer("rate", torch.zeros(self.d_sae, dtype=torch.float64))
        self.register_buffer("rate_weight", torch.zeros((), dtype=torch.float64))
        self._fired, self._n_tokens = torch.zeros(self.d_sae, dtype=torch.int64), 0
        self.prepare(TrainingPlan(n_steps=0, batch_size=1))

    def initial_parent(self, generator: torch.Generator) -> Int[Tensor, "d_sae"]:
        """Uniform over the features that may be parents and the root (SPEC 5.1)."""
        parents, start = [], 0
        for i, size in enumerate(self.config.layer_sizes):
            layer = torch.randint(self._first_parent(i), start + 1, (size,), generator=generator)
            layer[: self.config.allocation.min_root_children(size)] = start
            parents.append(torch.where(layer == start, ROOT, layer))
            start += size
        return torch.cat(parents)

    def _first_parent(self, layer: int) -> int:
        """The lowest feature that may be a parent of a layer's."""
        nearest = layer > 0 and self.config.allocation.parents == "previous"
        return sum(self.config.layer_sizes[: layer - 1]) if nearest else 0

    # -- Eq. 6: gate by the active parent, then the k largest of each layer, then ReLU

    @torch.no_grad()
    def _select(self, u: Float[Tensor, "n d_in"]) -> list[SparseCode]:
        """Of every layer, with exact values: a layer's decide what may be active in those that follow."""
        parts = [self._select_slice(part) for part in u.split(_ROWS)]
        return [concat_rows(list(layer)) for layer in zip(*parts, strict=True)]

    def _select_slice(self, u: Float[Tensor, "n d_in"]) -> list[SparseCode]:
        active = torch.empty(len(u), 0, dtype=torch.int64, device=u.device)
        codes = []
        for layer, k in zip(self._families(), self.config.k_per_layer, strict=True):
            code = self._exact(u, self._eligible_top(u, active, layer, k))
            active = torch.cat([active, self._active(code)], dim=1)
            codes.append(code)
        return codes

    def _eligible_top(
        self, u: Float[Tensor, "n d_in"], active: Int[Tensor, "n a"], features: Families, k: int
    ) -> SparseCode:
        """The `k` of largest pre-activation among those features that hang from the root or from an active one.

        Nothing is computed for the others, which are most.
        """
        k = min(k, len(features.roots) + len(features.children))
        found = [SparseCode(u.new_zeros(len(u), k), active.new_zeros(len(u), k))]
        if len(features.roots):
            found.append(self._sliced(u, lambda h: top_k(h, k), features.roots))
        if len(features.children) and active.shape[1]:
            first, children = features.first, features.children
            chosen = top_children(u, self.encoder, active, first, children, k, self.compute_dtype)
            found.append(SparseCode(*chosen))
        return largest(found, k)

    def _active(self, code: SparseCode) -> Int[Tensor, "n k"]:
        """The active features, -1 in slots without."""
        return torch.where(code.active(self.config.activation_threshold), code.ids, ROOT)

    def _families(self) -> list[Families]:
        """Of every layer; kept until a parent changes."""
        kept = self._grouped
        if kept is None or kept[0].device != self.parent.device or not torch.equal(kept[0], self.parent):
            every = torch.arange(self.d_sae, device=self.parent.device)
            layers = every.split(list(self.config.layer_sizes))
            kept = self._grouped = self.parent.clone(), [families(self.parent, layer) for layer in layers]
        return kept[1]

    def encode_normalized(self, u: Float[Tensor, "n d_in"]) -> SparseCode:
        return concat_slots(self._select(u - self.b_dec))

    # -- training

    def prepare(self, plan: TrainingPlan) -> None:
        allocation = self.config.allocation
        self.dead_steps = plan.dead_steps(allocation.dead_after_tokens)
        self._eligible_steps = max(2, plan.steps_for(allocation.eligible_within_tokens))
        self._root_reset = int(allocation.root_reset_at * plan.n_steps)
        first = plan.share(_PAPER_FIRST) if allocation.first is None else allocation.first
        cap = plan.share(_PAPER_CAP) if allocation.cap is None else allocation.cap
        self._reallocations = ReallocationSteps(first, allocation.growth, cap, until=self._root_reset)

    def training_step(self, x: Float[Tensor, "n d_in"]) -> Step:
        """Eq. 9: the sum of the layers' cumulative reconstruction losses and the auxiliary losses."""
        x = x.to(self.encoder.dtype)
        normalized, stats = self.normalize(x)
        u = normalized - self.b_dec.detach()
        code = self._exact(u, concat_slots(self._select(u)), known=True)
        active = code.detach()
        self._count(self.count_firing(active), len(x))

        reconstruction, errors = self._layer_losses(x, code, stats, self._starts)
        aux = self.config.aux.weights(len(errors))
        auxiliary = {i: self._auxiliary(i, u, active, -errors[i], stats) for i in aux}
        loss = reconstruction.sum()
        for layer, weight in aux.items():
            loss = loss + weight * auxiliary[layer]
        terms = {
            "reconstruction": reconstruction.tolist(),
            "auxiliary": [
                float(auxiliary[i].detach()) if i in auxiliary else None for i in range(len(errors))
            ],
        }
        return Step(loss, terms, active, x + errors[-1].detach())

    def _auxiliary(
        self,
        layer: int,
        u: Float[Tensor, "n d_in"],
        code: SparseCode,
        residual: Float[Tensor, "n d_in"],
        stats: TokenStats,
    ) -> Float[Tensor, ""]:
        """Eq. 8: the best `k` dead features of a layer, under their active parents, reconstruct the residual."""
        start, size, _ = self._layers[layer]
        dead = families(self.parent, start + self.dead[start : start + size].nonzero().flatten())
        chosen = self._exact(u, self._eligible_top(u, self._active(code), dead, self.config.aux.k))
        return auxiliary_loss(chosen, self.decoder, self.b_dec, residual, stats, self.config.aux)

    # -- Eq. 10: capacities and reallocation

    def _count(self, fired: Int[Tensor, "d_sae"], n_tokens: int) -> None:
        self._fired, self._n_tokens = fired, n_tokens
        if self.config.allocation.eligibility == "rate":
            horizon = _RATE_WINDOWS * self.config.allocation.eligible_within_tokens
            kept = math.exp(-n_tokens / horizon)
            self.rate.mul_(kept).add_((1 - kept) * fired.to(self.rate.dtype) / n_tokens)
            self.rate_weight.mul_(kept).add_(1 - kept)

    def _eligible(self, start: int) -> Bool[Tensor, "start"]:
        """Which features before `start` may be given children (SPEC 5.6, #21)."""
        allocation = self.config.allocation
        if allocation.eligibility == "window":
            return self.steps_since_fired[:start] < self._eligible_steps
        return self.rate[:start] * allocation.eligible_within_tokens >= self.rate_weight

    @torch.no_grad()
    def after_step(self, step: int, loss: float) -> list[Event]:
        self._collect_capacity(loss)
        if step == self._root_reset:
            return self._reset_dead_to_root(step)
        if step not in self._reallocations:
            return []
        events = [self._reallocate(step, layer) for layer in range(1, len(self._layers))]
        self.capacity.zero_()
        return events

    def _collect_capacity(self, loss: float) -> None:
        """Candidate parents of a layer that fired, and the root, collect the step's loss (SPEC 5.6, #14 to #17)."""
        fired = self._fired.to(self.capacity.dtype)
        per_instance = self.config.allocation.capacity == "per_instance"
        for layer, (start, _, _) in enumerate(self._layers[1:], 1):
            if per_instance:
                share = torch.cat([fired[:start], fired.new_tensor([float(self._n_tokens)])])
            else:
                share = torch.cat([(fired[:start] > 0).to(fired.dtype), fired.new_ones(1)])
                share = share / share.sum()
            self.capacity[layer, : start + 1] += loss * share

    def _reallocate(self, step: int, layer: int) -> Event:
        start, size, _ = self._layers[layer]
        eligible = torch.ones(start + 1, dtype=torch.bool)
        eligible[:start] = self._eligible(start).cpu()
        eligible[: self._first_parent(layer)] = False
        quota = greedy_allocation(
            self.capacity[layer, : start + 1].cpu(),
            eligible,
            size,
            min_last=self.config.allocation.min_root_children(size),
        )
        features = slice(start, start + size)
        parent, dead = self.parent[features].cpu(), self.dead[features].cpu()
        moved = reassign_dead(parent, dead, quota, count=self.config.allocation.count)
        return self._move(step, layer, moved, "reallocation")

    def _reset_dead_to_root(self, step: int) -> list[Event]:
        events = []
        for layer, (start, size, _) in enumerate(self._layers[1:], 1):
            features = slice(start, start + size)
            moved = torch.where(self.dead[features], ROOT, self.parent[features]).cpu()
            events.append(self._move(step, layer, moved, "root_reset"))
        return events

    def _move(self, step: int, layer: int, new: Int[Tensor, "s"], kind: str) -> Event:
        start, size, _ = self._layers[layer]
        old = self.parent[start : start + size].cpu()
        changed = (old != new).nonzero().flatten()
        moves = torch.stack([changed + start, old[changed], new[changed]], dim=1).tolist()
        self.parent[start : start + size] = new.to(self.parent.device)
        log = {
            "event": kind,
            "step": step,
            "layer": layer,
            "dead": int(self.dead[start : start + size].sum()),
            "moved": len(moves),
            "from_root": sum(o == ROOT for _, o, _ in moves),
            "to_root": sum(n == ROOT for _, _, n in moves),
            "donors": len({o for _, o, _ in moves}),
            "receivers": len({n for _, _, n in moves}),
        }
        return Event(log, [(f, o, n) for f, o, n in moves])
