"""SAEs of one or more levels, each of which is a JumpReLU SAE that reconstructs the input on its own.

With one level this is the JumpReLU SAE. HSAE links several levels into a forest. All losses are in normalized units
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
from ..kernels import entries_by_rows, jagged_decode, jagged_encode, of_features, shards
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
    """An SAE whose features have thresholds, and its training."""

    layer_sizes: tuple[int, ...] = (24_576,)
    """Number of features (one layer)."""
    k_per_layer: tuple[int, ...] = (32,)
    """Target L0: the mean number of active features per token that training aims at."""
    normalize_activations: Normalization = "dataset_scale"
    """How activations are normalized. dataset_scale: all by one factor that makes their mean norm sqrt(d_in);
    layer_norm: each to mean 0 and standard deviation 1; constant_norm_rescale: each to norm sqrt(d_in); none; or that
    factor as a number."""
    activation_threshold: float = 0.0
    """Value above which a feature counts as active, after its own threshold has been applied."""
    encoder_bias: bool = True
    """Train a bias for every pre-activation."""
    b_dec_init: Literal["normalized", "raw"] = "normalized"
    """Initial b_dec: the geometric median of the first batch, after normalization (normalized) or before it (raw)."""
    threshold_init: float | None = None
    """Initial threshold of every feature, in normalized units. None: set each from the first batch so that every
    feature fires equally often and L0 is at its target."""
    bandwidth: float | None = None
    """Width of the kernel that gives thresholds their gradient, in normalized units. None: 0.001 sqrt(d_in)."""
    threshold_rate: float | None = None
    """Learning rate of the thresholds, as a multiple of optim.lr. None: sqrt(d_in), because one step changes a
    pre-activation through d_in encoder weights but a threshold only once."""
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    ghost: bool = True
    """Train dead features on the residual by ghost gradients."""
    dead_after_tokens: int | None = None
    """Number of tokens without firing after which a feature is dead. None: 2% of the run (10M of 500M tokens), at
    least 100,000."""

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
    """The configuration that is needed to build an SAE with thresholds."""

    @property
    def threshold_init(self) -> float | None: ...


class LevelsSAE(SAE):
    """An SAE of levels with f = h 1[h > theta] and h = W_enc (u - b_dec) + b_enc in each level."""

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
        """The number of levels."""
        return len(self.starts) - 1

    def level(self, i: int) -> slice:
        """The features of level `i`, as a slice of feature ids."""
        return slice(self.starts[i], self.starts[i + 1])

    def level_bias(self, i: int) -> Float[Tensor, "d_in"]:
        """The decoder bias of level `i`."""
        return self.reconstruction.bias(self.b_dec, i)

    def own_tensors(self) -> dict[str, Tensor]:
        if self.b_dec.dim() == 1:
            return {"threshold": self.threshold}
        # In the files of all SAEs `b_dec` is the bias of the reconstruction, which here is that of the last level. The
        # other levels' biases are saved apart, because no two tensors in a file may share memory.
        return {"threshold": self.threshold, "b_dec": self.b_dec[-1], "level_b_dec": self.b_dec[:-1]}

    def encode_normalized(self, u: Float[Tensor, "n d_in"], precision: torch.dtype) -> SparseCode:
        codes = []
        for i in range(self.n_levels):
            rows, ids, h = self.within_reach(u, i, 0.0, precision)
            active = h > self.threshold[ids]
            codes.append(from_entries(rows[active], ids[active], h[active], len(u)))
        return concat_slots(codes)

    def detect_normalized(
        self, u: Float[Tensor, "n d_in"], features: Int[Tensor, "m"]
    ) -> Float[Tensor, "n m"]:
        precision = torch.promote_types(self.encoder.dtype, torch.float32)
        h = u.new_empty(len(u), len(features), dtype=precision)
        for i in range(self.n_levels):
            level = self.level(i)
            mine = (features >= level.start) & (features < level.stop)
            h[:, mine] = (u - self.level_bias(i)).to(precision) @ self.encoder[features[mine]].to(precision).T
        return h + self.b_enc[features] if self.config.encoder_bias else h

    def within_reach(
        self, u: Float[Tensor, "n d_in"], i: int, reach: float, precision: torch.dtype
    ) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "m"]]:
        """The features of level `i` with a pre-activation above their threshold minus `reach`.

        Returns rows of `u`, feature ids and pre-activations, one entry for each such pair.
        """
        center = self.level_bias(i)
        u = u - center
        rows, ids = self._candidates(u, self.level(i), reach, precision)
        if shards.divided():  # ranks then add up one gradient of the bias, not those of all rows of `u`
            h = jagged_encode(u.detach(), ids, rows, self.encoder, center)
        else:
            h = jagged_encode(u, ids, rows, self.encoder)
        return rows, ids, h + of_features(self.b_enc, ids) if self.config.encoder_bias else h

    @torch.no_grad()
    def _candidates(
        self, u: Float[Tensor, "n d_in"], features: slice, reach: float, precision: torch.dtype
    ) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"]]:
        """Candidates found in `precision`, with a margin so that rounding misses no feature above its threshold."""
        here, own = shards.of_level(features)
        encoder, bias = self.encoder[here].to(precision), self.b_enc[own].to(precision)
        floor = (self.threshold[own] * (1 - _MARGIN) - reach).to(precision)

        def above(some: slice) -> tuple[Tensor, Tensor]:
            rows, ids, first = [], [], 0
            for part in u[some].split(max(DENSE_ENTRIES // max(len(encoder), 1), 1)):
                h = torch.addmm(bias, part.to(encoder.dtype), encoder.T)
                row, feature = (h > floor).nonzero(as_tuple=True)
                rows.append(row + first)
                ids.append(shards.feature(feature + here.start))
                first += len(part)
            return shards.entries_of_all(torch.cat(rows), torch.cat(ids), self.d_sae)

        return entries_by_rows(above, len(u))


class Level(NamedTuple):
    """One level's features on a batch: an entry for each that is active or near its threshold."""

    rows: Int[Tensor, "m"]
    """Rows of the batch, in ascending order."""
    ids: Int[Tensor, "m"]
    values: Float[Tensor, "m"]
    """Activations, with gradients to encoder and threshold; 0 if the feature is below its threshold."""
    l0: Float[Tensor, ""]
    """Mean number of active features per token, with the straight-through gradient."""


