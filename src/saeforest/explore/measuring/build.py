"""Building the index in one pass over activations, each row once; the rest is computed from what fired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ...activations import ActivationBatch
from ...errors import InputError
from ...lm import LanguageModel
from ...measures.cooccurrence import SiblingPairs
from ...memory import Forecast
from ...progress import progress
from ...saes import SAE
from ...sparse_code import SparseCode
from ...spill import Spill
from ...structure.directions import RIDGE, nearness_to
from ...structure.forest import Forest
from ...structure.pairs import PairStatistics
from ...text import Tokens
from ..index import About, Geometry, Index, fingerprint
from ..index.form import COLUMN, CONTEXTS, NULL, PLACE, unused
from .columns import COLUMNS
from .counts import PAIR_FIRINGS, Counts
from .edges import detected, edge_columns, null_forest
from .firings import Part, hashes
from .logits import direct_logits
from .neighbors import by_coverage, nearest
from .planes import planes
from .samples import Samples, by_value
from .telling import telling_tokens
from .windows import Windows

# Number of rows processed at once: bounds the float64 copies, whatever the batch size.
_SLICE = 4096


@torch.no_grad()
def build_index(
    sae: SAE,
    forest: Forest,
    batches: Iterable[ActivationBatch],
    tokens: Tokens,
    *,
    total: int,
    lm: LanguageModel | None = None,
    n_contexts: int = CONTEXTS,
    min_count: int = 20,
    begin: Callable[[Counts], None] = lambda counts: None,
) -> Index:
    """Measure what the explorer shows of every feature of `sae` and every edge of `forest`, learned or inferred.

    batches: activations read from `tokens`, each row once.
    total: number of activations, for the progress bar.
    lm: the language model, for the direct effects on logits; None leaves them out.
    n_contexts: number of strongest activations to keep for each feature.
    min_count: minimum number of tokens that a feature must fire on to get a direction, a detector, candidate parents.
    begin: called with the counts before the first batch is read; may restore counts of an earlier process.

    Raises InputError if there are no activations.
    """
    seen = Counts(sae, forest, tokens, n_contexts)
    begin(seen)
    forecast = Forecast("index", "lm.batch_size, or index a smaller SAE")
    with progress("index", total) as advance:
        for batch in batches:
            for x, rows in zip(batch.x.split(_SLICE), batch.rows.split(_SLICE), strict=True):
                seen.add(x.to(sae.device), rows.to(sae.device))
            advance(len(batch))
            # All memory for counts was allocated at the start; what is kept goes to files.
            forecast.tell(0, seen.afterwards_memory(total))
    if seen.moments.n == 0:
        raise InputError("no activations to index: all positions of the text are excluded; give more text")
    return _finished(seen, lm, min_count)


def _finished(seen: Counts, lm: LanguageModel | None, min_count: int) -> Index:
    """The index, from what was counted and kept in the pass."""
    sae, forest, tokens = seen.sae, seen.forest, seen.tokens
    measured = seen.measured()
    n_fired, value_max = measured["n_fired"], measured["value_max"]
    null = null_forest(forest, n_fired)
    again = _Again(seen, null, n_fired, value_max)
    measured |= {"histogram": again.samples.histogram.int()}
    top, geometry = measured["top_row"], _contexts(seen, again, measured)

    # A transcoder's decoder writes at another site, so its encoder is compared with the directions.
    rows = sae.W_enc.T if sae.is_transcoder else sae.W_dec
    near = nearness_to(
        [seen.parent, null.parent.to(seen.parent)], seen.moments, seen.n_fired, rows, min_count
    )
    for name, tensor in near[0]._asdict().items():
        measured[name] = tensor.cpu()

    measured["near_id"], measured["near_cos"] = nearest(sae.W_dec)
    over, under = by_coverage(again.pairs, forest, min_count, torch.arange(forest.d_sae))
    measured |= {"over_id": over.ids, "over_p": over.value, "under_id": under.ids, "under_p": under.value}
    flat = tokens.ids.flatten().long()
    telling = telling_tokens(again.pairs, flat[again.pair_rows], forest)
    measured["child_tokens"], measured["child_tokens_lift"] = telling
    sample = detected(sae, again.x, flat[again.x_rows], again.x_codes, seen.firings.folder)
    edges = edge_columns(
        sae, forest, null, again.pairs, (near[0], near[1]), again.siblings, sample, min_count
    )
    measured |= {"null_parent": edges.null_parent, "null_child": edges.null_child}
    for prefix, columns in ((COLUMN, edges.columns), (PLACE, edges.places), (NULL, edges.null_columns)):
        measured |= {prefix + name: column for name, column in columns.items()}
    measured |= {f"geometry.{field.name}": getattr(geometry, field.name) for field in fields(geometry)}
    written = str(sae.metadata.get("hook_name_out", sae.metadata.get("hook_name", "")))
    logits = None if lm is None else direct_logits(sae, lm, written)
    if logits is not None:
        measured |= {f"logits.{field.name}": getattr(logits, field.name) for field in fields(logits)}
    about = About(
        model=str(sae.metadata.get("model_name", "unknown model")),
        site=_site(sae.metadata),
        n_tokens=seen.moments.n,
        min_count=min_count,
        contexts_from=seen.contexts_from,
        ridge=RIDGE,
        sae=fingerprint(sae, forest),
        rows="encoder" if sae.is_transcoder else "decoder",
        gated=sae.gated,
        prepend_bos=tokens.prepend_bos,
        n_pairs=again.pairs.n_tokens,
        n_detected=len(again.x),
        columns=tuple(column.about for column in COLUMNS),
    )
    names = [column.name for column in about.columns]
    places = unused(
        sae.d_sae,
        top.shape[1],
        names,
        n_parents=len(measured["parents"]),
        n_null=len(edges.null_child),
    )
    return Index.of_tensors(about, tokens, places | measured)


class _Again:
    """What is counted of the firings after the pass, when the largest values are known.

    pairs: statistics of pairs, of all activations or of as many, drawn by their rows, as take no more than
           `PAIR_FIRINGS`; pair_rows: their rows. siblings: the same of siblings, in the forest and in the null.
    x, x_rows, x_codes: the sample of activations, with the row and the code of each.
    """

    def __init__(
        self, seen: Counts, null: Forest, n_fired: Int64[Tensor, "d_sae"], value_max: Tensor
    ) -> None:
        threshold = seen.sae.config.activation_threshold
        cpu = torch.device("cpu")
        self.samples = Samples(value_max, seen.passage)
        folder = seen.firings.folder
        self.pairs = PairStatistics(seen.sae.d_sae, threshold, folder)
        self.siblings = SiblingPairs(seen.forest, threshold, cpu), SiblingPairs(null, threshold, cpu)
        self.x_codes: list[SparseCode] = []
        self._most = PAIR_FIRINGS / max(int(n_fired.sum()), 1)
        pair_rows, x_rows = [], []
        x: Spill | None = None
        with progress("firings", seen.moments.n, "activations") as advance:
            for part in seen.firings:
                self.samples.add(part)
                kept = self._kept(part)
                for code in part.codes(kept):
                    for statistics in (self.pairs, *self.siblings):
                        statistics.add(code)
                self.x_codes.extend(part.codes(torch.isin(part.rows, part.x_row)))
                pair_rows.append(part.rows[kept])
                if x is None:
                    x = Spill(part.x.dtype, part.x.shape[1:], folder)
                x.add(part.x)
                x_rows.append(part.x_row)
                advance(len(part.rows))
        assert x is not None
        self.pair_rows, self.x, self.x_rows = torch.cat(pair_rows), x.tensor, torch.cat(x_rows)

    def _kept(self, part: Part) -> Bool[Tensor, "n"]:
        if self._most >= 1:
            return torch.ones(len(part.rows), dtype=torch.bool)
        return hashes(part.rows) < int(self._most * (1 << 63))


def _contexts(seen: Counts, again: _Again, measured: dict[str, Tensor]) -> Geometry:
    """Look up what is around contexts, and add it to what was measured. Returns the planes of parents."""
    forest, drawn = seen.forest, again.samples.rows
    top = measured["top_row"].shape[1]
    windows = Windows(
        seen.tokens, torch.cat([measured["top_row"], drawn], dim=1), measured["value_max"], forest
    )
    parts: list[tuple[Tensor, ...]] = []
    n_before = 0
    with progress("contexts", seen.moments.n, "activations") as advance:
        for part in seen.firings:
            children = windows.add(part)
            child = children.at(part.u_row * forest.d_sae + part.u_feature, -1)
            parts.append((part.u_feature, part.u_row, child, part.u_place + n_before, part.u))
            n_before += len(part.u)
            advance(len(part.rows))
    order = by_value(windows.value[:, top:])
    all_ = torch.cat([torch.arange(top).expand(len(order), top), order + top], dim=1)
    across = all_[:, :, None].expand(windows.relative.shape)
    below = all_[windows.parents][:, :, None].expand(windows.child.shape)
    measured |= {
        "sample_row": drawn.gather(1, order),
        "sample_value": windows.value[:, top:].gather(1, order),
        "window_values": windows.relative.gather(1, across),
        "parents": windows.parents,
        "window_child": windows.child.gather(1, below),
    }
    feature, row, child, place, u = (torch.cat(column) for column in zip(*parts, strict=True))
    return planes(seen.sae, forest, measured["n_fired"], feature, row, child, place, u)


def _site(metadata: Mapping[str, Any]) -> str:
    """The site that the SAE reads and, for a transcoder, the site that it writes."""
    site = str(metadata.get("hook_name", "unknown site"))
    return f"{site} to {metadata['hook_name_out']}" if "hook_name_out" in metadata else site
