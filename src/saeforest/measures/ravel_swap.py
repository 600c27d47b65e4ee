"""RAVEL's intervention: features of one entity in place of another's, by a mask (docs/spec/ravel.md#mask)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..activations import ActivationReader
from ..progress import progress
from ..saes import SAE
from .ravel_prompts import Known, Pair, answers, last_logits

_TEMPERATURES = (0.0, -4.0)  # powers of ten, first and last


class Swap(NamedTuple):
    """What is swapped at the entity's last token of some known prompts, each with all others.

    x:     `[p, d]` activations.
    plain: `[p, d]` what they become if nothing is swapped: the reconstruction, or x if its error is kept.
    f:     `[p, F]` codes, without features that take no part in the reconstruction.
    std:   `[p, 1]` the scale of each token.
    """

    x: Float[Tensor, "p d"]
    plain: Float[Tensor, "p d"]
    f: Float[Tensor, "p d_sae"]
    std: Float[Tensor, "p 1"]
    decoder: Float[Tensor, "d_sae d"]

    def mixed(
        self, base: Sequence[int], source: Sequence[int], mask: Float[Tensor, "d_sae"]
    ) -> Float[Tensor, "b d"]:
        """The activations of the base prompts with the masked features of the source prompts."""
        rows, others = torch.tensor(base), torch.tensor(source)
        change = mask * (self.f[others] - self.f[rows])
        return self.plain[rows] + self.std[rows] * (change @ self.decoder)


@torch.no_grad()
def swap_of(sae: SAE, x: Float[Tensor, "p d"], error: bool) -> Swap:
    """What swapping needs of the activations `x`, in float32 on the SAE's device."""
    x = x.to(sae.device).float()
    code, stats = sae.encode_with_stats(x)
    plain = x if error else sae.decode(code, stats).float()
    f = code.dense(sae.d_sae).float() * sae.in_reconstruction
    return Swap(x, plain, f, stats.std.float().expand(len(x), 1), sae.W_dec.detach().float())


class Site(NamedTuple):
    """Known prompts with the activations at their entities, ready to be changed."""

    reader: ActivationReader
    known: Sequence[Known]
    swap: Swap

    def hooks(self, base: Sequence[int], x: Float[Tensor, "b d"]) -> dict[Any, Callable[[Tensor], Tensor]]:
        """Hooks that put `x` at the entities of the base prompts."""
        at = torch.tensor([self.known[b].ask.at for b in base])

        def hook(whole: Tensor) -> Tensor:
            changed = whole.clone()
            changed[torch.arange(len(base)), at] = x.to(whole)
            return changed

        return {self.reader.site: hook}


def train_mask(
    site: Site, pairs: Sequence[Pair], epochs: int, batch_size: int, lr: float, rng: np.random.Generator
) -> Float[Tensor, "d_sae"]:
    """The mask z of an attribute, trained on pairs. The last batch of an epoch may be smaller."""
    z = torch.zeros(site.swap.f.shape[1], device=site.swap.f.device, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=lr)
    batches = [
        [pairs[i] for i in order[first : first + batch_size]]
        for order in (rng.permutation(len(pairs)) for _ in range(epochs))
        for first in range(0, len(pairs), batch_size)
    ]
    with progress("train a mask", len(batches), "steps") as advance, torch.enable_grad():
        for batch, temperature in zip(
            batches, torch.logspace(*_TEMPERATURES, len(batches)).tolist(), strict=True
        ):
            loss = mask_loss(site, batch, torch.sigmoid(z / temperature))
            optimizer.zero_grad()
            (z.grad,) = torch.autograd.grad(loss, z)
            optimizer.step()
            advance(1)
    return z.detach()


def mask_loss(site: Site, batch: Sequence[Pair], mask: Float[Tensor, "d_sae"]) -> Float[Tensor, ""]:
    """The mean cross-entropy of the first completed token: the source's where it should change, else the base's."""
    base, source = [p.base for p in batch], [p.source for p in batch]
    x = site.swap.mixed(base, source, mask)
    logits = last_logits(site.reader, [site.known[b].ask.ids for b in base], site.hooks(base, x))
    target = [site.known[p.source if p.cause else p.base].first for p in batch]
    return F.cross_entropy(logits, torch.tensor(target, device=logits.device))


def completed(
    site: Site, pairs: Sequence[Pair], mask: Float[Tensor, "d_sae"], n_tokens: int
) -> Bool[np.ndarray, "n"]:
    """For each pair, whether the completion under a mask is as it should be."""
    base, source = [p.base for p in pairs], [p.source for p in pairs]
    x = site.swap.mixed(base, source, mask)
    wanted = [site.known[p.source if p.cause else p.base].ask.value for p in pairs]

    def hooks(rows: Sequence[int]) -> dict[Any, Callable[[Tensor], Tensor]]:
        return site.hooks([base[i] for i in rows], x[list(rows)])

    said = answers(site.reader, [site.known[b].ask.ids for b in base], wanted, n_tokens, hooks)
    return np.array([right for right, _ in said], dtype=bool)
