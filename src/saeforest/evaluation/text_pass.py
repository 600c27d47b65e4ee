"""A single pass over the measured text, for all measures of all SAEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..measures.measure import EvalBatch, Measure
from ..measures.probes import PAPER_PROBES
from ..measures.spec import Size
from ..memory import Forecast
from ..progress import progress
from ..ranks import ALONE, Ranks
from ..spill import WAITING, Spill
from ..structure.pairs import PairStatistics, sorted_memory
from .by_ranks import Codes, Received, Viewed, send_batches
from .task import Task
from .windows import read_windows


@dataclass(frozen=True, eq=False)
class Pass:
    """What the pass updates for one SAE: its streaming measures, and its firings if any measure needs them."""

    task: Task
    measures: Mapping[str, Measure]
    pairs: PairStatistics | None

    def take(self, batch: EvalBatch) -> None:
        """Shows all measures a batch."""
        for measure in self.measures.values():
            measure.update(batch)
        if self.pairs is not None:
            self.pairs.add(batch.code)


@dataclass(frozen=True, eq=False)
class Read:
    """The results of the pass that do not depend on the SAE.

    rows: `[n]` row (see `Tokens`) of every measured activation.
    x:    `[n, d_in]` the activations, on the CPU in the language model's dtype, in a mapped file if they are many (see
          `Spill`); None if no measure needs them.
    """

    rows: Int[Tensor, "n"]
    x: Float[Tensor, "n d_in"] | None


class Helped(Exception):
    """The pass is over, and this rank was not the first: the measures are not on this one."""


@torch.no_grad()
def read_text(passes: Sequence[Pass], ce_tokens: int, ranks: Ranks = ALONE) -> Read:
    """Run the language model over the text once and update all passes, which must share reader and tokens.

    Losses are computed on the first `ce_tokens` tokens, rounded up to whole windows.

    ranks: the processes that share the windows. All must have the same passes, which the first one updates.

    Raises InputError if an activation is NaN or infinite; on ranks other than the first, Helped at the end.
    """
    tasks = [one.task for one in passes]
    reader, tokens = tasks[0].reader, tasks[0].tokens
    n_loss_windows = -(-ce_tokens // tokens.context) if any(t.needs("losses") for t in tasks) else 0
    # Allocated for all tokens; memory for excluded positions is never touched.
    rows, n = torch.empty(tokens.n_tokens, dtype=torch.int64), 0
    x = None
    if any(task.needs("activations") for task in tasks):
        x = Spill(reader.lm.dtype, (tasks[0].sae.d_in,), tasks[0].folder)
    n_levels = max((m.n_levels for one in passes for m in one.measures.values()), default=0)
    forecast = Forecast("measure", "lm.batch_size, or measure fewer tokens or SAEs at once")
    with progress("measure", tokens.n_tokens, "tokens") as advance:
        for i, windows in enumerate(torch.arange(len(tokens.ids)).split(reader.batch_size)):
            turn, n_losses = i % ranks.size, int((windows < n_loss_windows).sum())
            if turn == ranks.rank:
                found = Viewed(read_windows(reader, tokens, windows, n_losses))
            elif ranks.first:
                found = Received(ranks, turn)
            else:
                continue
            if isinstance(found, Viewed) and not ranks.first:
                send_batches(ranks, found, tasks, n_levels)
                continue
            part = slice(n, n := n + len(found.rows))
            rows[part] = found.rows
            if x is not None:
                x.add(found.kept)
            codes = Codes(found.batch)
            for one in passes:
                one.take(codes(one.task))
            advance(windows.numel() * tokens.context)
            share = windows.numel() / len(tokens.ids)
            more, most = _still_to_come(passes, share, n)
            if x is not None:
                more += min(round(found.kept.nbytes * (1 / share - 1)), WAITING)
            forecast.tell(more, most)
    if not ranks.first:
        raise Helped
    return Read(rows[:n], None if x is None else x.tensor)


def _still_to_come(passes: Sequence[Pass], share: float, n: int) -> tuple[int, int]:
    """Forecast, in bytes: what the rest of the text will add besides activations, and the peak of the studies after it.

    share: fraction of the text read so far. n: activations so far.
    """
    more = round((1 / share - 1) * 8 * n)
    most = 0
    for one in passes:
        sae, n_firings = one.task.sae, 0
        if one.pairs is not None:
            n_firings = round(one.pairs.n_firings / share)
            more += one.pairs.still_to_come(round(n_firings * (1 - share)))
        size = Size(sae.d_sae, sae.d_in, round(n / share), n_firings, PAPER_PROBES)
        studies = max((spec.memory(size) for spec in one.task.studies), default=0)
        most = max(most, sorted_memory(n_firings, sae.d_sae) + studies)
    return more, most
