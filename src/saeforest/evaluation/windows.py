"""What the language model makes of some windows of text, and what an SAE makes of that: the batches of the pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

from ..activations import ActivationReader
from ..interventions import put
from ..lm import LanguageModel, Site
from ..lm.model import divergences, next_token_losses
from ..measures.measure import EvalBatch, WindowLosses
from ..saes import SAE
from ..sparse_code import SparseCode
from ..text import Tokens


class Predictions(NamedTuple):
    """Of windows: the logits as they are; with zeros in place of what is reconstructed, the losses and how far
    predictions move."""

    clean: Float[Tensor, "m ctx vocab"]
    ablated: Float32[Tensor, "m next"]
    kl_ablated: Float32[Tensor, "m ctx"]


@dataclass(frozen=True, eq=False)
class WindowView:
    """What the language model makes of some windows; `through` an SAE it becomes what measures are shown.

    x:           `[w, ctx, d_out]` at the site whose activations are reconstructed.
    kept:        `[n, d_in]` what an SAE reads, at the positions that count.
    target:      `[n, d_out]` what it reconstructs there: the same, unless it is a transcoder.
    rows:        `[n]` of these positions.
    predictions: of the first windows.
    """

    reader: ActivationReader
    tokens: Tokens
    windows: Int[Tensor, "w"]
    ids: Int[Tensor, "w ctx"]
    x: Float[Tensor, "w ctx d_out"]
    keep: Bool[Tensor, "w ctx"]
    kept: Float[Tensor, "n d_in"]
    target: Float[Tensor, "n d_out"]
    rows: Int[Tensor, "n"]
    predictions: Predictions | None

    @torch.no_grad()
    def through(self, sae: SAE, *, losses: bool = True) -> EvalBatch:
        """What measures of `sae` are shown, on its device."""
        kept = self.kept.to(sae.device).float()
        if len(kept):
            code, stats = sae.encode_with_stats(kept)
            x_hat = sae.decode(code, stats)
        else:
            code = SparseCode(kept.new_zeros(0, 1), kept.new_zeros(0, 1, dtype=torch.int64))
            x_hat = kept.new_zeros(0, sae.d_out)
        return EvalBatch(
            x=kept if self.target is self.kept else self.target.to(sae.device).float(),
            rows=self.rows,
            window=(self.rows // self.tokens.context).to(sae.device),
            windows=self.windows.to(sae.device),
            code=code,
            x_hat=x_hat,
            losses=self._losses(x_hat, self.predictions) if losses and self.predictions else None,
        )

    def _losses(self, x_hat: Float32[Tensor, "n d_out"], predictions: Predictions) -> WindowLosses:
        """Sums over the kept positions, each of which predicts the next token."""
        first = slice(len(predictions.clean))
        ids, keep = self.ids[first], self.keep[first]
        spliced = put(self.x[first], x_hat[: int(keep.sum())], keep)
        logits = self.reader.lm.logits(ids, {self.reader.written: lambda _: spliced})

        def total(losses: Float32[Tensor, "w some"]) -> Float64[Tensor, "w"]:
            return torch.where(keep[:, : losses.shape[1]], losses.double(), 0).sum(1).cpu()

        return WindowLosses(
            count=keep[:, :-1].sum(1).cpu(),
            clean=total(next_token_losses(predictions.clean, ids)),
            spliced=total(next_token_losses(logits, ids)),
            ablated=total(predictions.ablated),
            kl_count=keep.sum(1).cpu(),
            kl_spliced=total(divergences(predictions.clean, logits)),
            kl_ablated=total(predictions.kl_ablated),
        )


@torch.no_grad()
def read_windows(
    reader: ActivationReader, tokens: Tokens, windows: Int[Tensor, "w"], n_losses: int = 0
) -> WindowView:
    """Reads some windows, with the logits of the first `n_losses` of them.

    Raises InputError where an activation is NaN or infinite.
    """
    ids = tokens.ids[windows].long().to(reader.lm.device)
    sites, predictions = (reader.site, *reader.others), None
    if n_losses:
        read, logits = _activations_and_logits(reader.lm, ids, sites)
        clean, first = logits[:n_losses], ids[:n_losses]
        zeros = reader.lm.logits(first, {reader.written: torch.zeros_like})
        predictions = Predictions(clean, next_token_losses(zeros, first), divergences(clean, zeros))
    else:
        read = reader.lm.activations(ids, sites)
    batch = reader.kept(tokens, windows, *(read[site.name] for site in sites))
    return WindowView(
        reader=reader,
        tokens=tokens,
        windows=windows,
        ids=ids,
        x=read[reader.written.name],
        keep=reader.keep(ids, read[reader.site.name]),
        kept=batch.x,
        target=batch.others[reader.written.name] if reader.others else batch.x,
        rows=batch.rows,
        predictions=predictions,
    )


def _activations_and_logits(
    lm: LanguageModel, ids: Int[Tensor, "w ctx"], sites: Sequence[Site]
) -> tuple[dict[str, Tensor], Float[Tensor, "w ctx vocab"]]:
    """Both from one forward pass."""
    seen: dict[str, Tensor] = {}

    def look(name: str, x: Tensor) -> None:
        seen[name] = x.clone()  # what follows might work in place

    logits = lm.logits(ids, {site: partial(look, site.name) for site in sites})
    return seen, logits