class Links(nn.Module, ABC):
    """How the levels of an SAE are linked to each other during training."""

    first_update: int | None = None
    """The first step after which parents are chosen. None: never during training."""

    @abstractmethod
    def reconstructions(
        self, sae: LevelsSAE, levels: list[Level], n: int, done: int
    ) -> list[Float[Tensor, "n d_in"]]:
        """The reconstruction of every level from a batch of `n` activations, after `done` steps."""

    @abstractmethod
    def loss(self, sae: LevelsSAE, levels: list[Level], n: int) -> Float[Tensor, ""] | None:
        """The loss that links the levels. None if there is no such loss."""

    @abstractmethod
    def follow(self, sae: LevelsSAE, step: Step, number: int) -> list[Event]:
        """Update the links after step `number`, counted from 1."""

    @abstractmethod
    def conclude(self, sae: LevelsSAE, number: int) -> None:
        """Update the links at the end of training, after step `number`."""


class LevelsTraining(Training):
    """Training with the sum of the levels' squared errors and weighted L0 losses, the loss of the links, and ghost
    gradients."""

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
                some = slice(part, min(part + 1024, features.stop))
                # On every rank, so that rounding is that of one process: activations that are equal may tie.
                h = (u - sae.level_bias(i)) @ shards.rows_of(sae.encoder, some).T
                # Between the smallest pre-activation that should fire and the largest that should not.
                largest = h.topk(min(kept + 1, len(u)), dim=0).values
                sae.threshold[some] = largest[-2:].mean(0).clamp(min=0)

    def forward(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_in"]) -> Step:
        u, stats = self.sae.normalize(x)
        levels = [self._level(u, i) for i in range(self.sae.n_levels)]
        code = self._code(levels, len(u))
        fired = self.fired(code)

        reconstructions = self.links.reconstructions(self.sae, levels, len(u), self.done)
        errors = [(u_hat - u).square().sum(1).mean() for u_hat in reconstructions]
        weights = self.sparsity.weight.clone()  # the weights change before the log is written
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
        """The ghost loss: dead features, with activations exp(h), reconstruct half the residual's norm.

        See docs/spec/hsae.md#ghost-gradients.
        """
        sae = self.sae
        features = sae.level(i)
        ids = features.start + dead[features].nonzero().flatten()
        if len(ids) == 0:
            return u.new_zeros(())
        residual = (u - u_hat).detach()
        ids = ids[shards.mine(ids)]
        here = shards.place(ids)
        bias = shards.handed_out(sae.b_enc)[ids]
        h = (u - sae.level_bias(i)).detach() @ sae.encoder[here].T + bias
        # The norm is set below, so rows whose exponentials would overflow can be scaled down here.
        h = h - (shards.largest(h) - _LARGEST_EXPONENT).clamp(min=0)
        out = shards.summed(h.exp() @ sae.decoder[here])
        norm = residual.norm(dim=1, keepdim=True)
        out = out * (norm / (2 * out.norm(dim=1, keepdim=True) + _GHOST_EPS)).detach()
        error = (out - residual).square().sum(1)
        return (error * (norm.squeeze(1).square() / (error + _GHOST_EPS)).detach()).mean()

    def take_from_first_batch(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> None:
        first = self.links.first_update or 1
        self.links.follow(self.sae, self(x, target), first)
        self.links.conclude(self.sae, first)

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
    """The reconstruction of a batch of `n` activations by level `i` alone."""
    return jagged_decode(level.values, level.ids, level.rows, n, sae.decoder) + sae.level_bias(i)
