"""JumpReLU SAE (Rajamanoharan et al., arXiv 2407.14435): every feature has a threshold of its own, trained by a
straight-through estimator to hold L0 at its target.

Written for any number of levels, each an SAE of its own that reconstructs alone: one level is the JumpReLU SAE,
several are what HSAE links into a forest. All losses are in normalised units (SPEC 6.1, 6.3 to 6.6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UserError
from ..kernels import jagged_decode, jagged_encode
from ..sparse_code import SparseCode, concat_slots, from_entries
from .base import (
    DENSE_ENTRIES,
    PAPER_STEPS,
    SAE,
    Event,
    Normalization,
    Step,
    TrainingPlan,
    check_dead_after,
    check_one_layer,
    check_sizes,
)

_LEAST_WEIGHT, _LARGEST_WEIGHT = 1e-8, 1e2
# In short runs, steering as fast as in proportion would outrun what a step of Adam can move.
_FASTEST_RATE, _FASTEST_AVERAGE, _FASTEST_GAIN = 0.01, 0.05, 0.05
_GHOST_EPS = 1e-6
_LARGEST_EXPONENT = 40.0
_MARGIN = 1 / 64


class _JumpReLU(torch.autograd.Function):
    """`h 1[h > theta]`; the threshold's pseudo-derivative is -(theta / eps) K((h - theta) / eps), K a rectangle."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.bandwidth = bandwidth
        return torch.where(h > theta, h, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        h, theta = ctx.saved_tensors
        near = (h - theta).abs() < ctx.bandwidth / 2
        to_theta = torch.where(near, -theta / ctx.bandwidth * grads[0], 0)
        return torch.where(h > theta, grads[0], 0), to_theta, None


class _Heaviside(torch.autograd.Function):
    """`1[h > theta]`; the threshold's pseudo-derivative is -(1 / eps) K((h - theta) / eps), and h has none."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.bandwidth = bandwidth
        return (h > theta).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        h, theta = ctx.saved_tensors
        near = (h - theta).abs() < ctx.bandwidth / 2
        return None, torch.where(near, -grads[0] / ctx.bandwidth, 0), None


def jumprelu(h: Float[Tensor, "*n"], theta: Float[Tensor, "*n"], bandwidth: float) -> Float[Tensor, "*n"]:
    return _JumpReLU.apply(h, theta, bandwidth)  # pyright: ignore[reportReturnType]


def heaviside(h: Float[Tensor, "*n"], theta: Float[Tensor, "*n"], bandwidth: float) -> Float[Tensor, "*n"]:
    return _Heaviside.apply(h, theta, bandwidth)  # pyright: ignore[reportReturnType]


def of_features(per_feature: Float[Tensor, "F"], ids: Int[Tensor, "m"]) -> Float[Tensor, "m"]:
    """The numbers of the given features; the gradient sums in a fixed order."""
    return F.embedding(ids, per_feature[:, None]).squeeze(-1)


@dataclass(frozen=True)
class SparsityConfig:
    """The weight of the L0 loss, steered so that L0 falls to its target at a set speed (HSAE, App. A.2; SPEC 6.5)."""

    weight: float = 1e-3
    """At the start; times d_in, for the losses are sums over coordinates. It stays within 1e-8 and 1e2 of these."""
    rate: float | None = None
    """Share of its distance to the target by which L0 is to move in a step. None: 0.001 in the paper's 97,657 steps,
    in proportion to the run, 0.01 at most."""
    momentum: float | None = None
    """Of the moving average of L0. None: 0.999 in 97,657 steps, in proportion, 0.95 at least."""
    gain: float | None = None
    """How far the logarithm of the weight moves in a step. None: 0.001 in 97,657 steps, in proportion, 0.05 at most."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise UserError(f"sae.sparsity.weight = {self.weight}: expected more than 0")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise UserError(f"sae.sparsity.rate = {self.rate}: expected more than 0, and 1 at most")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise UserError(f"sae.sparsity.momentum = {self.momentum}: expected 0 or more, and less than 1")
        if self.gain is not None and self.gain < 0:
            raise UserError(f"sae.sparsity.gain = {self.gain}: expected 0 or more")


@dataclass(frozen=True)
class JumpReLUConfig:
    """A JumpReLU SAE and its training."""

    layer_sizes: tuple[int, ...] = (24_576,)
    """One layer: the number of features."""
    k_per_layer: tuple[int, ...] = (32,)
    """The L0 that training aims at."""
    normalize_activations: Normalization = "dataset_scale"
    """dataset_scale: a factor that makes the mean norm sqrt(d_in); layer_norm: every activation to mean 0 and
    deviation 1; none; or the factor itself."""
    activation_threshold: float = 0.0
    """A feature is active above this value; its own threshold comes first."""
    encoder_bias: bool = True
    """A trained bias of every pre-activation."""
    b_dec_init: Literal["normalized", "raw"] = "normalized"
    """b_dec starts at the geometric median of the first batch."""
    threshold_init: float | None = None
    """Where the thresholds start, in normalised units. None: where each feature fires as often on the first batch as
    the target L0 asks of the average one."""
    bandwidth: float | None = None
    """Width of the kernel by which thresholds get their gradient. None: 0.001 sqrt(d_in)."""
    threshold_rate: float | None = None
    """The thresholds' learning rate as a multiple of the other weights'. None: sqrt(d_in). Thresholds are in the
    units of pre-activations, which a step on the encoder moves by as much as d_in steps on a threshold would."""
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    ghost: bool = True
    """Dead features learn the residual by ghost gradients."""
    dead_after_tokens: int | None = None
    """A feature is dead that has not fired for so many tokens. None: 10M of 500M, in proportion to the run."""
    architecture: Literal["jumprelu"] = "jumprelu"

    def __post_init__(self) -> None:
        check_sizes(self.layer_sizes, self.k_per_layer)
        check_dead_after(self.dead_after_tokens)
        self.check_levels()
        if self.threshold_init is not None and self.threshold_init < 0:
            raise UserError(f"sae.threshold_init = {self.threshold_init}: expected 0 or more")
        for name in ("bandwidth", "threshold_rate"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"sae.{name} = {value}: expected more than 0")

    def check_levels(self) -> None:
        check_one_layer(self.architecture, self.layer_sizes)


@dataclass
class Level:
    """What one level makes of a batch: an entry for every feature that is active or within reach of its threshold."""

    rows: Int[Tensor, "m"]
    """Of the batch, in ascending order."""
    ids: Int[Tensor, "m"]
    values: Float[Tensor, "m"]
    """With gradients to encoder and threshold; 0 where the feature is below its threshold."""
    l0: Float[Tensor, ""]
    """Mean number of active features, with the straight-through gradient."""


class JumpReLUSAE(SAE):
    config_class = JumpReLUConfig
    title, color, marker = "JumpReLU", "#9C8B00", "<"
    cumulative = False
    flat = True

    config: JumpReLUConfig
    threshold: nn.Parameter
    weight: Tensor
    l0: Tensor

    def __init__(self, config: JumpReLUConfig, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        n_levels = len(config.layer_sizes)
        starts = self.forest.layer_starts
        self._levels = [slice(start, start + n) for start, n in zip(starts, config.layer_sizes, strict=True)]
        if n_levels > 1:
            self.b_dec = nn.Parameter(torch.zeros(n_levels, d_in))
        self.threshold = nn.Parameter(torch.full((self.d_sae,), config.threshold_init or 0.0))
        self.bandwidth = config.bandwidth or 1e-3 * math.sqrt(d_in)
        # Of each level: the weight of its L0 loss, and the moving average of its L0 (below 0: none yet).
        self.register_buffer(
            "weight", torch.full((n_levels,), config.sparsity.weight * d_in, dtype=torch.float64)
        )
        self.register_buffer("l0", torch.full((n_levels,), -1.0, dtype=torch.float64))
        self._l0_now = [0.0] * n_levels
        self.prepare(TrainingPlan(n_steps=PAPER_STEPS, batch_size=1024))

    def layer_bias(self, layer: int) -> Float[Tensor, "d_in"]:
        return self.b_dec[layer] if self.b_dec.dim() == 2 else self.b_dec

    def tensors(self) -> dict[str, Tensor]:
        tensors = super().tensors() | {"threshold": self.threshold}
        if self.b_dec.dim() == 2:
            # One bias by that name for every SAE: of the finest level, which is the reconstruction. The others
            # go beside it, for no two tensors of a file may share memory.
            tensors |= {"b_dec": self.b_dec[-1], "level_b_dec": self.b_dec[:-1]}
        return tensors

    def _in_input_units(self) -> list[Tensor]:
        return [*super()._in_input_units(), self.threshold]

    # -- each level: f = h 1[h > theta] with h = W_enc (u - b_dec) + b_enc

    @torch.no_grad()
    def encode_normalized(self, u: Float[Tensor, "n d_in"]) -> SparseCode:
        found = [self._within_reach(u, level, reach=0.0) for level in range(len(self._levels))]
        codes = []
        for rows, ids, h in found:
            active = h > self.threshold[ids]
            codes.append(from_entries(rows[active], ids[active], h[active], len(u)))
        return concat_slots(codes)

    def _within_reach(
        self, u: Float[Tensor, "n d_in"], level: int, reach: float
    ) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "m"]]:
        """The features of a level no further than `reach` below their threshold: rows, ids and pre-activations."""
        u = u - self.layer_bias(level)
        features = self._levels[level]
        with torch.no_grad():
            rows, ids = self._candidates(u, features, reach)
        h = jagged_encode(u, ids, rows, self.encoder)
        return rows, ids, h + of_features(self.b_enc, ids) if self.config.encoder_bias else h

    def _candidates(
        self, u: Float[Tensor, "n d_in"], features: slice, reach: float
    ) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"]]:
        """Chosen in the compute precision, whose rounding must not leave out what is just above its threshold."""
        encoder, bias = (
            self.encoder[features].to(self.compute_dtype),
            self.b_enc[features].to(self.compute_dtype),
        )
        floor = (self.threshold[features] * (1 - _MARGIN) - reach).to(self.compute_dtype)
        rows, ids, first = [], [], 0
        for part in u.split(max(DENSE_ENTRIES // len(encoder), 1)):
            row, feature = (torch.addmm(bias, part.to(encoder.dtype), encoder.T) > floor).nonzero(
                as_tuple=True
            )
            rows.append(row + first)
            ids.append(feature + features.start)
            first += len(part)
        return torch.cat(rows), torch.cat(ids)

    # -- training

    def rates(self) -> dict[nn.Parameter, float]:
        rate = self.config.threshold_rate
        return {self.threshold: math.sqrt(self.d_in) if rate is None else rate}

    def prepare(self, plan: TrainingPlan) -> None:
        self.dead_steps = plan.dead_steps(self.config.dead_after_tokens)
        sparsity = self.config.sparsity
        per_step = 1e-3 * PAPER_STEPS / max(plan.n_steps, 1)
        self._rate = min(per_step, _FASTEST_RATE) if sparsity.rate is None else sparsity.rate
        self._momentum = (
            1 - min(per_step, _FASTEST_AVERAGE) if sparsity.momentum is None else sparsity.momentum
        )
        self._gain = min(per_step, _FASTEST_GAIN) if sparsity.gain is None else sparsity.gain

    @torch.no_grad()
    def initialize(self, x: Float[Tensor, "n d_in"]) -> None:
        super().initialize(x)
        if self.config.threshold_init is not None:
            return
        u = self.normalize(x)[0]
        for level, features in enumerate(self._levels):
            share = self.config.k_per_layer[level] / self.config.layer_sizes[level]
            kept = max(round(share * len(u)), 1)
            for part in range(features.start, features.stop, 1024):
                rows = slice(part, min(part + 1024, features.stop))
                h = (u - self.layer_bias(level)) @ self.encoder[rows].T
                # Between the last that fires and the first that does not.
                largest = h.topk(min(kept + 1, len(u)), dim=0).values
                self.threshold[rows] = largest[-2:].mean(0).clamp(min=0)

    def training_step(self, x: Float[Tensor, "n d_in"]) -> Step:
        """The sum of the levels' squared errors and weighted L0 losses, what links the levels, and ghost gradients."""
        u, stats = self.normalize(x)
        levels = [self._level(u, level) for level in range(len(self._levels))]
        code = self._code(levels, len(u))
        fired = self.count_firing(code)
        self._l0_now = [float(fired[features].sum()) / len(u) for features in self._levels]

        reconstructions = self.reconstructions(levels, len(u))
        errors = [(u_hat - u).square().sum(1).mean() for u_hat in reconstructions]
        sparsity = [float(w) * level.l0 for w, level in zip(self.weight, levels, strict=True)]
        loss = torch.stack([*errors, *sparsity]).sum()
        terms: dict[str, list[float | None]] = {
            "reconstruction": [float(t.detach()) for t in errors],
            "sparsity": [float(t.detach()) for t in sparsity],
            "weight": self.weight.tolist(),
        }
        links = self.links(levels, len(u))
        if links is not None:
            loss = loss + links
            terms["links"] = [float(links.detach())]
        if self.config.ghost:
            ghosts = [self._ghost(u, r, level) for level, r in enumerate(reconstructions)]
            loss = loss + torch.stack(ghosts).sum()
            terms["ghost"] = [float(t.detach()) for t in ghosts]
        x_hat = reconstructions[-1].detach() * stats.std + stats.mean
        return Step(loss, terms, code, x_hat)

    def _level(self, u: Float[Tensor, "n d_in"], level: int) -> Level:
        rows, ids, h = self._within_reach(u, level, reach=self.bandwidth / 2)
        theta = of_features(self.threshold, ids)
        active = heaviside(h, theta, self.bandwidth)
        return Level(rows, ids, jumprelu(h, theta, self.bandwidth), active.sum() / len(u))

    @torch.no_grad()
    def _code(self, levels: list[Level], n: int) -> SparseCode:
        codes = []
        for level in levels:
            active = level.values > 0
            codes.append(from_entries(level.rows[active], level.ids[active], level.values[active], n))
        return concat_slots(codes)

    def reconstructions(self, levels: list[Level], n: int) -> list[Float[Tensor, "n d_in"]]:
        """Of every level, in normalised units."""
        return [
            jagged_decode(level.values, level.ids, level.rows, n, self.decoder) + self.layer_bias(i)
            for i, level in enumerate(levels)
        ]

    def links(self, levels: list[Level], n: int) -> Float[Tensor, ""] | None:
        """A loss that ties the levels together; none where each stands alone."""
        return None

    def _ghost(
        self, u: Float[Tensor, "n d_in"], u_hat: Float[Tensor, "n d_in"], level: int
    ) -> Float[Tensor, ""]:
        """Dead features, as if active by exp(h), reconstruct half the residual's norm (SPEC 6.6)."""
        features = self._levels[level]
        dead = features.start + self.dead[features].nonzero().flatten()
        if len(dead) == 0:
            return u.new_zeros(())
        residual = (u - u_hat).detach()
        h = (u - self.layer_bias(level)).detach() @ self.encoder[dead].T + self.b_enc[dead]
        # The norm is set below: a row whose exponentials would overflow may be scaled down first.
        h = h - (h.detach().amax(1, keepdim=True) - _LARGEST_EXPONENT).clamp(min=0)
        out = h.exp() @ self.decoder[dead]
        norm = residual.norm(dim=1, keepdim=True)
        out = out * (norm / (2 * out.norm(dim=1, keepdim=True) + _GHOST_EPS)).detach()
        error = (out - residual).square().sum(1)
        return (error * (norm.squeeze(1).square() / (error + _GHOST_EPS)).detach()).mean()

    @torch.no_grad()
    def after_step(self, step: int, loss: float) -> list[Event]:
        self.threshold.clamp_(min=0)
        for level, now in enumerate(self._l0_now):
            self._steer(level, now)
        return []

    def _steer(self, level: int, l0: float) -> None:
        """Velocity control: a larger weight where L0 falls more slowly than wanted, a smaller one where faster."""
        before = float(self.l0[level])
        if before < 0:
            self.l0[level] = l0
            return
        after = self._momentum * before + (1 - self._momentum) * l0
        wanted = -self._rate * (after - self.config.k_per_layer[level])
        turn = -self._gain if after - before < wanted else self._gain
        self.l0[level] = after
        weight = float(self.weight[level]) * math.exp(turn)
        self.weight[level] = min(max(weight, _LEAST_WEIGHT * self.d_in), _LARGEST_WEIGHT * self.d_in)
