"""An endless stream of training batches whose position is known and restorable."""

from __future__ import annotations

import time

import torch

from ..errors import UserError
from .reader import ActivationBatch
from .sources import Blocks


class ActivationStream:
    """Cuts the blocks of a source, epoch after epoch, into batches of one size.

    `state()` is the next unread row as (epoch, block, row); `restore` goes back to it exactly.
    """

    def __init__(self, blocks: Blocks, batch_size: int) -> None:
        self.blocks, self.batch_size = blocks, batch_size
        self.seconds = 0.0
        """Time spent fetching so far, that of the language model included."""
        self._epoch = self._index = self._row = 0
        self._block: ActivationBatch | None = None

    def state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "block": self._index, "row": self._row}

    def restore(self, state: dict[str, int]) -> None:
        self._epoch, self._index, self._row = state["epoch"], state["block"], state["row"]
        self._block = None

    def next(self) -> ActivationBatch:
        start = time.perf_counter()
        parts: list[ActivationBatch] = []
        missing = self.batch_size
        while missing:
            block = self._current()
            part = slice(self._row, self._row + missing)
            parts.append(ActivationBatch(block.x[part], block.rows[part]))
            missing -= len(parts[-1])
            self._row += len(parts[-1])
        batch = (
            parts[0]
            if len(parts) == 1
            else ActivationBatch(torch.cat([p.x for p in parts]), torch.cat([p.rows for p in parts]))
        )
        self.seconds += time.perf_counter() - start
        return batch

    def _current(self) -> ActivationBatch:
        """The block of the next unread row. Raises UserError where a whole epoch holds none."""
        for _ in range(self.blocks.n_blocks + 2):
            if self._block is not None:
                if self._row < len(self._block):
                    return self._block
                self._index, self._row = self._index + 1, 0
            if self._index >= self.blocks.n_blocks:
                self._epoch, self._index = self._epoch + 1, 0
            self._block = self.blocks.block(self._epoch, self._index)
        raise UserError("no activations: every position is excluded; see activations.max_norm and --data")
