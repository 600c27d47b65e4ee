"""Where the detectors of children are on without the gate, by the live model: also where their parent is silent."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...activations import ActivationReader
from ...saes import SAE
from ...session import check_site
from ...sparse_code import SparseCode, concat_rows
from ..answers.features import Ungated, UngatedAnswer
from ..index import Index
from ..index.form import REACH, WINDOW
from ..queries.contexts import Context, Contexts
from .overlap import overlap

#: Tokens of the indexed text that are read, in windows spread over it.
SAMPLE = 8192
_CONTEXTS, _CHILDREN, _SLICE = 4, 24, 2048


class _Sample(NamedTuple):
    """Activations of some windows, their rows in the text in ascending order, and their codes."""

    x: Float[Tensor, "n d_in"]
    rows: Int[Tensor, "n"]
    code: SparseCode


class DetectorContexts:
    """Finds contexts in which a child's own detector is on and its parent is silent. The model reads the text once,
    when the first question comes.

    The detector of a child is on above the median of the values that it has where it is active
    (docs/spec/hierarchy.md#ungated), here estimated from its histogram.
    """

    def __init__(
        self, sae: SAE, index: Index, contexts: Contexts, open: Callable[[], ActivationReader]
    ) -> None:
        self._sae, self._index, self._contexts, self._open = sae, index, contexts, open
        self._lock = Lock()
        self._made: dict[int, UngatedAnswer] = {}

    def known(self, parent: int) -> UngatedAnswer | None:
        """The answer, if it takes no reading; else None."""
        return self._made.get(parent)

    @torch.no_grad()
    def answer(self, parent: int, children: list[int]) -> UngatedAnswer:
        """`ungated/ID`. children: those that fired, the most frequent first."""
        with self._lock:
            if parent not in self._made:
                self._made[parent] = self._answer(parent, children[:_CHILDREN])
            return self._made[parent]

    def _answer(self, parent: int, children: list[int]) -> UngatedAnswer:
        sample = self._sample
        active = sample.code.active(self._sae.config.activation_threshold)
        silent = ~((sample.code.ids == parent) & active).any(1).cpu()
        chosen = torch.tensor(children, dtype=torch.int64, device=self._sae.device)
        on = (
            torch.cat([self._sae.detect(x, chosen).cpu() for x in sample.x.split(_SLICE)])
            if children
            else None
        )
        found = []
        for place, child in enumerate(children):
            assert on is not None
            values = on[:, place]
            values = torch.where(values > self._level(child), values, 0)
            found.append(Ungated(child, tuple(self._best(values, (values > 0) & silent))))
        fires = [((sample.code.ids == child) & active).any(1).cpu() for child in children]
        return UngatedAnswer(len(sample.rows), overlap(children, fires, ~silent), tuple(found))

    def _best(self, values: Float[Tensor, "n"], where: Tensor) -> list[Context]:
        """The strongest of the chosen activations, from different windows of the model. values: 0 where it is off."""
        rows, found = self._sample.rows, []
        seen: set[int] = set()
        ranked = torch.where(where, values, -torch.inf).argsort(descending=True, stable=True)
        for i in ranked[: int(where.sum())].tolist():
            row = int(rows[i])
            if (window := row // self._index.tokens.context) in seen:
                continue
            seen.add(window)
            around = np.zeros(WINDOW)
            near = ((rows >= row - REACH) & (rows < row - REACH + WINDOW)).nonzero().flatten()
            around[(rows[near] - row + REACH).numpy()] = values[near].double().numpy()
            found.append(self._contexts.made(row, float(values[i]), around))
            if len(found) == _CONTEXTS:
                break
        return found

    def _level(self, feature: int) -> float:
        """The median of a feature's activations, from its histogram: linear within a bin."""
        counts = self._index.histogram[feature].double()
        if not float(counts.sum()):
            return float("inf")
        edges, below = self._index.histogram_edges(feature).double(), counts.cumsum(0)
        place = int(torch.searchsorted(below, below[-1] / 2))
        rest = below[-1] / 2 - (below[place] - counts[place])
        return float(edges[place] + (edges[place + 1] - edges[place]) * rest / counts[place])

    @cached_property
    def _sample(self) -> _Sample:
        reader, tokens = self._open(), self._index.tokens
        check_site(self._sae, reader)
        n = min(max(SAMPLE // tokens.context, 1), len(tokens.ids))
        windows = torch.linspace(0, len(tokens.ids) - 1, n).round().long().unique()
        batches = [batch for batch, _ in reader.batches(tokens, windows)]
        x, rows = torch.cat([b.x.float() for b in batches]), torch.cat([b.rows for b in batches]).cpu()
        order = rows.argsort()
        x = x.to(self._sae.device)[order.to(self._sae.device)]
        return _Sample(x, rows[order], concat_rows([self._sae.encode(part) for part in x.split(_SLICE)]))
