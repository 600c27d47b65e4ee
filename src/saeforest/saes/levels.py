"""SAEs of one or more levels, whose features each have a threshold: a level is a JumpReLU SAE that reconstructs alone.

One level is the JumpReLU SAE, several are what HSAE links into a forest. All losses are in normalized units
(docs/spec/hsae.md#losses).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import InputError
from ..kernels import jagged_decode, jagged_encode, of_features
from ..sparse_code import SparseCode, concat_slots, from_entries
from .base import SAE, SAEConfig
from .checks import check_dead_after, check_sizes
from .encode import DENSE_ENTRIES
from .normalizer import Normalization
from .reconstruct import Levels
from .sparsity import SparsityConfig, SparsityController
from .thresholds import heaviside, jumprelu
from .training import Event, Setup, Step, Training, scalars

_GHOST_EPS = 1e-6
_LARGEST_EXPONENT = 40.0
_MARGIN = 1 / 64


@dataclass(frozen=True)
class LevelsConfig:
    """Settings of SAEs whose features have thresholds, and of their training."""

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
    """Where the thresholds start, in normalized units. None: where each feature fires as often on the first batch as
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

    def __post_init__(self) -> None:
        check_sizes(self.layer_sizes, self.k_per_layer)
        check_dead_after(self.dead_after_tokens)
        if self.threshold_init is not None and self.threshold_init < 0:
            raise InputError(f"sae.threshold_init = {self.threshold_init}: expected 0 or more")
        for name in ("bandwidth", "threshold_rate"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"sae.{name} = {value}: expected more than 0")


@runtime_checkable
class ThresholdsConfig(SAEConfig, Protocol):
    """What an SAE with thresholds needs to be built."""

    @property
    def threshold_init(self) -> float | None: ...


