"""Probes: the direction d*_c of each feature's concept, found from the activations on which it fires (Eq. 5).

The Tree SAE paper trains a linear probe that tells the activations on which a feature fires from all others, and uses
its weights as the concept's direction (section 3, App. D.1; docs/spec/hierarchy.md#probes). With z = w.x + b, y = 1
where the feature fires (n_c of n activations), and rho = (n - n_c) / n_c, so that both classes weigh the same, it
minimizes

    L     = mean over a batch of  rho y softplus(-z) + (1 - y) softplus(z)
    dL/dz = rho y (sigma(z) - 1) + (1 - y) sigma(z)

by Adam with L2 on w and b, in 50 epochs of shuffled batches; the learning rate falls exponentially from epoch to
epoch. A batch costs two matrix products, for the logits and for the gradient; everything else is small. Labels are
never stored densely: dL/dz is sigma(z) except at the few positives of a batch, which come from the firings.

The published code averages the loss over all probes trained together, so with more probes L2 and Adam's epsilon weigh
more. Here losses are summed, and L2 is that of 500 probes (100 parents with 5 children), so that a probe does not
depend on the others: trained alone or with 500 others, its direction is the same up to rounding (1e-7 in a
coordinate). `reduction="mean_all"` follows the published code.

Many directions separate a feature that fires less often than there are dimensions, so the result then depends on the
initial weights: on 39k activations of SmolLM2-135M (20 features that fire 230 to 530 times, 500 steps) the median
cosine between the directions of two seeds is 0.73, and smaller batches do not help.

Two directions need no training:

    lda              (Sigma + lambda I)^-1 (mu_c - mu)   (directions.py)
    mean_difference  mu_c - mean of the activations on which c does not fire
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

from ..errors import InputError
from ..optim import Precision, resolve_precision
from ..progress import progress
from ..spill import slices
from ..structure.directions import Directions, Moments
from ..structure.pairs import PairStatistics

#: The paper's 100 parents with 5 children each: its L2 is relative to the mean loss of this many probes.
PAPER_PROBES = 500
#: `quality` compares a feature's firings with its other activations among this many, drawn by the seed.
QUALITY_SAMPLE = 1 << 16
# Number of probes whose logits are computed together: 4 MB for a batch of 4096.
_CHUNK = 256
# Number of activations processed at once outside training.
_ROWS = 1 << 14
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ProbeConfig:
    """How the direction of a feature's concept is estimated."""

    method: Literal["logistic", "lda", "mean_difference"] = "logistic"
    """How to find a concept's direction. logistic: train the paper's linear probe. lda, mean_difference: compute it
    from means and a covariance, ignoring the training settings below."""
    epochs: int = 50
    """Number of passes over the activations."""
    batch_size: int = 4096
    """Number of activations in a training step."""
    lr: float = 1e-2
    """Learning rate of Adam in the first epoch."""
    lr_end: float = 1e-5
    """Learning rate of Adam in the last epoch; it decays exponentially from `lr`."""
    weight_decay: float = 1e-6
    """L2 penalty on weights and bias, added to the gradient. It is relative to the mean loss of 500 probes."""
    reduction: Literal["sum", "mean_all"] = "sum"
    """How the losses of probes trained together are combined. sum: each probe is trained as if it were alone. mean_all:
    the mean over the probes, as in the published code; weight_decay is then relative to that mean."""
    precision: Precision = "float32"
    """Precision of the matrix products. bfloat16 halves the time if the processor supports it, at a small cost in
    accuracy: on 39k activations of SmolLM2-135M, the cosine with the float32 direction was at least 0.9996 after 500
    steps and at least 0.92 (median 0.9994) after 3900."""
    seed: int = 0
    """Random seed for the initial probes and the order of the activations."""

    def __post_init__(self) -> None:
        ranges = [
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("lr", self.lr, 0 < self.lr < math.inf, "more than 0"),
            ("lr_end", self.lr_end, 0 < self.lr_end <= self.lr, "more than 0, and lr or less"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more"),
            ("seed", self.seed, 0 <= self.seed < 2**63, "0 to 2**63 - 1"),
        ]
        for name, value, holds, expected in ranges:
            if not holds:
                raise InputError(f"probe.{name} = {value}: expected {expected}")


class Quality(NamedTuple):
    """How well probes tell their feature's firings from the other activations, on the data they were trained on.

    n:     number of firings.
    loss:  L of the module over all activations, without L2; None for methods without training.
    auroc: probability that a firing has a larger w.x than another activation; a tie counts one half.

    All firings are used, but other activations only if they are among QUALITY_SAMPLE drawn by the seed. Up to that
    many activations both numbers are exact; beyond, the standard error of auroc is at most 0.5 / sqrt(others).
    """

    n: Int[Tensor, "b"]
    loss: Float64[Tensor, "b"] | None
    auroc: Float64[Tensor, "b"]


class Probes:
    """The directions d*_c of the features' concepts, trained on first use.

    x:      `[n, d_in]` activations, on the CPU.
    pairs:  firings of each feature on these activations.
    device: device to train probes on.

    Raises ValueError if `pairs` has seen another number of activations.
    """

    def __init__(
        self,
        x: Float[Tensor, "n d_in"],
        pairs: PairStatistics,
        config: ProbeConfig,
        device: torch.device = _CPU,
    ) -> None:
        if len(x) != pairs.n_tokens:
            raise ValueError(f"{len(x)} activations, but firings on {pairs.n_tokens}")
        self.x, self.pairs, self.config, self.device = x, pairs, config, device
        # For each feature, the weights of its probe followed by the bias.
        self._found: dict[int, Float32[Tensor, "w"]] = {}

    def defined(self, features: Int[Tensor, "b"]) -> Bool[Tensor, "b"]:
        """Which features fire on some activations but not on all. Only these have a direction."""
        exists = (features >= 0) & (features < self.pairs.d_sae)
        n = self.pairs.marginals.n[torch.where(exists, features, 0)]
        return exists & (n > 0) & (n < len(self.x))

    def directions(self, features: Int[Tensor, "b"]) -> Float32[Tensor, "b d_in"]:
        """The unit direction of each feature's concept, in the space of x. New features of a call are trained together.

        Raises ValueError for a feature that is not `defined`.
        """
        return F.normalize(self._probes(features)[:, : self.x.shape[1]])

    def quality(self, features: Int[Tensor, "b"]) -> Quality:
        """The quality of these features' probes. Raises ValueError for a feature that is not `defined`."""
        probes = self._probes(features)
        sample = torch.randperm(len(self.x), generator=self._generator())[:QUALITY_SAMPLE].sort().values
        loss, auroc = torch.zeros(2, len(features), dtype=torch.float64)
        for first in range(0, len(features), _CHUNK):
            w = probes[first : first + _CHUNK]
            sampled = self._logits(sample, w)
            for i, logit in enumerate(sampled.T, first):
                token = self.pairs.firings(int(features[i]))[0].long()
                negative = logit[~torch.isin(sample, token, assume_unique=True)]
                if not len(
                    negative
                ):  # the feature fires on nearly all activations, and the sample has no others
                    others = torch.ones(len(self.x), dtype=torch.bool)
                    others[token] = False
                    negative = self._logits(others.nonzero().flatten(), probes[i : i + 1])[:, 0]
                positive = self._logits(token, probes[i : i + 1])[:, 0]
                auroc[i] = _auroc(positive, negative)
                share = 1 - len(token) / len(self.x)
                loss[i] = share * (F.softplus(-positive).mean() + F.softplus(negative).mean())
        trained = self.config.method == "logistic"
        return Quality(self.pairs.marginals.n[features], loss if trained else None, auroc)

    def _logits(self, rows: Int[Tensor, "n"], probes: Float32[Tensor, "c w"]) -> Float64[Tensor, "n c"]:
        parts = [
            self.x.index_select(0, part).float() @ probes[:, :-1].T + probes[:, -1]
            for part in rows.split(_ROWS)
        ]
        return torch.cat(parts).double()

    def _probes(self, features: Int[Tensor, "b"]) -> Float32[Tensor, "b w"]:
        if not (defined := self.defined(features)).all():
            feature = int(features[~defined][0])
            raise ValueError(
                f"feature {feature} fires on none or all of the activations: it has no direction"
            )
        new = torch.tensor([i for i in features.unique().tolist() if i not in self._found], dtype=torch.int64)
        if len(new):
            methods: dict[str, Callable[[Int[Tensor, "b"]], Float32[Tensor, "b w"]]] = {
                "logistic": self._train,
                "lda": self._lda,
                "mean_difference": self._mean_difference,
            }
            found = methods[self.config.method](new)
            self._found |= dict(zip(new.tolist(), found, strict=True))
        empty = torch.zeros(0, self.x.shape[1] + 1)
        return torch.stack([self._found[i] for i in features.tolist()]) if len(features) else empty

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.seed)

    # ---- directions without training

    def _lda(self, features: Int[Tensor, "b"]) -> Float32[Tensor, "b w"]:
        moments, directions = self._lda_of_all
        for feature in features.tolist():
            moments.fired_sum[feature] = self._fired_sum(feature)
        return F.pad(directions.of(features), (0, 1))

    @cached_property
    def _lda_of_all(self) -> tuple[Moments, Directions]:
        """The covariance of all activations. The sums over a feature's firings are filled in when needed."""
        moments = Moments(self.pairs.d_sae, self.x.shape[1], _CPU)
        with progress("covariance", len(self.x), "activations") as advance:
            for part in slices(self.x, _ROWS):
                none = torch.zeros(len(part), 1)
                moments.add(part.float(), none.long(), none)
                advance(len(part))
        return moments, Directions(moments, self.pairs.marginals.n, min_count=1)

    def _mean_difference(self, features: Int[Tensor, "b"]) -> Float32[Tensor, "b w"]:
        n = self.pairs.marginals.n[features, None]
        fired = torch.stack([self._fired_sum(feature) for feature in features.tolist()])
        difference = fired / n - (self._sum - fired) / (len(self.x) - n)
        return F.pad(difference.float(), (0, 1))

    @cached_property
    def _sum(self) -> Float64[Tensor, "d_in"]:
        return sum(
            (part.double().sum(0) for part in slices(self.x, _ROWS)), torch.zeros(1, dtype=torch.float64)
        )

    def _fired_sum(self, feature: int) -> Float64[Tensor, "d_in"]:
        token = self.pairs.firings(feature)[0].long()
        return torch.stack([self.x.index_select(0, part).double().sum(0) for part in token.split(_ROWS)]).sum(
            0
        )

    # ---- trained directions

    def _train(self, features: Int[Tensor, "b"]) -> Float32[Tensor, "b w"]:
        config, n = self.config, len(self.x)
        joint = 1 if config.reduction == "sum" else len(features)
        decay = config.weight_decay * (PAPER_PROBES if config.reduction == "sum" else 1)
        dtype = resolve_precision(config.precision, self.device)
        positives = _Positives(self.pairs, features)
        n_fired = self.pairs.marginals.n[features]
        pos_weight = ((n - n_fired) / n_fired).float().to(self.device)
        chunks = [
            _Adam(_start(part, self.x.shape[1], config.seed).to(self.device))
            for part in features.split(_CHUNK)
        ]
        x = self._at_hand()
        factor = (config.lr_end / config.lr) ** (1 / config.epochs)
        generator = self._generator()
        steps = config.epochs * math.ceil(n / config.batch_size)
        with progress(f"probes of {len(features):,} features", steps, "batches") as advance:
            for epoch in range(config.epochs):
                for batch in torch.randperm(n, generator=generator).split(config.batch_size):
                    # Gather the activations once for all probes: they are by far the largest tensor here.
                    rows = x.index_select(0, batch.to(x.device)).to(self.device, dtype)
                    row, column = (index.to(self.device) for index in positives.of(batch))
                    for i, adam in enumerate(chunks):
                        mine = column // _CHUNK == i
                        rho = pos_weight[i * _CHUNK : (i + 1) * _CHUNK]
                        gradient = loss_gradient(adam.weights, rows, row[mine], column[mine] % _CHUNK, rho)
                        adam.step(gradient.div_(joint), config.lr * factor**epoch, decay)
                    advance(1)
        return torch.cat([adam.weights for adam in chunks]).cpu()

    def _at_hand(self) -> Float[Tensor, "n d_in"]:
        """The activations, moved to the device if they fit there, so that they are not copied in every epoch."""
        if self.device.type != "cuda":
            return self.x
        free, _ = torch.cuda.mem_get_info(self.device)
        return self.x.to(self.device) if self.x.nbytes < free / 2 else self.x


