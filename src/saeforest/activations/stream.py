"""An endless stream of training batches, whose position can be saved and restored."""

from __future__ import annotations

import threading
import time
from typing import Any

from ..errors import InputError
from .reader import ActivationBatch, concatenated
from .sources import Blocks, MemoryActivations, SlowBlocks, StoredActivations


class _Reading:
    """A block that is being read in a background thread."""

    def __init__(self, blocks: SlowBlocks, epoch: int, index: int) -> None:
        self.place = epoch, index
        self._blocks = blocks
        self._unwanted = threading.Event()
        self._block: ActivationBatch | None = None
        self._error: BaseException | None = None
        # Not a daemon thread: if one is inside the language model when Python exits, the process crashes.
        self._thread = threading.Thread(target=self._read, name="next block")
        self._thread.start()

    def _read(self) -> None:
        try:
            self._block = self._blocks.block(*self.place, self._stop)
        except BaseException as error:  # `result` raises it in the thread that waits for the block
            self._error = error

    def _stop(self) -> bool:
        # Python waits for this thread before it exits, so the thread must notice that the main thread has ended.
        return self._unwanted.is_set() or not threading.main_thread().is_alive()

    def result(self) -> ActivationBatch:
        """Wait for the block. Raises any error that occurred while it was read."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._block is not None
        return self._block

    def cancel(self) -> None:
        """Stop reading, and wait for the thread to end, which takes one shard or one forward pass at most."""
        self._unwanted.set()
        self._thread.join()


class ActivationStream:
    """Cuts the blocks of a source, epoch after epoch, into batches of the same size.

    `state()` is the position of the next row as (epoch, block, row); `restore` returns to a position exactly.

    If the source asks for it (`SlowBlocks.in_background`), the next block is read in the background. Reading ends with
    `close`, or when the stream is garbage-collected.
    """

    _ahead: _Reading | None = None

    def __init__(self, blocks: Blocks, batch_size: int) -> None:
        self.blocks, self.batch_size = blocks, batch_size
        self.seconds = 0.0
        """Seconds spent in `next` so far, including the language model unless it ran in the background."""
        self._epoch = self._index = self._row = 0
        self._block: ActivationBatch | None = None

    def state(self) -> dict[str, int]:
        """The position of the next row."""
        return {"epoch": self._epoch, "block": self._index, "row": self._row}

    def restore(self, state: dict[str, int]) -> None:
        """Continue at a position that `state` returned."""
        if min(state.values()) < 0:
            raise ValueError(f"{state}: a position in the data must not have negative numbers")
        self._epoch, self._index, self._row = state["epoch"], state["block"], state["row"]
        self._block = None
        self.close()

    @property
    def harvest(self) -> dict[str, Any]:
        """How long reading the activations took before training (`Harvest.record`), if known."""
        blocks = self.blocks
        return blocks.harvest if isinstance(blocks, MemoryActivations | StoredActivations) else {}

    def close(self) -> None:
        """Stop any reading in the background. A later `next` starts it again."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()

    def __del__(self) -> None:
        self.close()

    def next(self) -> ActivationBatch:
        """The next batch of `batch_size` activations."""
        start = time.perf_counter()
        parts: list[ActivationBatch] = []
        missing = self.batch_size
        while missing:
            block = self._current()
            part = slice(self._row, self._row + missing)
            parts.append(block.each(lambda x, part=part: x[part]))
            missing -= len(parts[-1])
            self._row += len(parts[-1])
        batch = concatenated(parts)
        self.seconds += time.perf_counter() - start
        return batch

    def _current(self) -> ActivationBatch:
        """The block that contains the next row. Raises InputError if a whole epoch has no rows."""
        for _ in range(self.blocks.n_blocks + 2):
            if self._block is not None:
                if self._row < len(self._block):
                    return self._block
                self._index, self._row = self._index + 1, 0
            if self._index >= self.blocks.n_blocks:
                self._epoch, self._index = self._epoch + 1, 0
            self._block = None  # free the memory before waiting for the next block
            self._block = self._read()
            if self._row > len(self._block):
                raise InputError(
                    f"row {self._row:,} of block {self._index:,} of the activations: the block has "
                    f"{len(self._block):,} rows; the checkpoint is damaged or belongs to other activations; delete its "
                    "folder"
                )
        raise InputError("no activations: every position is excluded; see activations.max_norm and data")

    def _read(self) -> ActivationBatch:
        """The block at the current position. If the source asks for it, start reading the next one."""
        if not (isinstance(self.blocks, SlowBlocks) and self.blocks.in_background):
            return self.blocks.block(self._epoch, self._index)
        if self._ahead is None or self._ahead.place != (self._epoch, self._index):
            self.close()
            self._ahead = _Reading(self.blocks, self._epoch, self._index)
        try:
            block = self._ahead.result()
        except Exception:
            self._ahead = None
            raise
        following = (self._epoch, self._index + 1)
        if following[1] >= self.blocks.n_blocks:
            following = (self._epoch + 1, 0)
        self._ahead = _Reading(self.blocks, *following)
        return block
