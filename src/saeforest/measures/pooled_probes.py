"""Linear probes on pooled activations, trained as SAEBench trains those of SCR and TPP (docs/spec/probing.md#tpp)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import InputError
from ..progress import progress
from .bootstrap import FloatArray
from .pooled import BoolArray, IntArray, check_share

SelectOn = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class PooledProbeConfig:
    """How the probes are trained."""

    select_on: SelectOn = "validation"
    """Texts on which the best epoch of a probe is chosen: held-out training texts, or, as in SAEBench, the test
    texts."""
    validation: float = 0.2
    """Fraction of the training texts held out for validation."""
    epochs: int = 20
    """Number of passes over the training texts."""
    batch_size: int = 16
    """Number of texts in a training step."""
    lr: float = 1e-3
    """Learning rate of AdamW."""
    l1: float = 1e-3
    """Weight of the L1 penalty on a probe's weights."""

    def check(self, measure: str) -> None:
        """Raise InputError, naming the measure's setting, for a value out of range."""
        if self.select_on not in get_args(SelectOn):
            raise InputError(f"{measure}.select_on = {self.select_on!r}: expected validation or test")
        check_share(f"{measure}.validation", self.validation)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{measure}.{name} = {getattr(self, name)}: expected 1 or more")
        if not self.lr > 0:
            raise InputError(f"{measure}.lr = {self.lr}: expected a number above 0")
        if not self.l1 >= 0:
            raise InputError(f"{measure}.l1 = {self.l1}: expected 0 or more")


class LinearProbes(NamedTuple):
    """One probe for each class. A logit `x @ weight + bias` above 0 means that the text is in the class."""

    weight: FloatArray
    """`[C, d]`"""
    bias: FloatArray
    """`[C]`"""

    def logits(self, x: FloatArray) -> FloatArray:
        """Logits `[n, C]` of the rows of `x [n, d]`."""
        return x @ self.weight.T + self.bias


def fit_probes(
    x: FloatArray,
    rows: IntArray,
    own: BoolArray,
    check_rows: IntArray,
    check_own: BoolArray,
    config: PooledProbeConfig,
    seed: int,
    *,
    by_loss: bool = False,
) -> LinearProbes:
    """Train a probe for each row of `rows [C, a]`, on these texts of `x [n, d]`, those in `own [a]` against the others.

    check_rows, check_own: the texts on which the best epoch of each probe is chosen, `[C, b]` and `[b]`: that of the
    highest accuracy and, of several, the first, as in SAEBench, or (`by_loss`) that of the smallest loss.
    """
    data, of, target = torch.from_numpy(x).float(), torch.from_numpy(rows), torch.from_numpy(own).float()
    generator = torch.Generator().manual_seed(seed)
    # Losses and penalties are summed over the probes: each is trained as if it were alone.
    weight = torch.zeros(len(rows), x.shape[1], requires_grad=True)
    bias = torch.zeros(len(rows), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=config.lr)
    epochs: list[LinearProbes] = []
    with progress("train probes", config.epochs, "epochs") as advance:
        for _ in range(config.epochs):
            for batch in torch.randperm(len(own), generator=generator).split(config.batch_size):
                logits = (data[of[:, batch]] @ weight[:, :, None])[..., 0] + bias[:, None]
                losses = F.binary_cross_entropy_with_logits(
                    logits, target[batch].expand_as(logits), reduction="none"
                )
                optimizer.zero_grad()
                (losses.mean(1).sum() + config.l1 * weight.abs().sum()).backward()
                optimizer.step()
            epochs.append(LinearProbes(*(t.detach().double().numpy().copy() for t in (weight, bias))))
            advance(1)
    logits = np.stack([asked(probes.logits(x), check_rows) for probes in epochs])
    wrong = ((logits > 0) != check_own).mean(2)
    loss = np.logaddexp(0, np.where(check_own, -logits, logits)).mean(2)
    best = [np.lexsort((loss[:, c] * by_loss, wrong[:, c]))[0] for c in range(len(rows))]
    return LinearProbes(
        np.stack([epochs[e].weight[c] for c, e in enumerate(best)]),
        np.array([epochs[e].bias[c] for c, e in enumerate(best)]),
    )


def asked(logits: FloatArray, rows: IntArray) -> FloatArray:
    """Each probe's logits on its own texts: `[C, b]`, from `logits [n, C]` and `rows [C, b]`."""
    return np.take_along_axis(logits.T, rows, axis=1)
