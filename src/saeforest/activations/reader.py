"""Activations of token windows, read at one site of a language model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..lm import LanguageModel, Site
from ..text import Tokens


@dataclass(frozen=True, eq=False)
class ActivationBatch:
    """Activations and where each comes from.

    x:    `[n, d_in]`
    rows: `[n]` int64, flat positions in the `Tokens` they were read from, which knows the document and the
          position of each (`Tokens.document_of`, `Tokens.document_position`, `Tokens.context_position`).
    """

    x: Float[Tensor, "n d_in"]
    rows: Int[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class ActivationReader:
    """Reads the activations at a site, without the positions that would drown the rest.

    The first position of a window is an attention sink with a norm a hundred times the others' (SPEC 0.3, trap 4), and
    now and then the sink sits a few positions later; special tokens carry no text. All are left out unless asked for.
    """

    lm: LanguageModel
    site: Site
    exclude_first: bool = True
    exclude_special: bool = True
    max_norm: float = 0.0
    """Activations of a larger norm are left out; 0 for no limit."""
    batch_size: int = 16
    """Windows in one forward pass of the language model."""
    seconds: float = field(default=0.0, init=False)
    """Time spent in the language model so far."""

    def keep(
        self, ids: Int[Tensor, "batch ctx"], x: Float[Tensor, "batch ctx d_in"] | None = None
    ) -> Bool[Tensor, "batch ctx"]:
        """Which positions count: by place and token alone, or with the activations by their norm too."""
        keep = torch.ones_like(ids, dtype=torch.bool)
        if self.exclude_first:
            keep[:, 0] = False
        if self.exclude_special:
            keep &= ~torch.isin(ids, self.lm.special_ids.to(ids))
        if x is not None and self.max_norm:
            norm = x.float().norm(dim=-1)
            keep &= ~((norm > self.max_norm) & norm.isfinite()).to(keep.device)
        return keep

    def settle_max_norm(self, tokens: Tokens, ratio: float = 10.0) -> None:
        """Sets `max_norm` to `ratio` times the median norm in the first windows of a text."""
        first = self.read(tokens, torch.arange(min(self.batch_size, len(tokens.ids))))
        self.max_norm = round(ratio * float(first.x.float().norm(dim=1).median()), 3)

    def read(self, tokens: Tokens, windows: Int[Tensor, "w"]) -> ActivationBatch:
        """The activations of the given windows, in order; on the CPU, in the language model's dtype.

        Raises UserError where an activation is NaN or infinite.
        """
        start = time.perf_counter()
        x = self.lm.activations(tokens.ids[windows].long().to(self.lm.device), self.site).cpu()
        self.seconds += time.perf_counter() - start
        return self.kept(tokens, windows, x)

    def kept(
        self, tokens: Tokens, windows: Int[Tensor, "w"], x: Float[Tensor, "w ctx d_in"]
    ) -> ActivationBatch:
        """Of activations read at the given windows, those at positions that count, on the device of `x`.

        Raises UserError where one is NaN or infinite.
        """
        keep = self.keep(tokens.ids[windows], x)
        rows = (windows[:, None] * tokens.context + torch.arange(tokens.context))[keep]
        batch = ActivationBatch(x[keep.to(x.device)], rows)
        self._check_finite(batch, tokens)
        return batch

    def batches(
        self, tokens: Tokens, windows: Int[Tensor, "w"] | None = None
    ) -> Iterator[tuple[ActivationBatch, int]]:
        """Activations of all (or the given) windows in order, with the number of tokens read for each batch."""
        if windows is None:
            windows = torch.arange(len(tokens.ids))
        for part in windows.split(self.batch_size):
            yield self.read(tokens, part), part.numel() * tokens.context

    def _check_finite(self, batch: ActivationBatch, tokens: Tokens) -> None:
        if bool(torch.isfinite(batch.x).all()):
            return
        row = batch.rows[~torch.isfinite(batch.x).all(1).cpu()][:1]
        document = tokens.names[int(tokens.document_of(row))]
        raise UserError(
            f"activations at {self.site.name} of {self.lm.name}: NaN or infinite at document '{document}', "
            f"token {int(tokens.document_position(row))}; read the model in float32 (--lm.dtype float32) "
            "or choose another site"
        )
