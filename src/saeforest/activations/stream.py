"""An endless stream of training batches whose position is known and restorable."""

from __future__ import annotations

import threading
import time
from typing import Any

from ..errors import InputError
from .reader import ActivationBatch, concatenated
from .sources import Blocks, MemoryActivations, SlowBlocks, StoredActivations


class _Reading:
    """A block that is read by a thread of its own."""

    def __init__(self, blocks: SlowBlocks, epoch: int, index: int) -> None:
        self.place = epoch, index
        self._blocks = blocks
        self._unwanted = threading.Event()
        self._block: ActivationBatch | None = None
        self._error: BaseException | None = None
        # No daemon: one that is inside the language model when Python ends takes the process down with it.
        self._thread = threading.Thread(target=self._read, name="next block")
        self._thread.start()

    def _read(self) -> None:
        try:
            self._block = self._blocks.block(*self.place, self._stop)
        except BaseException as error:  # whoever waits for the block raises it
            self._error = error

    def _stop(self) -> bool:
        # Python waits for this thread before it ends, and the main thread is the first to go.
        return self._unwanted.is_set() or not threading.main_thread().is_alive()

    def result(self) -> ActivationBatch:
        """Waits for the block. Raises what reading it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._block is not None
        return self._block

    def cancel(self) -> None:
        """Returns when the thread has ended: after the shard or the pass of the language model it is at."""
        self._unwanted.set()
        self._thread.join()


class ActivationStream:
    """Cuts the blocks of a source, epoch after epoch, into batches of one size.

    `state()` is the next unread row as (epoch, block, row); `restore` goes back to it exactly.

    Where the source says that it pays, the next block is read in the background, which changes nothing but the time.
    The reading ends with the stream: with `close`, or when nobody refers to it any more.
    """

    _ahead: _Reading | None = None

    def __init__(self, blocks: Blocks, batch_size: int) -> None:
        self.blocks, self.batch_size = blocks, batch_size
        self.seconds = 0.0
        """Time spent in `next` so far: that of the language model included, unless it read in the background."""
        self._epoch = self._index = self._row = 0
        self._block: ActivationBatch | None = None

    def state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "block": self._index, "row": self._row}

    def restore(self, state: dict[str, int]) -> None:
        if min(state.values()) < 0:
            raise ValueError(f"{state}: a position in the data has no negative numbers")
        self._epoch, self._index, self._row = state["epoch"], state["block"], state["row"]
        self._block = None
        self.close()

    @property
    def harvest(self) -> dict[str, Any]:
        """What reading the activations took before the stream began, if known (`Harvest.record`)."""
        blocks = self.blocks
        return blocks.harvest if isinstance(blocks, MemoryActivations | StoredActivations) else {}

    def close(self) -> None:
        """Stops reading in the background, if anything is; `next` begins anew."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()

    def __del__(self) -> None:
        self.close()

    def next(self) -> ActivationBatch:
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
        """The block of the next unread row. Raises InputError where a whole epoch holds none."""
        for _ in range(self.blocks.n_blocks + 2):
            if self._block is not None:
                if self._row < len(self._block):
                    return self._block
                self._index, self._row = self._index + 1, 0
            if self._index >= self.blocks.n_blocks:
                self._epoch, self._index = self._epoch + 1, 0
            self._block = None  # not in memory while the next one is waited for
            self._block = self._read()
            if self._row > len(self._block):
                raise InputError(
                    f"row {self._row:,} of block {self._index:,} of the activations: it has {len(self._block):,}; "
                    "the checkpoint that names it is damaged or of other activations; delete its folder"
                )
        raise InputError("no activations: every position is excluded; see activations.max_norm and data")

    def _read(self) -> ActivationBatch:
        """The block at the present place; the one behind it is begun where that pays."""
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