def probes_memory(n_tokens: int, d_in: int, n_probes: int, batch_size: int = 4096) -> int:
    """Peak memory in bytes of training and judging probes: their weights and moments, a batch, and logits."""
    training = 4 * (4 * n_probes + 2 * batch_size) * d_in + 3 * 4 * batch_size * _CHUNK
    # Logits of a sample in float32 and float64, and once more while they are concatenated.
    judging = 20 * min(n_tokens, QUALITY_SAMPLE) * min(n_probes, _CHUNK)
    return max(training, judging + 8 * n_probes * d_in)


def _auroc(positive: Float64[Tensor, "n_c"], negative: Float64[Tensor, "others"]) -> float:
    negative = negative.sort().values
    smaller = torch.searchsorted(negative, positive)
    smaller_or_equal = torch.searchsorted(negative, positive, right=True)
    return float((smaller + smaller_or_equal).double().mean() / (2 * len(negative)))


def _start(features: Int[Tensor, "c"], d_in: int, seed: int) -> Float32[Tensor, "c w"]:
    """Initial weights and bias, distributed as in PyTorch's Linear, drawn separately for each feature."""
    bound = 1 / math.sqrt(d_in)
    drawn = [np.random.default_rng([seed, i]).uniform(-bound, bound, d_in + 1) for i in features.tolist()]
    return torch.from_numpy(np.stack(drawn)).float()


