"""Writing shards of activations to disk while the language model continues, and how long a harvest took."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..errors import InputError
from ..files import CHECKSUMS, read_json, read_tensors, write_json, write_tensors
from ..output import note
from ..text import Tokens
from .reader import ActivationBatch, ActivationReader, concatenated

STORE_VERSION = 1
MANIFEST, TOKENS = "activations.json", "tokens.safetensors"
# How long the harvest took. It is not in the manifest, so that two harvests of the same text are identical.
HARVEST = "harvest.json"
# The identity of the language model, and its results on a short text.
MODEL = "model.json"
# The files of an unfinished harvest: a list of its shards, and the rows that do not fill a shard yet.
JOURNAL, PENDING = "unfinished.json", "pending.safetensors"
SHARD_ROWS = 1 << 16
# The time between saves, and so the most work of the language model that is lost if a harvest is killed.
_KEEP_EVERY_S = 30.0

_Count = Annotated[int, Field(ge=0, lt=2**40)]


class Shard(BaseModel):
    """A file with `rows` activations; with it, the first `windows` windows of the text have been read."""

    model_config = ConfigDict(extra="forbid", strict=True)

    file: Annotated[str, Field(pattern=r"^(shard-\d{5,9}|pending)\.safetensors$")]
    rows: _Count
    windows: _Count
    checksum: str


class Journal(BaseModel):
    """The contents of an unfinished harvest."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: Literal[1] = STORE_VERSION
    about: dict[str, Any]
    """The description that the manifest will contain, and the other settings that affect the activations."""
    shards: list[Shard] = []
    pending: Shard | None = None


