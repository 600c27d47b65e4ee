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

from ..allocation import Growth, greedy_allocation, reallocation_steps, reassign_dead
from ..code import SparseCode, concat_slots
from ..errors import UserError
from ..forest import ROOT
from ..kernels import sparse_decode, sparse_encode
from .base import SAE, Event, Normalization, Step, TokenStats, TrainingPlan, check_sizes, geometric_median

# Rows are independent, so features are selected in slices: the dense pre-activations never exceed this many entries.
_DENSE_ENTRIES = 1 << 25

# The paper's schedule as shares of its run of 97,657 steps.
_LEAST_DEAD_TOKENS = 100_000
_PAPER_FIRST, _PAPER_CAP, _PAPER_DEAD_STEPS = 3_000 / 97_657, 10_000 / 97_657, 1_953 / 97_657


@dataclass(frozen=True)
class AuxConfig:
    """The auxiliary loss (Eq. 8): dead features of a layer reconstruct what the layers so far leave over."""

    layers: tuple[int, ...] | None = (0,)
    """The layers that have one; None: all."""
    coefficient: float = 1 / 32
    """Its weight in the loss."""
    k: int = 256
    """Dead features that may act on a token."""
    detach: bool = False
    """The residual is a fixed target. The authors' code lets gradients flow into it."""
    bias: bool = True
    """b_dec is part of the residual's reconstruction, as in the authors' code."""
    rescale: bool = False
    """Bring the residual's reconstruction back to the scale of x. The authors' code does not."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"sae.aux.k = {self.k}: expected 1 or more")
        if self.coefficient < 0:
            raise UserError(f"sae.aux.coefficient = {self.coefficient}: expected 0 or more")


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
    eligible_within_tokens: int = 50_000
    """A parent may be given children if it has fired within so many tokens."""
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
    aux: AuxConfig = field(default_factory=AuxConfig)
    allocation: AllocationConfig = field(default_factory=AllocationConfig)
    architecture: Literal["tree"] = "tree"

    def __post_init__(self) -> None:
        check_sizes(self.layer_sizes, self.k_per_layer)
        for layer in self.aux.layers or ():
            if not 0 <= layer < len(self.layer_sizes):
                raise UserError(
                    f"sae.aux.layers names layer {layer}: expected 0 to {len(self.layer_sizes) - 1}, "
                    f"the layers of sae.layer_sizes {list(self.layer_sizes)}"
                )


class TreeSAE(SAE):
    config_class = TreeConfig
    at_most_k = gated = True

    config: TreeConfig
    capacity: Tensor

    def __init__(self, config: TreeConfig, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        starts = self.forest.layer_starts
        self._layers = list(zip(starts, config.layer_sizes, config.k_per_layer, strict=True))
        # Row l: what each candidate parent of layer l has collected; entry start(l) is the root's.
        self.register_buffer("capacity", torch.zeros(len(self._layers), self.d_sae + 1, dtype=torch.float64))
        self._fired, self._n_tokens = torch.zeros(self.d_sae, dtype=torch.int64), 0
        self.prepare(TrainingPlan(n_steps=0, batch_size=1))

    def initial_parent(self, generator: torch.Generator) -> Int[Tensor, "d_sae"]:
        """Uniform over all features of earlier layers and the root (SPEC 5.1)."""
        parents, start = [], 0
        for size in self.config.layer_sizes:
            layer = torch.randint(0, start + 1, (size,), generator=generator)
            layer[: self.config.allocation.min_root_children(size)] = start
            parents.append(torch.where(layer == start, ROOT, layer))
            start += size
        return torch.cat(parents)

    # -- Eq. 6: gate by the active parent, then the k largest of each layer, then ReLU

    @torch.no_grad()
    def _select(self, u: Float[Tensor, "n d_in"]) -> list[SparseCode]:
        rows = max(_DENSE_ENTRIES // self.d_sae, 1)
        encoder = self.encoder.to(self.compute_dtype)
        slices = [self._select_slice(part, encoder) for part in u.split(rows)]
        return [
            SparseCode(torch.cat([c.values for c in layer]), torch.cat([c.ids for c in layer]))
            for layer in zip(*slices, strict=True)
        ]

    def _select_slice(
        self, u: Float[Tensor, "n d_in"], encoder: Float[Tensor, "d_sae d_in"]
    ) -> list[SparseCode]:
        h = u.to(encoder.dtype) @ encoder.T
        active = torch.zeros(len(u), self.d_sae + 1, dtype=torch.bool, device=u.device)
        active[:, ROOT] = True  # the last column: parent -1 finds the root
        codes = []
        for start, size, k in self._layers:
            scores = h[:, start : start + size]
            if start:
                scores = torch.where(active[:, self.parent[start : start + size]], scores, 0)
            top, local = scores.topk(k, dim=1)
            code = self._values(u, torch.where(top > 0, local + start, 0), top > 0)
            active[:, start : start + size].scatter_(1, local, code.active(self.config.activation_threshold))
            codes.append(code)
        return codes

    def _values(
        self,
        u: Float[Tensor, "n d_in"],
        ids: Int[Tensor, "n k"],
        used: Bool[Tensor, "n k"],
        known: Float[Tensor, "n k"] | None = None,
    ) -> SparseCode:
        h = sparse_encode(u, ids, self.encoder, known)
        return SparseCode(torch.where(used, h.relu(), 0), ids)

    def encode_normalized(self, u: Float[Tensor, "n d_in"]) -> SparseCode:
        return concat_slots(self._select(u))

    # -- training

    def prepare(self, plan: TrainingPlan) -> None:
        allocation = self.config.allocation
        # The counter is 1 on the step a feature fires: windows of one step would call the living dead.
        self.dead_steps = max(
            2,
            max(plan.share(_PAPER_DEAD_STEPS), plan.steps_for(_LEAST_DEAD_TOKENS))
            if allocation.dead_after_tokens is None
            else plan.steps_for(allocation.dead_after_tokens),
        )
        self._eligible_steps = max(2, plan.steps_for(allocation.eligible_within_tokens))
        self._root_reset = int(allocation.root_reset_at * plan.n_steps)
        first = plan.share(_PAPER_FIRST) if allocation.first is None else allocation.first
        cap = plan.share(_PAPER_CAP) if allocation.cap is None else allocation.cap
        self._reallocations = reallocation_steps(first, allocation.growth, cap, until=self._root_reset)

    def initialize(self, x: Float[Tensor, "n d_in"]) -> None:
        if self.config.b_dec_init == "raw":
            self.b_dec.data.copy_(geometric_median(x.to(self.encoder.dtype)))
        else:
            super().initialize(x)

    def training_step(self, x: Float[Tensor, "n d_in"]) -> Step:
        """Eq. 9: the sum of the layers' cumulative reconstruction losses and the auxiliary losses."""
        x = x.to(self.encoder.dtype)
        normalized, stats = self.normalize(x)
        u = normalized - self.b_dec
        codes = [self._values(u, c.ids, c.values > 0, known=c.values) for c in self._select(u)]
        code = concat_slots(codes).detach()
        self._fired, self._n_tokens = self.count_firing(code), len(x)

        variance = x.var() + 1e-8
        z = self.b_dec
        reconstruction: list[Tensor] = []
        auxiliary: dict[int, Tensor] = {}
        x_hat = x
        for layer, c in enumerate(codes):
            z = z + sparse_decode(c.values, c.ids, self.decoder)
            x_hat = stats.std * z + stats.mean
            reconstruction.append((x_hat - x).square().mean() / variance)
            if self.config.aux.layers is None or layer in self.config.aux.layers:
                auxiliary[layer] = self._auxiliary(layer, u, code, x - x_hat, stats)
        loss = torch.stack(reconstruction).sum()
        if auxiliary:
            loss = loss + self.config.aux.coefficient * torch.stack(list(auxiliary.values())).sum()
        terms = {
            "reconstruction": [float(t.detach()) for t in reconstruction],
            "auxiliary": [
                float(auxiliary[i].detach()) if i in auxiliary else None for i in range(len(codes))
            ],
        }
        return Step(loss, terms, code, x_hat.detach())

    def _auxiliary(
        self,
        layer: int,
        u: Float[Tensor, "n d_in"],
        code: SparseCode,
        residual: Float[Tensor, "n d_in"],
        stats: TokenStats,
    ) -> Float[Tensor, ""]:
        """Eq. 8: the best `k` dead features of a layer, under their active parents, reconstruct the residual."""
        aux = self.config.aux
        start, size, _ = self._layers[layer]
        dead = start + self.dead[start : start + size].nonzero().flatten()
        if len(dead) == 0 and not aux.bias:
            return residual.new_zeros(())
        if aux.detach:
            residual = residual.detach()
        h = u @ self.encoder[dead].T * self._parent_active(code, dead)
        if len(dead) > aux.k:
            kept = h.detach().topk(aux.k, dim=1)
            h = h * torch.zeros_like(h).scatter_(1, kept.indices, 1.0)
        e_hat = h.relu() @ self.decoder[dead]
        if aux.bias:
            e_hat = e_hat + self.b_dec
        if aux.rescale:
            e_hat = e_hat * stats.std
        spread = (residual - residual.mean(-1, keepdim=True)).square().mean()
        # Nothing left to reconstruct: the ratio and its gradient are 0, not NaN.
        some = spread > 0
        return torch.where(some, (e_hat - residual).square().mean() / torch.where(some, spread, 1), 0)

    def _parent_active(self, code: SparseCode, features: Int[Tensor, "m"]) -> Bool[Tensor, "n m"]:
        """On which tokens the parents of the given features are active."""
        parents, which = self.parent[features].unique(return_inverse=True)
        # A column for each parent; every other feature shares the last. Inactive slots go to the root's, always on.
        column = torch.full((self.d_sae + 1,), len(parents), device=parents.device)
        column[parents] = torch.arange(len(parents), device=parents.device)
        slots = column[torch.where(code.active(self.config.activation_threshold), code.ids, ROOT)]
        active = torch.zeros(len(slots), len(parents) + 1, dtype=torch.bool, device=slots.device)
        active.scatter_(1, slots, True)
        active[:, column[ROOT]] = True
        return active[:, which]

    # -- Eq. 10: capacities and reallocation

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
        eligible[:start] = self.steps_since_fired[:start].cpu() < self._eligible_steps
        quota = greedy_allocation(
            self.capacity[layer, : start + 1].cpu(),
            eligible,
            size,
            min_last=self.config.allocation.min_root_children(size),
        )
        features = slice(start, start + size)
        moved = reassign_dead(self.parent[features].cpu(), self.dead[features].cpu(), quota)
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
