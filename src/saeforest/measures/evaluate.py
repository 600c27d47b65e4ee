"""One pass over held-out text that feeds every measure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

from .. import __version__
from ..activations import ActivationReader
from ..code import SparseCode
from ..forest import Forest
from ..progress import progress
from ..saes import SAE
from ..text import Tokens
from .measure import EvalBatch, WindowLosses
from .record import Record
from .registry import MEASURES


@dataclass(frozen=True)
class Source:
    """Where text and SAE come from, for the records."""

    data: str
    """As given to `tokenize`."""
    split: str
    seed: int
    """Of the run: its text, its weights."""
    sae: str
    """Path or name."""


def evaluate(
    sae: SAE,
    reader: ActivationReader,
    tokens: Tokens,
    names: Iterable[str],
    source: Source,
    *,
    ce_tokens: int,
    forest: Forest | None = None,
) -> dict[str, Record]:
    """The records of the named measures (see `measure_names`), by name.

    Excluded positions (`reader.keep`) are neither measured nor replaced. Losses take three forward passes of the
    language model, so they are taken on the first `ce_tokens` tokens only, rounded up to whole windows.
    `forest` stands in for the SAE's own.

    Raises UserError where an activation is NaN or infinite, RuntimeError where an identity is broken.
    """
    forest = sae.forest if forest is None else forest
    measures = {name: MEASURES[name](sae, forest) for name in names}
    losses = any(measure.needs_losses for measure in measures.values())
    n_loss_windows = -(-ce_tokens // tokens.context) if losses else 0
    with progress("measure", tokens.n_tokens, "tokens") as advance:
        for windows in torch.arange(len(tokens.ids)).split(reader.batch_size):
            batch = read_batch(sae, reader, tokens, windows, int((windows < n_loss_windows).sum()))
            for measure in measures.values():
                measure.update(batch)
            advance(windows.numel() * tokens.context)
    settings = _settings(sae, reader, tokens, source)
    return {name: measure.record(settings) for name, measure in measures.items()}


def _settings(sae: SAE, reader: ActivationReader, tokens: Tokens, source: Source) -> dict[str, Any]:
    return {
        **asdict(source),
        "model": reader.lm.name,
        "site": reader.site.name,
        "lm_dtype": str(reader.lm.dtype).removeprefix("torch."),
        "sae_dtype": str(sae.compute_dtype).removeprefix("torch."),
        "context": tokens.context,
        "tokens_read": tokens.n_tokens,
        "batch": f"{reader.batch_size} windows",
        "positions": {
            "exclude_first": reader.exclude_first,
            "exclude_special": reader.exclude_special,
            "max_norm": reader.max_norm,
        },
        "normalize_activations": sae.config.normalize_activations,
        "activation_threshold": sae.config.activation_threshold,
        "reading": "recommended",
        "version": __version__,
    }


@torch.no_grad()
def read_batch(
    sae: SAE, reader: ActivationReader, tokens: Tokens, windows: Int[Tensor, "w"], n_losses: int = 0
) -> EvalBatch:
    """What the measures see of some windows, on the SAE's device; with losses of the first `n_losses` of them.

    Raises UserError where an activation is NaN or infinite.
    """
    ids = tokens.ids[windows].long().to(reader.lm.device)
    if n_losses:
        x, clean = _activations_and_losses(reader, ids)
    else:
        x, clean = reader.lm.activations(ids, reader.site), None
    keep = reader.keep(ids, x)
    batch = reader.kept(tokens, windows, x)
    kept = batch.x.to(sae.device).float()
    if len(kept):
        code, stats = sae.encode_with_stats(kept)
        x_hat = sae.decode(code, stats)
    else:
        code, x_hat = SparseCode(kept.new_zeros(0, 1), kept.new_zeros(0, 1, dtype=torch.int64)), kept
    losses = None
    if clean is not None:
        first = slice(n_losses)
        spliced = x[first].clone()
        n_rows = int(keep[first].sum())
        spliced[keep[first]] = x_hat[:n_rows].to(spliced)
        losses = _losses(reader, ids[first], keep[first], clean[first], spliced)
    return EvalBatch(
        x=kept,
        rows=batch.rows,
        window=(batch.rows // tokens.context).to(sae.device),
        windows=windows.to(sae.device),
        code=code,
        x_hat=x_hat,
        losses=losses,
    )


def _activations_and_losses(
    reader: ActivationReader, ids: Int[Tensor, "w ctx"]
) -> tuple[Float[Tensor, "w ctx d"], Float32[Tensor, "w next"]]:
    """Both from one forward pass."""
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x.clone())  # what follows might work in place
        return x

    losses = reader.lm.token_losses(ids, reader.site, look)
    return seen[0], losses


def _losses(
    reader: ActivationReader,
    ids: Int[Tensor, "w ctx"],
    keep: Bool[Tensor, "w ctx"],
    clean: Float32[Tensor, "w next"],
    spliced: Float[Tensor, "w ctx d"],
) -> WindowLosses:
    """Sums over the kept positions, each of which predicts the next token."""
    counts = keep[:, :-1]

    def total(losses: Float32[Tensor, "w next"]) -> Float64[Tensor, "w"]:
        return torch.where(counts, losses.double(), 0).sum(1).cpu()

    return WindowLosses(
        count=counts.sum(1).cpu(),
        clean=total(clean),
        spliced=total(reader.lm.token_losses(ids, reader.site, lambda _: spliced)),
        ablated=total(reader.lm.token_losses(ids, reader.site, torch.zeros_like)),
    )
