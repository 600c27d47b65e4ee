"""Harvesting: reading all activations of a text into a folder, or into memory with a backup copy in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files import remove_leftovers
from ..output import note
from ..progress import progress
from ..schema import Element
from ..stopping import NEVER, Stop
from ..text import Tokens
from .clock import Harvest, HarvestClock
from .folder import Folder
from .plan import ALONE, Worker
from .reader import ActivationBatch, ActivationReader
from .sources import MemoryActivations
from .writer import Found, StoreWriter


def harvest_folder(
    reader: ActivationReader,
    tokens: Tokens,
    folder: Path | Folder,
    about: dict[str, Any],
    stop: Stop = NEVER,
    *,
    worker: Worker = ALONE,
    element: Element = "auto",
    given: Mapping[str, Any] | None = None,
    prepare: bool = False,
) -> Harvest | None:
    """Read all activations of `tokens` into shards in `folder`. When the manifest is written, the store is complete.

    If an earlier process has left part of the same harvest in the folder, the harvest continues from there.

    worker:  which shards this process reads. Whichever worker finishes the last shard writes the manifest.
    element: how the numbers are stored.
    given:   settings as they were given, on which all workers must agree, before anything was determined from them.
    prepare: whether to write only the plan and the tokens, for other workers.

    Returns how long the harvest took, of all workers together; None if shards of other workers are missing.

    Raises:
        InputError: there are no activations, some are NaN or infinite, or the folder has other activations. What this
            process has read is deleted, unless there are other workers.
        Interrupted: `stop` asked to stop. All that was read stays.
        OSError: the disk is full. All that was read stays.
    """
    if isinstance(folder, Path):
        remove_leftovers(folder)
    settings = _bits(reader) | {f"given {name}": value for name, value in (given or {}).items()}
    with StoreWriter(folder, reader, tokens, about, settings, worker, element) as store:
        if prepare:
            store.begin()
            return None
        fresh = worker.of == 1
        try:
            for batch, n_windows, is_new in _read(reader, tokens, store, stop, load=False):
                if is_new:
                    assert batch is not None
                    store.add(batch, n_windows)
                else:
                    fresh = False
            return store.finish()
        except InputError:
            if fresh:
                store.discard()
            raise


def harvest_memory(
    reader: ActivationReader,
    tokens: Tokens,
    seed: int,
    folder: Path | None = None,
    about: dict[str, Any] | None = None,
    stop: Stop = NEVER,
) -> MemoryActivations:
    """Read all activations of `tokens` into memory and, if a folder is given, also into it as `harvest_folder` does.

    If the copy in the folder cannot be written, a note says so and the harvest continues without it. Raises the same
    errors as `harvest_folder`, except OSError.
    """
    read: ActivationBatch | None = None
    n, clock = 0, HarvestClock(reader)
    store = None if folder is None else StoreWriter(folder, reader, tokens, about or {}, _bits(reader))
    try:
        for batch, n_windows, is_new in _read(reader, tokens, store, stop, load=True):
            if batch is None:  # a shard without activations
                continue
            if read is None:
                # Allocate for every position; the rest, as many as are excluded, is never touched.
                read = batch.each(lambda x: x.new_empty(tokens.n_tokens, *x.shape[1:]))
            part = slice(n, n := n + len(batch))
            read.x[part], read.rows[part] = batch.x, batch.rows
            for name, x in batch.others.items():
                read.others[name][part] = x
            if store is not None and is_new:
                store = _copied(store, lambda store, b=batch, w=n_windows: store.add(b, w))
        if read is None or n == 0:
            raise InputError("no activations: every position of the text is excluded; give longer text")
        harvest = clock.harvest(n, tokens.n_tokens)
        if store is not None:
            _copied(store, StoreWriter.finish)
        read = read.each(lambda x: x[:n])
        return MemoryActivations(read.x, read.rows, seed, harvest.record(), read.others)
    finally:
        if store is not None:
            store.__exit__(None, None, None)


def _copied(store: StoreWriter, write: Callable[[StoreWriter], object]) -> StoreWriter | None:
    """The store, or None if it cannot be written. The run can do without this copy."""
    try:
        write(store)
    except (OSError, InputError) as error:
        note(
            f"{error}: the activations are kept in memory only; if this run is killed, it must read them again"
        )
        store.discard()
        return None
    return store


def _bits(reader: ActivationReader) -> dict[str, Any]:
    """The settings that affect the last bits of activations but are not part of the manifest."""
    return {
        "lm_dtype": str(reader.lm.dtype),
        "lm_batch_size": reader.batch_size,
        "device": reader.lm.device.type,
    }


def _read(
    reader: ActivationReader, tokens: Tokens, store: StoreWriter | None, stop: Stop, *, load: bool
) -> Iterator[tuple[ActivationBatch | None, int, bool]]:
    """Yield the activations of all windows in order, their number of windows, and whether they were newly read.

    load: whether what is there is read, rather than only checked.
    """
    everything = torch.arange(len(tokens.ids))
    n_windows = store.n_own if store else len(everything)
    with progress("harvest", n_windows * tokens.context) as advance:
        for piece in store.pieces(load=load) if store else (everything,):
            if isinstance(piece, Found):
                advance(piece.n_windows * tokens.context, "found")
                yield piece.batch, piece.n_windows, False
                continue
            for batch, n_read in reader.batches(tokens, piece):
                yield batch, n_read // tokens.context, True
                advance(n_read)
                if stop():
                    if store is None:
                        raise stop.interrupted("stopped")
                    store.keep()
                    done = store.n_windows * tokens.context
                    raise stop.interrupted(f"stopped after {done:,} of {n_windows * tokens.context:,} tokens")
