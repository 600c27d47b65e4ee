"""Dead features that start anew from what their parent's tokens still lack (docs/spec/tree-sae.md#start-anew)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..optim import Adam
from ..structure.forest import ROOT
from .base import SAE

# A feature starts from the mean over this many tokens, the one that is drawn and those most like it: the residual of
# one token is mostly noise, and the mean over all of a parent's tokens is near zero once the parent is trained.
_ALIKE = 16
# Residuals are compared for this many features at a time.
_FEATURES = 512


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
    direction (for a transcoder that of the activations there), with the median norm of the living rows of its layer.
    """
    begun = []
    for parent in sae.parent[features].unique().tolist():
        if parent == ROOT:
            tokens = torch.arange(len(step.u), device=sae.device)
        else:
            tokens = (step.active == parent).any(1).nonzero().flatten()
        residual, u = step.residual[tokens], step.u[tokens]
        chances = residual.square().sum(1).double().cpu()
        if not bool((chances > 0).any()):
            continue
        for part in features[sae.parent[features] == parent].split(_FEATURES):
            drawn = torch.multinomial(chances, len(part), replacement=True, generator=generator)
            rows, inputs = directions(residual, u, drawn.to(sae.device))
            sae.decoder[part] = rows
            sae.encoder[part] = inputs if sae.is_transcoder else rows
            begun.append(part)
    if not begun:
        return features[:0]
    started = torch.cat(begun)
    for start, end in zip(sae.starts[:-1], sae.starts[1:], strict=True):
        _settle(sae, optimizer, started[(started >= start) & (started < end)], dead, slice(start, end))
    return started.sort().values


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


def _settle(
    sae: SAE, optimizer: Adam, features: Int[Tensor, "m"], dead: Bool[Tensor, "d_sae"], layer: slice
) -> None:
    """Scale new encoder rows to the norm of the layer's living ones, and renew the optimizer's moments.

    The mean starts at 0 and the mean square at the layer's average: from 0, Adam's first steps would be several times
    too long.
    """
    if not len(features):
        return
    old = torch.ones(len(dead), dtype=torch.bool, device=dead.device)
    old[features] = False
    rows = torch.arange(layer.start, layer.stop, device=dead.device)
    living = rows[(old & ~dead)[layer]]
    # Without a living feature in the layer, the norm and the moments are those of all features.
    like = living if len(living) else old.nonzero().flatten()
    if not len(like):
        return
    sae.encoder[features] *= sae.encoder[like].norm(dim=1).median()
    for weight in (sae.encoder, sae.decoder):
        if state := optimizer.state.get(weight):
            state["exp_avg"][features] = 0
            square = state["exp_avg_sq"]
            square[features] = square[like].float().mean(0).to(square.dtype)
