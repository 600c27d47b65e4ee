"""Reading the activations of token windows, at one or several sites of a language model in one forward pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn

from ..errors import InputError
from ..lm import LanguageModel, Site
from ..lm.shared_start import blocks_before
from ..text import Tokens, bos_before

_CHECKED_ROWS = 512


@runtime_checkable
class Backend(Protocol):
    """Computes the activations of windows of tokens. A `LanguageModel` is one."""

    def activations(self, ids: Int[Tensor, "w ctx"], sites: Sequence[Site]) -> dict[str, Tensor]:
        """Activations `[w, ctx, d]` at each of the sites, by name."""
        ...


@dataclass(frozen=True, eq=False)
class ActivationBatch:
    """Activations, and the position of each in the text.

    x:      activations at the first site, `[n, d_in]`.
    rows:   `[n]` int64, flat positions in the `Tokens` they were read from. `Tokens.document_of`,
            `Tokens.document_position` and `Tokens.context_position` turn them into documents and positions.
    others: activations at other sites for the same rows, `[n, d]` each, by name of the site.
    """

    x: Float[Tensor, "n d_in"]
    rows: Int[Tensor, "n"]
    others: Mapping[str, Float[Tensor, "n _"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def each(self, choose: Callable[[Tensor], Tensor]) -> ActivationBatch:
        """The batch with `choose`, a function that selects rows, applied to every tensor."""
        others = {name: choose(x) for name, x in self.others.items()}
        return ActivationBatch(choose(self.x), choose(self.rows), others)


def concatenated(parts: Sequence[ActivationBatch]) -> ActivationBatch:
    """All batches joined into one, in order."""
    if len(parts) == 1:
        return parts[0]
    others = {name: torch.cat([part.others[name] for part in parts]) for name in parts[0].others}
    return ActivationBatch(
        torch.cat([part.x for part in parts]), torch.cat([part.rows for part in parts]), others
    )


def row_norms(x: Float[Tensor, "*rows d_in"]) -> Float32[Tensor, "*rows"]:
    """The L2 norm of every row, in float32."""
    return x.float().norm(dim=-1)


def _norms_of_finite(x: Float[Tensor, "*rows d_in"]) -> Float32[Tensor, "*rows"]:
    """The norm of every row; NaN if an entry is NaN or infinite, infinite if only the norm overflows."""
    norms = row_norms(x)
    if bool(norms.isfinite().all()):
        return norms
    return torch.where(x.isfinite().all(-1), norms, torch.nan)


def all_finite(x: Float[Tensor, "n d_in"]) -> bool:
    """Whether all entries are finite."""
    # Norms are many times faster than isfinite over all entries, whose temporaries are as large as x. A sum of squares
    # may overflow although all entries are finite, so rows with an infinite norm are checked again.
    return all(
        bool(row_norms(part).isfinite().all()) or bool(part.isfinite().all())
        for part in x.split(_CHECKED_ROWS)
    )


@dataclass(frozen=True, eq=False)
class _Arriving:
    """Activations on their way from the GPU: they may be used once `arrived` has occurred, or at once if it is None."""

    x: dict[str, Float[Tensor, "w ctx _"]]
    """Activations by name of the site, `ActivationReader.site` first."""
    arrived: torch.cuda.Event | None


@dataclass
class ActivationReader:
    """Reads activations at a site (and at `others`), without the positions that would dominate all others.

    The first position of a window is an attention sink, whose norm is about a hundred times larger than others;
    occasionally the sink is a few positions later (docs/spec/activations.md#sinks). Special tokens carry no text. By
    default all of these are left out.
    """

    lm: LanguageModel
    site: Site
    exclude_first: bool = True
    exclude_special: bool = True
    max_norm: float = 0.0
    """Largest L2 norm at `site`; positions with a larger one are left out. 0: no limit."""
    batch_size: int = 16
    """Number of windows in one forward pass of the language model."""
    bos: Literal["auto", "yes", "no"] = "auto"
    """Whether BOS stands before every text. auto: if the tokenizer puts it there."""
    others: tuple[Site, ...] = ()
    """Other sites, read in the same forward passes, at the positions that are kept at `site`."""
    backend: Backend | None = None
    """What computes the activations, if not `lm` itself."""
    seconds: float = field(default=0.0, init=False)
    """Time spent in the language model so far, in seconds."""
    seconds_checks: float = field(default=0.0, init=False)
    """Time spent selecting and checking activations so far, in seconds."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @cached_property
    def bos_id(self) -> int | None:
        """The id of the token that stands before every text; None if there is none."""
        return bos_before(self.lm.tokenizer, self.bos, self.lm.name)

    @property
    def written(self) -> Site:
        """The site whose activations are reconstructed: `site`, or the target of a transcoder."""
        return self.others[-1] if self.others else self.site

    @cached_property
    def shared_blocks(self) -> tuple[nn.Module, ...]:
        """The blocks that run once for all passes that differ only from `written` on."""
        return blocks_before(self.lm, self.written)

    @cached_property
    def widths(self) -> dict[str, int]:
        """The width of every site, by name."""
        return {site.name: self.lm.site_width(site) for site in (self.site, *self.others)}

    def keep(
        self, ids: Int[Tensor, "batch ctx"], x: Float[Tensor, "batch ctx d_in"] | None = None
    ) -> Bool[Tensor, "batch ctx"]:
        """Which positions are kept: by position and token alone or, if activations are given, also by their norm."""
        return self._keep(ids, None if x is None or not self.max_norm else _norms_of_finite(x))

    def _keep(
        self, ids: Int[Tensor, "batch ctx"], norms: Float32[Tensor, "batch ctx"] | None
    ) -> Bool[Tensor, "batch ctx"]:
        keep = torch.ones_like(ids, dtype=torch.bool)
        if self.exclude_first:
            keep[:, 0] = False
        if self.exclude_special:
            keep &= ~torch.isin(ids, self.lm.special_ids.to(ids))
        if norms is not None and self.max_norm:
            # A norm of NaN compares false, so the position is kept and reported as an error later.
            keep &= ~(norms > self.max_norm).to(keep.device)
        return keep

    def settle_max_norm(self, tokens: Tokens, ratio: float = 10.0) -> None:
        """Set `max_norm` to `ratio` times the median norm in the first windows of a text."""
        first = self.read(tokens, torch.arange(min(self.batch_size, len(tokens.ids))))
        self.max_norm = round(ratio * float(first.x.float().norm(dim=1).median()), 3)

    def read(self, tokens: Tokens, windows: Int[Tensor, "w"]) -> ActivationBatch:
        """The activations of the given windows, in order, on the CPU and in the data type of the language model.

        Raises InputError if an activation is NaN or infinite.
        """
        return self._finish(tokens, windows, self._begin(tokens, windows))

    def _begin(self, tokens: Tokens, windows: Int[Tensor, "w"]) -> _Arriving:
        # Reading a site places hooks in the model, so two threads must not do it at the same time.
        with self._lock:
            start = time.perf_counter()
            ids = tokens.ids[windows].long().to(self.lm.device, non_blocking=True)
            read = (self.backend or self.lm).activations(ids, (self.site, *self.others))
            # Copy from a GPU to pinned memory without waiting, so that it can start on the next windows.
            cuda = self.lm.device.type == "cuda"
            x = {
                site.name: read[site.name].to("cpu", non_blocking=cuda) for site in (self.site, *self.others)
            }
            arrived = None
            if cuda:
                arrived = torch.cuda.Event()
                arrived.record(torch.cuda.current_stream(self.lm.device))
            self.seconds += time.perf_counter() - start
        return _Arriving(x, arrived)

    def _finish(self, tokens: Tokens, windows: Int[Tensor, "w"], coming: _Arriving) -> ActivationBatch:
        start = time.perf_counter()
        if coming.arrived is not None:
            coming.arrived.synchronize()
        there = time.perf_counter()
        batch = self.kept(tokens, windows, *coming.x.values())
        self.seconds += there - start
        self.seconds_checks += time.perf_counter() - there
        return batch

    def kept(
        self,
        tokens: Tokens,
        windows: Int[Tensor, "w"],
        x: Float[Tensor, "w ctx d_in"],
        *others: Float[Tensor, "w ctx _"],
    ) -> ActivationBatch:
        """Keep the activations at positions that are not left out. The result is on the device of `x`.

        x:      activations of the given windows at `site`.
        others: activations at the other sites, in their order.
        Raises InputError if an activation that is kept is NaN or infinite.
        """
        # In one pass, the norm of a row shows whether it is too large and whether all its entries are finite.
        norms = _norms_of_finite(x)
        keep = self._keep(tokens.ids[windows], norms)
        rows = (windows[:, None] * tokens.context + torch.arange(tokens.context))[keep]
        places = keep.flatten().nonzero().flatten().to(x.device)
        batch = ActivationBatch(
            x.flatten(0, 1).index_select(0, places),
            rows,
            {
                site.name: other.flatten(0, 1).index_select(0, places)
                for site, other in zip(self.others, others, strict=False)
            },
        )
        if not bool(norms.flatten().index_select(0, places).isfinite().all()):
            self._check_finite(self.site, batch.x, rows, tokens)
        for site in self.others[: len(others)]:
            if not all_finite(batch.others[site.name]):
                self._check_finite(site, batch.others[site.name], rows, tokens)
        return batch

    def batches(
        self, tokens: Tokens, windows: Int[Tensor, "w"] | None = None
    ) -> Iterator[tuple[ActivationBatch, int]]:
        """Yield the activations of all (or the given) windows in order, with the number of tokens in each batch."""
        if windows is None:
            windows = torch.arange(len(tokens.ids))
        before: tuple[Tensor, _Arriving] | None = None
        for part in windows.split(self.batch_size):
            # Start the forward pass of the next windows before yielding the previous ones.
            coming = self._begin(tokens, part)
            if before is not None:
                yield self._finish(tokens, *before), before[0].numel() * tokens.context
            before = part, coming
        if before is not None:
            yield self._finish(tokens, *before), before[0].numel() * tokens.context

    def _check_finite(
        self, site: Site, x: Float[Tensor, "n d"], rows: Int[Tensor, "n"], tokens: Tokens
    ) -> None:
        if bool(torch.isfinite(x).all()):
            return
        row = rows[~torch.isfinite(x).all(1).cpu()][:1]
        document = tokens.names[int(tokens.document_of(row))]
        wide = self.lm.dtype.itemsize >= torch.float32.itemsize
        advice = "choose another site" if wide else "set lm.dtype to float32, or choose another site"
        raise InputError(
            f"activations at {site.name} of {self.lm.name}: NaN or infinite in document '{document}', "
            f"token {int(tokens.document_position(row))}; {advice}"
        )
