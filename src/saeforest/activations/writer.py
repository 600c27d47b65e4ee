"""Writing shards of activations while the language model continues, as one of any number of workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError
from ..files import CHECKSUMS
from ..output import note
from ..schema import Element
from ..text import Tokens
from .clock import Harvest, HarvestClock, Seconds, added
from .folder import Folder, folder_at
from .plan import (
    ALONE,
    PLAN,
    Entry,
    Plan,
    Worker,
    check_agreed,
    digest_of_text,
    entry_of,
    open_file,
    read_entry,
    read_plan,
    remove_unfinished,
    shard_file,
    windows_of_a_shard,
)
from .reader import ActivationBatch, ActivationReader, concatenated
from .shards import batch_of, tensors_of

#: Versions of stores. Shards of the second have 8-bit activations; all others are as they always were.
STORE_VERSION, STORE_VERSION_8BIT = 1, 2
MANIFEST, TOKENS = "activations.json", "tokens.safetensors"
# How long the harvest took. It is not in the manifest, so that two harvests of the same text are identical.
HARVEST = "harvest.json"
# The identity of the language model, and its results on a short text.
MODEL = "model.json"
SHARD_ROWS = 1 << 16
# The time between saves, and so the most work of the language model that is lost if a harvest is killed.
_KEEP_EVERY_S = 30.0


@dataclass(frozen=True)
class Found:
    """Activations that are in the folder already. `batch` is None if nobody needs them."""

    n_windows: int
    batch: ActivationBatch | None


@dataclass
class _Todo:
    """A shard that this worker reads, from `at` on; `found` is what was read before that."""

    index: int
    at: int
    span: range
    found: ActivationBatch | None
    seconds: Seconds


class StoreWriter:
    """Fills a folder with shards, one at a time in the background, so that the harvest can continue if it is killed.

    At most two shards are in memory: one that is being written and one that is being read. A finished shard gets an
    entry, and what is there of the current one is saved every half minute. Leaving the `with` block always waits for
    the writing to end, so that a folder that is still being filled is not deleted.

    Raises InputError if the folder holds an unfinished harvest of other activations.
    """

    def __init__(
        self,
        folder: Path | Folder,
        reader: ActivationReader,
        tokens: Tokens,
        about: dict[str, Any],
        settings: dict[str, Any],
        worker: Worker = ALONE,
        element: Element = "auto",
    ) -> None:
        self.folder, self.worker = folder_at(folder), worker
        self._reader, self._tokens = reader, tokens
        self._element: Element = element
        self._clock = HarvestClock(reader)
        per_window = tokens.context - reader.exclude_first
        self.plan = Plan(
            about=_plain(about | ({} if element == "auto" else {"element": element})),
            settings=_plain(settings),
            text=digest_of_text(tokens),
            windows=len(tokens.ids),
            shard_windows=windows_of_a_shard(SHARD_ROWS, per_window, reader.batch_size),
        )
        self._digest = self.plan.digest()
        self._n_windows = 0
        self._todo: deque[_Todo] = deque()
        self._waiting: list[ActivationBatch] = []
        self._kept_at, self._unsaved = time.monotonic(), False
        self._waited = 0.0
        self._created: list[str] = []
        self._done: dict[int, Entry] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._writing: Future[None] | None = None

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    # What is there

    def begin(self) -> None:
        """Write the plan and the tokens, or check that the folder has the same plan."""
        if not self._check_agreed():
            self._created += [TOKENS, PLAN, HARVEST]
            self.folder.write_json(PLAN, self.plan.model_dump())
        if self.folder.has(MANIFEST):  # another worker has just finished, and removed the plan
            self.folder.remove(PLAN)
        elif not self.folder.has(TOKENS):
            self.folder.write_tensors(TOKENS, self._tokens.tensors())

    def _check_agreed(self) -> bool:
        """Whether the folder has a plan. Raises InputError if it has another one."""
        if (plan := read_plan(self.folder)) is None:
            return False
        check_agreed(self.folder, plan.flat(), self.plan.flat())
        return True

    def pieces(self, *, load: bool) -> Iterator[Found | Int[Tensor, "w"]]:
        """Yield, in order, what is there of this worker's shards, and the windows that it has to read.

        load: whether finished shards are read, rather than only checked.
        """
        self.begin()
        if self.folder.has(MANIFEST):
            return
        missing: list[range] = []
        for index in self.worker.shards(self.plan):
            span = self.plan.span(index)
            done = self._sound(shard_file(index), span, load=load)
            opened = None if done else self._sound(open_file(index), span, load=True)
            if done or opened:
                if missing:
                    yield torch.cat([torch.arange(part.start, part.stop) for part in missing])
                    missing = []
                entry, batch = done or opened or (None, None)
                assert entry is not None
                found = Found(entry.windows[1] - entry.windows[0], batch)
                self._n_windows += found.n_windows
                yield found
                if done:
                    self._done[index] = entry
                    continue
                self._todo.append(_Todo(index, entry.windows[1], span, batch, entry.seconds))
                missing.append(range(entry.windows[1], span.stop))
            else:
                self._todo.append(_Todo(index, span.start, span, None, {}))
                missing.append(span)
        if missing:
            yield torch.cat([torch.arange(part.start, part.stop) for part in missing])

    def _sound(self, file: str, span: range, *, load: bool) -> tuple[Entry, ActivationBatch | None] | None:
        """The entry of a shard that is whole, and its activations if they are wanted."""
        name = entry_of(file)
        if not self.folder.has(name):
            return None
        whole = file == shard_file(span.start // self.plan.shard_windows)
        try:
            entry = read_entry(self.folder, name)
            self._check_plan(entry, name)
            reached = entry.windows[1]
            fits = entry.windows[0] == span.start and (
                reached == span.stop if whole else reached in span and reached % self._reader.batch_size == 0
            )
            if not fits or entry.file != file:
                raise InputError(f"{self.folder.path(name)}: of other windows")
            batch = None
            if entry.rows and load:
                batch = batch_of(self.folder.read_tensors(file, entry.file_checksum))
            elif entry.rows:
                self.folder.check(file, entry.file_checksum)
        except _OtherPlan:
            raise
        except (InputError, KeyError) as error:
            if whole:  # the beginning of a shard may be newer than its entry, which is no error
                note(f"{error}; reading its activations again")
            return None
        return entry, batch

    def _check_plan(self, entry: Entry, name: str) -> None:
        if entry.plan != self._digest:
            raise _OtherPlan(
                f"{self.folder.path(name)}: written by a worker with other settings than {PLAN}, so its activations "
                "don't belong to the others; stop all workers, delete that file, and start them with the same settings"
            )

    # What is new

    @property
    def n_own(self) -> int:
        """Number of windows in this worker's shards."""
        return sum(len(self.plan.span(index)) for index in self.worker.shards(self.plan))

    @property
    def n_windows(self) -> int:
        """Number of windows of this worker's shards that have been read."""
        return self._n_windows

    def add(self, batch: ActivationBatch, n_windows: int) -> None:
        """Add the activations of the next `n_windows` windows. Raises any error from writing an earlier shard."""
        self._check()
        todo = self._todo[0]
        if todo.found is not None:
            self._waiting, todo.found = [todo.found], None
        self._waiting.append(batch)
        todo.at += n_windows
        self._n_windows += n_windows
        self._unsaved = True
        if todo.at >= todo.span.stop:
            self._put(shard_file(todo.index))
            self._todo.popleft()
            self._waiting = []
        elif time.monotonic() - self._kept_at > _KEEP_EVERY_S:
            self._put(open_file(todo.index))

    def keep(self) -> None:
        """Write all that was added. Raises any error from writing."""
        if self._unsaved and self._todo and self._waiting:
            self._put(open_file(self._todo[0].index))
        self._wait()

    def finish(self) -> Harvest | None:
        """Wait for this worker's shards and, if all others are there too, complete the store.

        Returns how long the whole harvest took; None if shards of other workers are missing.

        Raises InputError if there are no activations, and any error from writing.
        """
        self._wait()
        if not (entries := self._entries()):
            return None
        if not sum(entry.rows for entry in entries):
            raise InputError("no activations: every position of the text is excluded; give longer text")
        seconds = added(*(entry.seconds for entry in entries), self._clock.lap(self._waited))
        done = Harvest.of_seconds(sum(entry.rows for entry in entries), self._tokens.n_tokens, seconds)
        self.folder.write_json(HARVEST, done.record())
        self.folder.write_json(
            MANIFEST,
            {
                "format_version": STORE_VERSION_8BIT if self._element == "int8" else STORE_VERSION,
                "d_in": self._reader.widths[self._reader.site.name],
                **self.plan.about,
                CHECKSUMS: {TOKENS: self.folder.write_tensors(TOKENS, self._tokens.tensors())},
                "shards": [
                    {
                        "file": entry.file,
                        "rows": entry.rows,
                        "windows": entry.windows[1],
                        "checksum": entry.file_checksum,
                    }
                    for entry in entries
                    if entry.rows
                ],
            },
        )
        remove_unfinished(self.folder, self.folder.sizes())
        return done

    def own(self) -> Harvest:
        """How long this worker's shards took."""
        seconds = added(*(entry.seconds for entry in self._done.values()), self._clock.lap(self._waited))
        windows = sum(entry.windows[1] - entry.windows[0] for entry in self._done.values())
        rows = sum(entry.rows for entry in self._done.values())
        return Harvest.of_seconds(rows, windows * self._tokens.context, seconds)

    def _entries(self) -> list[Entry] | None:
        """The entries of all shards in order; None if one is missing, or another worker has completed the store."""
        names = self.folder.sizes()
        entries = []
        for index in range(self.plan.n_shards):
            name = entry_of(shard_file(index))
            if index not in self._done and name not in names:
                return None
            try:
                entry = self._done[index] if index in self._done else read_entry(self.folder, name)
            except InputError:
                if self.folder.has(MANIFEST):
                    return None
                raise
            self._check_plan(entry, name)
            entries.append(entry)
        return entries

    def discard(self) -> None:
        """Delete what this writer has written, and the folder if nothing else is in it."""
        self._pool.shutdown()
        for name in self._created:
            self.folder.remove(name)
        self.folder.remove_empty()

    def _put(self, file: str) -> None:
        self._wait()
        todo = self._todo[0]
        todo.seconds = added(todo.seconds, self._clock.lap(self._waited))
        self._created += [file, entry_of(file)]
        self._kept_at, self._unsaved = time.monotonic(), False
        windows, seconds = (todo.span.start, todo.at), todo.seconds
        whole = todo.at >= todo.span.stop
        # The list of a whole shard is handed over, to be freed as soon as its rows have been copied.
        parts = self._waiting if whole else self._waiting.copy()
        self._writing = self._pool.submit(self._write, todo.index, file, parts, windows, seconds)

    def _write(
        self,
        index: int,
        file: str,
        parts: list[ActivationBatch],
        windows: tuple[int, int],
        seconds: Seconds,
    ) -> None:
        written = concatenated(parts)
        parts.clear()
        whole, rows, checksum = file == shard_file(index), len(written), ""
        # Workers that start at the same moment both write the plan. If they disagree, the second plan stays, and here
        # the first worker notices before any of its activations counts.
        self._check_agreed()
        if rows:
            element: Element = self._element if whole else "auto"
            checksum = self.folder.write_tensors(file, tensors_of(written, element, self.folder.path(file)))
        entry = Entry(
            file=file,
            rows=rows,
            windows=windows,
            file_checksum=checksum,
            bytes=self.folder.size(file) if rows else 0,
            plan=self._digest,
            seconds=dict(seconds),
        )
        self.folder.write_json(entry_of(file), entry.model_dump())
        if whole:
            self._done[index] = entry
            for name in (entry_of(open_file(index)), open_file(index)):
                self.folder.remove(name)

    def _check(self) -> None:
        """Raise any error from writing the current shard, without waiting for it."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def _wait(self) -> None:
        """Wait for the current shard to be written. Raises any error from writing it."""
        start = time.perf_counter()
        if self._writing is not None:
            self._writing.result()
        self._waited += time.perf_counter() - start


class _OtherPlan(InputError):
    """An entry of a worker that had other settings."""


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
