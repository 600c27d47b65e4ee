"""The batches of the pass: the language model's activations and losses on some windows, and an SAE's codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

from ..activations import ActivationReader
from ..interventions import put
from ..lm import LanguageModel, Site
from ..lm.model import losses_and_divergences, next_token_losses
from ..lm.shared_start import SharedStart
from ..measures.measure import EvalBatch, Spliced, WindowLosses
from ..saes import SAE
from ..sparse_code import SparseCode
from ..text import Tokens


class Predictions(NamedTuple):
    """Predictions of the language model on windows.

    start:      what all passes over these windows share.
    logits:     `[m, ctx, vocab]` logits of the unchanged model.
    clean:      `[m, ctx - 1]` losses, in nats, of these predictions.
    ablated:    `[m, ctx - 1]` losses, in nats, with the activations replaced by zeros.
    kl_ablated: `[m, ctx]` KL divergence, in nats, of these predictions from the unchanged ones.
    """

    start: SharedStart
    logits: Float[Tensor, "m ctx vocab"]
    clean: Float32[Tensor, "m next"]
    ablated: Float32[Tensor, "m next"]
    kl_ablated: Float32[Tensor, "m ctx"]


class Parts(NamedTuple):
    """Parts of windows with one document each.

    of:     `[w, ctx]` the part that each position belongs to.
    first:  `[parts]` row (see `Tokens`) of the first position of each part.
    origin: `[parts, 2]` window and document of each part.
    """

    of: Int[Tensor, "w ctx"]
    first: Int[Tensor, "parts"]
    origin: Int[Tensor, "parts 2"]


@dataclass(frozen=True, eq=False)
class WindowView:
    """Activations and predictions of the language model on some windows; `through` gives the batch for one SAE.

    x:           `[w, ctx, d_out]` activations at the site that the SAE reconstructs.
    keep:        `[w, ctx]` which positions are measured.
    kept:        `[n, d_in]` the SAE's inputs at the measured positions.
    target:      `[n, d_out]` what it should reconstruct there: the same as `kept`, unless it is a transcoder.
    rows:        `[n]` rows (see `Tokens`) of the measured positions.
    predictions: predictions on the first windows; None if no losses are needed.
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
        """The batch for the measures of `sae`, on its device."""
        kept = self.kept.to(sae.device).float()
        if len(kept):
            code, stats = sae.encode_with_stats(kept)
            x_hat = sae.decode(code, stats)
        else:
            code, stats = SparseCode(kept.new_zeros(0, 1), kept.new_zeros(0, 1, dtype=torch.int64)), None
            x_hat = kept.new_zeros(0, sae.d_out)

        def spliced_level(level: int) -> Spliced:
            of_level = sae.decode(code, stats, level) if len(kept) else x_hat
            assert self.predictions is not None
            return self._spliced(of_level, self.predictions)

        losses = losses and self.predictions is not None
        return EvalBatch(
            x=kept if self.target is self.kept else self.target.to(sae.device).float(),
            rows=self.rows,
            window=self.of_rows.to(sae.device),
            windows=self.parts.first.to(sae.device),
            origin=self.parts.origin,
            code=code,
            x_hat=x_hat,
            losses=self._losses(x_hat, self.predictions) if losses and self.predictions else None,
            spliced_level=spliced_level if losses else None,
        )

    def _losses(self, x_hat: Float32[Tensor, "n d_out"], predictions: Predictions) -> WindowLosses:
        """Losses summed over the measured positions of each window; each position predicts the next token."""
        keep = self.keep[: len(predictions.logits)]
        spliced = self._spliced(x_hat, predictions)
        return WindowLosses(
            count=self._total(torch.ones_like(keep[:, :-1], dtype=torch.float32)).long(),
            clean=self._total(predictions.clean),
            spliced=spliced.spliced,
            ablated=self._total(predictions.ablated),
            kl_count=self._total(torch.ones_like(keep, dtype=torch.float32)).long(),
            kl_spliced=spliced.kl_spliced,
            kl_ablated=self._total(predictions.kl_ablated),
        )

    def _spliced(self, x_hat: Float32[Tensor, "n d_out"], predictions: Predictions) -> Spliced:
        first = slice(len(predictions.logits))
        ids, keep = self.ids[first], self.keep[first]
        spliced = put(self.x[first], x_hat[: int(keep.sum())], keep)
        logits = predictions.start.logits(ids, {self.reader.written: lambda _: spliced})
        losses, kl = losses_and_divergences(logits, ids, predictions.logits)
        return Spliced(self._total(losses), self._total(kl))

    def _total(self, losses: Float32[Tensor, "m some"]) -> Float64[Tensor, "w"]:
        """Sums over the measured positions of the first windows, for each of their parts."""
        first, n = self.parts.of[: len(losses)], losses.shape[1]
        kept = torch.where(self.keep[: len(losses), :n], losses.double(), 0).cpu()
        # On the CPU, where the order of additions is the same every time.
        total = torch.zeros(int(first.max()) + 1, dtype=torch.float64)
        return total.index_add_(0, first[:, :n].flatten(), kept.flatten())

    @cached_property
    def of_rows(self) -> Int[Tensor, "n"]:
        """The first row of the part in which each measured position is."""
        return self.parts.first[self.parts.of[self.keep.cpu()]]

    @cached_property
    def parts(self) -> Parts:
        """The windows, cut where documents end."""
        context = self.tokens.context
        rows = self.windows.cpu()[:, None] * context + torch.arange(context)
        document = self.tokens.document_of(rows.flatten()).view_as(rows)
        starts = torch.ones_like(rows, dtype=torch.bool)
        starts[:, 1:] = document[:, 1:] != document[:, :-1]
        of = starts.flatten().cumsum(0).view_as(rows) - 1
        first = rows[starts]
        return Parts(of, first, torch.stack([first // context, document[starts]], dim=1))


@torch.no_grad()
def read_windows(
    reader: ActivationReader, tokens: Tokens, windows: Int[Tensor, "w"], n_losses: int = 0
) -> WindowView:
    """Run the language model on some windows, and keep the logits of the first `n_losses` of them.

    Raises InputError if an activation is NaN or infinite.
    """
    ids = tokens.ids[windows].long().to(reader.lm.device)
    sites, predictions = (reader.site, *reader.others), None
    if n_losses:
        start = SharedStart(reader.lm, reader.shared_blocks)
        with start.first_pass():
            read, logits = _activations_and_logits(reader.lm, ids, sites)
        clean, first = logits[:n_losses], ids[:n_losses]
        zeros = start.logits(first, {reader.written: torch.zeros_like})
        ablated = losses_and_divergences(zeros, first, clean)
        predictions = Predictions(start, clean, next_token_losses(clean, first), *ablated)
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
        seen[name] = x.clone()  # later modules may change it in place

    logits = lm.logits(ids, {site: partial(look, site.name) for site in sites})
    return seen, logits