def loss_gradient(
    weights: Float32[Tensor, "c w"],
    x: Float[Tensor, "batch d_in"],
    row: Int[Tensor, "positives"],
    column: Int[Tensor, "positives"],
    pos_weight: Float32[Tensor, "c"],
) -> Float32[Tensor, "c w"]:
    """The gradient of each of `c` probes' loss L (see the module) with respect to its weights and bias.

    weights:     `[c, d_in + 1]` weights, followed by the bias.
    x:           the batch, in the precision of the matrix products.
    row, column: the batch's positives: an activation, and a probe whose feature fires there.
    pos_weight:  rho of each probe.
    """
    z = (x @ weights[:, :-1].to(x.dtype).T).float().add_(weights[:, -1])
    fired = z[row, column]
    residual = z.sigmoid_()
    residual[row, column] = -pos_weight[column] * torch.sigmoid(-fired)
    by_weight = (residual.to(x.dtype).T @ x).float()
    return torch.cat([by_weight, residual.sum(0)[:, None]], dim=1).div_(len(x))


class _Adam:
    """Adam with L2 in the gradient: the arithmetic of PyTorch's, for weights `[c, w]`."""

    def __init__(self, weights: Float32[Tensor, "c w"]) -> None:
        self.weights = weights
        self._mean, self._square = torch.zeros_like(weights), torch.zeros_like(weights)
        self._steps = 0

    def step(self, gradient: Float32[Tensor, "c w"], lr: float, decay: float) -> None:
        """One step down `gradient`, which is overwritten."""
        self._steps += 1
        gradient.add_(self.weights, alpha=decay)
        self._mean.lerp_(gradient, 1 - _BETA1)
        self._square.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        root = torch.sqrt(self._square, out=gradient)
        root.div_(math.sqrt(1 - _BETA2**self._steps)).add_(_EPS)
        self.weights.addcdiv_(self._mean, root, value=-lr / (1 - _BETA1**self._steps))


class _Positives:
    """Finds the firings of some features within a batch, from their firings sorted by activation."""

    def __init__(self, pairs: PairStatistics, features: Int[Tensor, "c"]) -> None:
        tokens = [pairs.firings(feature)[0] for feature in features.tolist()]
        column = torch.arange(len(tokens), dtype=torch.int32)
        column = column.repeat_interleave(torch.tensor([len(token) for token in tokens]))
        token, order = torch.cat(tokens).sort(stable=True)
        self._column = column[order]
        self._width = torch.bincount(token, minlength=pairs.n_tokens)
        self._start = self._width.cumsum(0) - self._width

    def of(self, batch: Int[Tensor, "batch"]) -> tuple[Int[Tensor, "positives"], Int[Tensor, "positives"]]:
        """The rows of the batch and the columns (places in `features`) of all positives."""
        width = self._width[batch]
        # Positives of the first activation, then of the next, and so on.
        skip = self._start[batch] - (width.cumsum(0) - width)
        slots = skip.repeat_interleave(width) + torch.arange(int(width.sum()))
        return torch.arange(len(batch)).repeat_interleave(width), self._column[slots].long()