class StoreWriter:
    """Fills a folder with shards, one at a time in the background, so that the harvest can continue if it is killed.

    At most two shards are in memory: one that is being written and one that is being read. Every finished shard is
    listed in a journal, and rows that do not fill a shard yet are saved every half minute. Leaving the `with` block
    always waits for the writing to end, so that a folder that is still being filled is not deleted.

    Raises InputError if the folder holds an unfinished harvest of other activations.
    """

    def __init__(self, folder: Path, tokens: Tokens, about: dict[str, Any], bits: dict[str, Any]) -> None:
        self.folder, self.seconds_waited = folder, 0.0
        self._tokens, self._about = tokens, about
        digest = hashlib.blake2b(tokens.ids.numpy().tobytes(), digest_size=16).hexdigest()
        # In the types that reading JSON returns, to be compared with a journal.
        self._journal = Journal(about=_plain({**about, **bits, "text": digest}))
        self._waiting: list[ActivationBatch] = []
        self.n_windows = 0
        """Number of windows of the text that have been read."""
        self._kept_windows, self._kept_at = 0, time.monotonic()
        self._d_in = 0
        self._created: list[str] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._writing: Future[None] | None = None

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def found(self) -> Iterator[ActivationBatch]:
        """Yield, in order, what an earlier process has left of the same harvest. Call it once, before `add`."""
        journal = read_journal(self.folder)
        if journal is None:
            self._created += [TOKENS, JOURNAL, HARVEST]
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / JOURNAL, self._journal.model_dump())
            return
        for key in sorted(journal.about.keys() | self._journal.about.keys()):
            there, wanted = journal.about.get(key), self._journal.about.get(key)
            if there != wanted:
                raise InputError(
                    f"{self.folder}: contains an unfinished harvest of other activations ({key}: {there!r} there, "
                    f"{wanted!r} now); finish it with its own settings, delete it, or choose another folder"
                )
        for shard in journal.shards:
            if (batch := self._sound(shard)) is None:
                return
            self._journal.shards.append(shard)
            self.n_windows = self._kept_windows = shard.windows
            yield batch
        if journal.pending is not None and (batch := self._sound(journal.pending)) is not None:
            self._waiting.append(batch)
            self.n_windows = self._kept_windows = journal.pending.windows
            yield batch

    def _sound(self, shard: Shard) -> ActivationBatch | None:
        try:
            batch = batch_of(read_tensors(self.folder / shard.file, shard.checksum))
        except (InputError, KeyError) as error:
            if shard.file != PENDING:  # the pending file may be newer than the journal, which is no error
                note(f"{error}; reading its activations again")
            return None
        self._d_in = batch.x.shape[1]
        return batch if len(batch) == shard.rows else None

    def add(self, batch: ActivationBatch, n_windows: int) -> None:
        """Add the activations of the next `n_windows` windows. Raises any error from writing an earlier shard."""
        self._check()
        self._waiting.append(batch)
        self.n_windows += n_windows
        if sum(map(len, self._waiting)) >= SHARD_ROWS:
            self._put_shard()
        elif time.monotonic() - self._kept_at > _KEEP_EVERY_S:
            self._put_pending()

    def keep(self) -> None:
        """Write all that was added to disk. Raises any error from writing."""
        if self.n_windows > self._kept_windows:
            self._put_pending()
        self._wait()

    def finish(self, harvest: Callable[[int], Harvest]) -> Harvest:
        """Complete the store. Raises InputError if there are no activations, and any error from writing."""
        if sum(map(len, self._waiting)):
            self._put_shard()
        self._wait()
        shards = self._journal.shards
        if not shards:
            raise InputError("no activations: every position of the text is excluded; give longer text")
        done = harvest(sum(shard.rows for shard in shards))
        write_json(self.folder / HARVEST, done.record())
        write_json(
            self.folder / MANIFEST,
            {
                "format_version": STORE_VERSION,
                "d_in": self._d_in,
                **self._about,
                CHECKSUMS: {TOKENS: self._tokens.save(self.folder / TOKENS)},
                "shards": [shard.model_dump() for shard in shards],
            },
        )
        for unfinished in (JOURNAL, PENDING):
            (self.folder / unfinished).unlink(missing_ok=True)
        return done

    def discard(self) -> None:
        """Delete what this writer has written, and the folder if nothing else is in it."""
        self._pool.shutdown()
        for name in self._created:
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _put_shard(self) -> None:
        self._wait()  # so that the previous shard is in the journal, which numbers the next one
        name = f"shard-{len(self._journal.shards):05}.safetensors"
        parts, self._waiting = self._waiting, []
        self._submit(name, parts, self.n_windows)

    def _put_pending(self) -> None:
        self._submit(PENDING, self._waiting.copy(), self.n_windows)

    def _submit(self, name: str, parts: list[ActivationBatch], windows: int) -> None:
        self._wait()
        self._created.append(name)
        self._d_in = parts[0].x.shape[1]
        self._kept_windows, self._kept_at = windows, time.monotonic()
        self._writing = self._pool.submit(self._write, name, parts, windows)

    def _write(self, name: str, parts: list[ActivationBatch], windows: int) -> None:
        written = concatenated(parts)
        tensors = {"x": written.x, "rows": written.rows}
        tensors |= {tensor_of(site): x for site, x in written.others.items()}
        parts.clear()  # free them: their rows have been copied
        rows = len(tensors["rows"])
        shard = Shard(
            file=name, rows=rows, windows=windows, checksum=write_tensors(self.folder / name, tensors)
        )
        if name == PENDING:
            self._journal.pending = shard
        else:
            self._journal.shards.append(shard)
            self._journal.pending = None
        write_json(self.folder / JOURNAL, self._journal.model_dump())

    def _check(self) -> None:
        """Raise any error from writing the current shard, without waiting for it."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def _wait(self) -> None:
        """Wait for the current shard to be written. Raises any error from writing it."""
        start = time.perf_counter()
        if self._writing is not None:
            self._writing.result()
        self.seconds_waited += time.perf_counter() - start


def tensor_of(site: str) -> str:
    """The name of the tensor for one of the other sites in a shard; the activations at the first site are `x`."""
    return f"x at {site}"


def batch_of(tensors: dict[str, Tensor]) -> ActivationBatch:
    """The activations in a shard. Raises KeyError if a tensor is missing."""
    prefix = tensor_of("")
    others = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    return ActivationBatch(tensors["x"], tensors["rows"], others)


def read_journal(folder: Path) -> Journal | None:
    """The journal of an unfinished harvest in a folder; None if there is none. Raises InputError if it is damaged."""
    path = folder / JOURNAL
    if not path.exists():
        return None
    try:
        return Journal.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: key '{key}': {first['msg']}; delete {folder} and start the harvest again"
        ) from None


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}


@dataclass(frozen=True)
class Harvest:
    """How long reading the activations of a text took, in seconds of the reading thread."""

    n_rows: int
    n_tokens: int
    total: float
    """Total time."""
    lm: float
    """Time in the language model."""
    checks: float
    """Time spent selecting and checking activations."""
    disk: float
    """Time spent waiting for the disk, which writes while the language model reads."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens read per second."""
        return self.n_tokens / max(self.total, 1e-9)

    def record(self) -> dict[str, Any]:
        """The same as JSON values, for logs and files."""
        seconds = {"total": self.total, "lm": self.lm, "checks": self.checks, "disk": self.disk}
        return {
            "activations": self.n_rows,
            "tokens": self.n_tokens,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }

    @classmethod
    def of_record(cls, record: dict[str, Any], n_rows: int, n_tokens: int) -> Harvest:
        """The inverse of `record`. Times are 0 if there is no record, as in stores of older versions."""
        seconds = record.get("seconds", {})
        return cls(n_rows, n_tokens, *(float(seconds.get(k, 0.0)) for k in ("total", "lm", "checks", "disk")))

    def __str__(self) -> str:
        parts = {"language model": self.lm, "checks": self.checks, "disk": self.disk}
        shares = ", ".join(f"{name} {100 * s / max(self.total, 1e-9):.0f} %" for name, s in parts.items())
        return (
            f"{self.n_rows:,} activations of {self.n_tokens:,} tokens in {self.total:,.0f} s: "
            f"{self.tokens_per_s:,.0f} tokens/s ({shares})"
        )


class HarvestClock:
    """A clock that starts when it is created."""

    def __init__(self, reader: ActivationReader) -> None:
        self._reader = reader
        self._before = time.perf_counter(), reader.seconds, reader.seconds_checks

    def harvest(self, n_rows: int, n_tokens: int, disk: float = 0.0) -> Harvest:
        """The times so far, for a harvest of this size; `disk` is the time spent waiting for the disk."""
        now = time.perf_counter(), self._reader.seconds, self._reader.seconds_checks
        total, lm, checks = (b - a for a, b in zip(self._before, now, strict=True))
        return Harvest(n_rows, n_tokens, total, lm, checks, disk)
