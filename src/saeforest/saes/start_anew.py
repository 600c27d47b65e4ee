"""Dead features that start anew from what their parent's tokens still lack (docs/spec/tree-sae.md#start-anew)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..kernels import shards
from ..optim import Adam
from ..structure.forest import ROOT
from .base import SAE

# A feature starts from the mean over this many tokens, the one that is drawn and those most like it: the residual of
# one token is mostly noise, and the mean over all of a parent's tokens is near zero once the parent is trained.
_ALIKE = 16
# So many features start from the same residuals. The next ones start from what these leave.
_FEATURES = 512
# A new encoder row is at least this long, as a multiple of the living ones' median norm.
_LEAST_NORM = 0.05


class Residuals(NamedTuple):
    """What a step leaves over, from which features start anew."""

    u: Float[Tensor, "n d_in"]
    """Normalized activations minus `b_dec`."""
    residual: Float[Tensor, "n d_out"]
    """Target minus reconstruction, in normalized units."""
    active: Int[Tensor, "n k"]
    """The ids of the active features, -1 in unused slots."""


@torch.no_grad()
def start_anew(
    sae: SAE,
    optimizer: Adam,
    features: Int[Tensor, "m"],
    dead: Bool[Tensor, "d_sae"],
    step: Residuals,
    generator: torch.Generator,
) -> Int[Tensor, "a"]:
    """Give `features` new weights and new moments in the optimizer. Returns those for which there were tokens.

    A feature's decoder row becomes the direction of what is missing on some tokens of the batch on which its parent is
    active (on all tokens, for a child of the root). One of these is drawn with a probability in proportion to its
    squared error, and the row is the mean of its residual and of those most like it. The encoder row is the same
    direction (for a transcoder that of the activations there), with the norm that reconstructs most of what is missing.
    """
    fresh = torch.zeros(len(dead), dtype=torch.bool, device=dead.device)
    fresh[features] = True
    like = [_living(~fresh, dead, start, end) for start, end in pairwise(sae.starts)]
    starts = torch.tensor(sae.starts[1:-1], device=features.device)
    norms = shards.rows_of(sae.encoder.to(sae.dtype).norm(dim=1), slice(0, sae.d_sae))
    medians = torch.stack([norms[rows].median() for rows in like])
    begun = []
    for parent in sae.parent[features].unique().tolist():
        if parent == ROOT:
            tokens = torch.arange(len(step.u), device=sae.device)
        else:
            tokens = (step.active == parent).any(1).nonzero().flatten()
        left, u = step.residual[tokens], step.u[tokens]
        for part in features[sae.parent[features] == parent].split(_FEATURES):
            chances = left.square().sum(1).double().cpu()
            if not bool((chances > 0).any()):
                break
            drawn = torch.multinomial(chances, len(part), replacement=True, generator=generator)
            rows, inputs = directions(left, u, drawn.to(sae.device))
            inputs = inputs if sae.is_transcoder else rows
            median = medians[torch.bucketize(part, starts, right=True)]
            lengths = fitted_norms(left, u, rows, inputs).clamp(median * _LEAST_NORM, median)
            shards.put_rows(sae.decoder, part, rows)
            shards.put_rows(sae.encoder, part, lengths[:, None] * inputs)
            left = left - ((u @ inputs.T).relu() * lengths) @ rows
            begun.append(part)
    if not begun:
        return features[:0]
    started = torch.cat(begun).sort().values
    for (start, end), rows in zip(pairwise(sae.starts), like, strict=True):
        mine = started[(started >= start) & (started < end)]
        for weight in (sae.encoder, sae.decoder) if len(mine) else ():
            optimizer.renew(weight, mine, rows)
    return started


def _living(
    old: Bool[Tensor, "d_sae"], dead: Bool[Tensor, "d_sae"], start: int, end: int
) -> Int[Tensor, "m"]:
    """The living features of a layer, without those that start anew. If there are none, those of all layers; then all
    features that do not start anew; then all."""
    inside = torch.zeros_like(old)
    inside[start:end] = True
    for found in (old & ~dead & inside, old & ~dead, old, torch.ones_like(old)):
        if bool(found.any()):
            break
    return found.nonzero().flatten()


def directions(
    residual: Float[Tensor, "t d_out"], u: Float[Tensor, "t d_in"], drawn: Int[Tensor, "m"]
) -> tuple[Float[Tensor, "m d_out"], Float[Tensor, "m d_in"]]:
    """Unit vectors along the mean residual, and the mean activation, of each drawn token and those most like it.

    Tokens are alike by the cosine of their residuals; each counts with its cosine, and only if that is positive.
    """
    unit = F.normalize(residual)
    cosine, alike = (unit[drawn] @ unit.T).topk(min(_ALIKE, len(unit)), dim=1)
    weight = cosine.clamp(min=0)[:, :, None]
    return F.normalize((weight * residual[alike]).sum(1)), F.normalize((weight * u[alike]).sum(1))


def fitted_norms(
    residual: Float[Tensor, "t d_out"],
    u: Float[Tensor, "t d_in"],
    rows: Float[Tensor, "m d_out"],
    inputs: Float[Tensor, "m d_in"],
) -> Float[Tensor, "m"]:
    """The norm of each encoder row with which its feature alone would explain most of the residual, by least squares;
    shared among features that begin alike, which would otherwise explain the same several times."""
    value = (u @ inputs.T).relu()
    fitted = (value * (residual @ rows.T)).sum(0) / value.square().sum(0).clamp(min=1e-30)
    return fitted / (rows @ rows.T).clamp(min=0).square().sum(1)