class LevelsSAE(SAE):
    """Each level: f = h 1[h > theta] with h = W_enc (u - b_dec) + b_enc."""

    scaled_weights = (*SAE.scaled_weights, "threshold")

    threshold: nn.Parameter

    def __init__(
        self, config: ThresholdsConfig, d_in: int, *, d_out: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(config, d_in, d_out=d_out, seed=seed)
        self.reconstruction = Levels(self.starts)
        if self.n_levels > 1:
            self.b_dec = nn.Parameter(torch.zeros(self.n_levels, d_in))
        self.threshold = nn.Parameter(torch.full((self.d_sae,), config.threshold_init or 0.0))

    @property
    def n_levels(self) -> int:
        return len(self.starts) - 1

    def level(self, i: int) -> slice:
        """The features of a level."""
        return slice(self.starts[i], self.starts[i + 1])

    def level_bias(self, i: int) -> Float[Tensor, "d_in"]:
        return self.reconstruction.bias(self.b_dec, i)

    def own_tensors(self) -> dict[str, Tensor]:
        if self.b_dec.dim() == 1:
            return {"threshold": self.threshold}
        # One bias by that name for every SAE: of the finest level, which is the reconstruction. The others
        # go beside it, for no two tensors of a file may share memory.
        return {"threshold": self.threshold, "b_dec": self.b_dec[-1], "level_b_dec": self.b_dec[:-1]}

    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        codes = []
        for i in range(self.n_levels):
            rows, ids, h = self.within_reach(u, i, 0.0, precision)
            active = h > self.threshold[ids]
            codes.append(from_entries(rows[active], ids[active], h[active], len(u)))
        return concat_slots(codes)

    def within_reach(
        self, u: Float[Tensor, "n d_in"], i: int, reach: float, precision: torch.dtype
    ) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "m"]]:
        """The features of a level no further than `reach` below their threshold: rows, ids and pre-activations."""
        u = u - self.level_bias(i)
        rows, ids = self._candidates(u, self.level(i), reach, precision)
        h = jagged_encode(u, ids, rows, self.encoder)
        return rows, ids, h + of_features(self.b_enc, ids) if self.config.encoder_bias else h

    @torch.no_grad()
    def _candidates(
        self, u: Float[Tensor, "n d_in"], features: slice, reach: float, precision: torch.dtype
    ) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"]]:
        """Chosen in `precision`, whose rounding must not leave out what is just above its threshold."""
        encoder, bias = self.encoder[features].to(precision), self.b_enc[features].to(precision)
        floor = (self.threshold[features] * (1 - _MARGIN) - reach).to(precision)
        rows, ids, first = [], [], 0
        for part in u.split(max(DENSE_ENTRIES // len(encoder), 1)):
            h = torch.addmm(bias, part.to(encoder.dtype), encoder.T)
            row, feature = (h > floor).nonzero(as_tuple=True)
            rows.append(row + first)
            ids.append(feature + features.start)
            first += len(part)
        return torch.cat(rows), torch.cat(ids)


class Level(NamedTuple):
    """What one level makes of a batch: an entry for every feature that is active or within reach of its threshold."""

    rows: Int[Tensor, "m"]
    """Rows of the batch, in ascending order."""
    ids: Int[Tensor, "m"]
    values: Float[Tensor, "m"]
    """With gradients to encoder and threshold; 0 where the feature is below its threshold."""
    l0: Float[Tensor, ""]
    """Mean number of active features, with the straight-through gradient."""


class Links(nn.Module, ABC):
    """How the levels of an SAE are tied together while it is trained."""

    first_update: int | None = None
    """The first step after which a forest is found; None where it never is."""

    @abstractmethod
    def reconstructions(
        self, sae: LevelsSAE, levels: list[Level], n: int, done: int
    ) -> list[Float[Tensor, "n d_in"]]:
        """The reconstruction of every level from a batch of `n` activations, after `done` steps."""

    @abstractmethod
    def loss(self, sae: LevelsSAE, levels: list[Level], n: int) -> Float[Tensor, ""] | None:
        """What ties the levels together, if anything."""

    @abstractmethod
    def follow(self, sae: LevelsSAE, step: Step, number: int) -> list[Event]:
        """What happens after step `number`."""

    @abstractmethod
    def conclude(self, sae: LevelsSAE, number: int) -> None:
        """What happens when training has ended with step `number`."""


class LevelsTraining(Training):
    """The sum of the levels' squared errors and weighted L0 losses, what links the levels, and ghost gradients."""

    sae: LevelsSAE

    def __init__(
        self,
        sae: LevelsSAE,
        config: LevelsConfig,
        links: Links,
        setup: Setup,
    ) -> None:
        rate = math.sqrt(sae.d_in) if config.threshold_rate is None else config.threshold_rate
        super().__init__(
            sae,
            setup,
            dead_after_tokens=config.dead_after_tokens,
            rates={sae.threshold: rate},
        )
        self._config, self.links = config, links
        self.bandwidth = config.bandwidth or 1e-3 * math.sqrt(sae.d_in)
        self.sparsity = SparsityController(
            config.sparsity, config.k_per_layer, sae.d_in, setup.run, sae.device
        )

    def begin(self, x: Float[Tensor, "n d_in"]) -> None:
        """Thresholds start where each feature fires as often as the target L0 asks of the average one."""
        if self._config.threshold_init is not None:
            return
        sae = self.sae
        u = sae.normalize(x)[0]
        for i in range(sae.n_levels):
            features = sae.level(i)
            share = self._config.k_per_layer[i] / self._config.layer_sizes[i]
            kept = max(round(share * len(u)), 1)
            for part in range(features.start, features.stop, 1024):
                rows = slice(part, min(part + 1024, features.stop))
                h = (u - sae.level_bias(i)) @ sae.encoder[rows].T
                # Between the last that fires and the first that does not.
                largest = h.topk(min(kept + 1, len(u)), dim=0).values
                sae.threshold[rows] = largest[-2:].mean(0).clamp(min=0)

    def forward(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_in"]) -> Step:
        u, stats = self.sae.normalize(x)
        levels = [self._level(u, i) for i in range(self.sae.n_levels)]
        code = self._code(levels, len(u))
        fired = self.fired(code)

        reconstructions = self.links.reconstructions(self.sae, levels, len(u), self.done)
        errors = [(u_hat - u).square().sum(1).mean() for u_hat in reconstructions]
        weights = self.sparsity.weight.clone()  # it moves before the log is written
        sparsity = [w.to(u.dtype) * level.l0 for w, level in zip(weights, levels, strict=True)]
        loss = torch.stack([*errors, *sparsity]).sum()
        terms = {
            "reconstruction": scalars(errors),
            "sparsity": scalars(sparsity),
            "weight": scalars(weights),
        }
        links = self.links.loss(self.sae, levels, len(u))
        if links is not None:
            loss = loss + links
            terms["links"] = scalars([links])
        if self._config.ghost:
            dead = self.dead_after(fired)
            ghosts = [self._ghost(u, r, i, dead) for i, r in enumerate(reconstructions)]
            loss = loss + torch.stack(ghosts).sum()
            terms["ghost"] = scalars(ghosts)
        x_hat = reconstructions[-1].detach() * stats.std + stats.mean
        return Step(loss, terms, code, x_hat, fired, len(u))

    def _level(self, u: Float[Tensor, "n d_in"], i: int) -> Level:
        rows, ids, h = self.sae.within_reach(u, i, self.bandwidth / 2, self.precision)
        theta = of_features(self.sae.threshold, ids)
        active = heaviside(h, theta, self.bandwidth)
        return Level(rows, ids, jumprelu(h, theta, self.bandwidth), active.sum() / len(u))

    @torch.no_grad()
    def _code(self, levels: list[Level], n: int) -> SparseCode:
        codes = []
        for level in levels:
            active = level.values > 0
            codes.append(from_entries(level.rows[active], level.ids[active], level.values[active], n))
        return concat_slots(codes)

    def _ghost(
        self,
        u: Float[Tensor, "n d_in"],
        u_hat: Float[Tensor, "n d_in"],
        i: int,
        dead: Bool[Tensor, "d_sae"],
    ) -> Float[Tensor, ""]:
        """Dead features, as if active by exp(h), learn the residual (docs/spec/hsae.md#ghost-gradients)."""
        sae = self.sae
        features = sae.level(i)
        ids = features.start + dead[features].nonzero().flatten()
        if len(ids) == 0:
            return u.new_zeros(())
        residual = (u - u_hat).detach()
        h = (u - sae.level_bias(i)).detach() @ sae.encoder[ids].T + sae.b_enc[ids]
        # The norm is set below: a row whose exponentials would overflow may be scaled down first.
        h = h - (h.detach().amax(1, keepdim=True) - _LARGEST_EXPONENT).clamp(min=0)
        out = h.exp() @ sae.decoder[ids]
        norm = residual.norm(dim=1, keepdim=True)
        out = out * (norm / (2 * out.norm(dim=1, keepdim=True) + _GHOST_EPS)).detach()
        error = (out - residual).square().sum(1)
        return (error * (norm.squeeze(1).square() / (error + _GHOST_EPS)).detach()).mean()

    def follow(self, step: Step, number: int) -> list[Event]:
        self.sae.threshold.clamp_(min=0)
        fired = [step.fired[self.sae.level(i)].sum() for i in range(self.sae.n_levels)]
        self.sparsity.steer(torch.stack(fired).double() / step.n_tokens)
        return self.links.follow(self.sae, step, number)

    @property
    def first_update(self) -> int | None:
        return self.links.first_update

    def conclude(self) -> None:
        self.links.conclude(self.sae, self.done)


def decoded(sae: LevelsSAE, level: Level, i: int, n: int) -> Float[Tensor, "n d_in"]:
    """The reconstruction of level `i` alone, from a batch of `n` activations."""
    return jagged_decode(level.values, level.ids, level.rows, n, sae.decoder) + sae.level_bias(i)
