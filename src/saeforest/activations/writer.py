"""Shards on their way to the disk while the language model goes on, and what a harvest took."""

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
# What the harvest took. Not in the manifest: two harvests of one text have the same manifest and shards.
HARVEST = "harvest.json"
# Which language model was read, and how it fares on a short text.
MODEL = "model.json"
# While a harvest is not finished: what there is of it, and the rows that fill no shard yet.
JOURNAL, PENDING = "unfinished.json", "pending.safetensors"
SHARD_ROWS = 1 << 16
# So much of the language model's work is lost at most when a harvest is killed.
_KEEP_EVERY_S = 30.0

_Count = Annotated[int, Field(ge=0, lt=2**40)]


class Shard(BaseModel):
    """A file of activations: `rows` of them, up to the window before `windows` of the text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    file: Annotated[str, Field(pattern=r"^(shard-\d{5,9}|pending)\.safetensors$")]
    rows: _Count
    windows: _Count
    checksum: str


class Journal(BaseModel):
    """What there is of an unfinished harvest."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: Literal[1] = STORE_VERSION
    about: dict[str, Any]
    """What the store will say of itself, and what else decides its bits."""
    shards: list[Shard] = []
    pending: Shard | None = None


class StoreWriter:
    """Fills a folder with shards, in the background and one at a time, so that it can go on after a kill.

    Two shards at most are in memory: the one being written and the one being read. Every finished shard is listed in a
    journal, and what fills no shard yet is kept every half minute. Leaving the context waits for the writing to end,
    whatever happened, so that nobody deletes a folder that is still being filled.

    Raises InputError where the folder holds an unfinished harvest of something else.
    """

    def __init__(self, folder: Path, tokens: Tokens, about: dict[str, Any], bits: dict[str, Any]) -> None:
        self.folder, self.seconds_waited = folder, 0.0
        self._tokens, self._about = tokens, about
        digest = hashlib.blake2b(tokens.ids.numpy().tobytes(), digest_size=16).hexdigest()
        # As JSON gives them back.
        self._journal = Journal(about=_plain({**about, **bits, "text": digest}))
        self._waiting: list[ActivationBatch] = []
        self.n_windows = 0
        """How many windows of the text have been read."""
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
        """What an earlier process has left of the same harvest, in order; call it once, before anything is added."""
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
                    f"{self.folder}: holds an unfinished harvest of other activations ({key}: {there!r} there, "
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
            if shard.file != PENDING:  # that one may well be newer than the journal
                note(f"{error}; reading its activations again")
            return None
        self._d_in = batch.x.shape[1]
        return batch if len(batch) == shard.rows else None

    def add(self, batch: ActivationBatch, n_windows: int) -> None:
        """Takes the activations of the next `n_windows`. Raises what went wrong with an earlier shard."""
        self._check()
        self._waiting.append(batch)
        self.n_windows += n_windows
        if sum(map(len, self._waiting)) >= SHARD_ROWS:
            self._put_shard()
        elif time.monotonic() - self._kept_at > _KEEP_EVERY_S:
            self._put_pending()

    def keep(self) -> None:
        """Writes down all that was added. Raises what goes wrong."""
        if self.n_windows > self._kept_windows:
            self._put_pending()
        self._wait()

    def finish(self, harvest: Callable[[int], Harvest]) -> Harvest:
        """Completes the store. Raises InputError where it holds no activation, and whatever goes wrong in writing."""
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
        """Deletes what this writer has written. The folder stays if it holds anything else."""
        self._pool.shutdown()
        for name in self._created:
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _put_shard(self) -> None:
        self._wait()  # the one before has its number by then
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
        parts.clear()  # what they hold is in memory twice by now
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
        """Raises what went wrong with the shard being written, if it has by now. Doesn't wait."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def _wait(self) -> None:
        """Waits for the shard being written. Raises what went wrong with it."""
        start = time.perf_counter()
        if self._writing is not None:
            self._writing.result()
        self.seconds_waited += time.perf_counter() - start


def tensor_of(site: str) -> str:
    """The name in a shard of the activations at one of the further sites; those at the first are `x`."""
    return f"x at {site}"


def batch_of(tensors: dict[str, Tensor]) -> ActivationBatch:
    """The activations in a shard. Raises KeyError where there are none."""
    prefix = tensor_of("")
    others = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    return ActivationBatch(tensors["x"], tensors["rows"], others)


def read_journal(folder: Path) -> Journal | None:
    """What a folder holds of an unfinished harvest; None where it holds none."""
    path = folder / JOURNAL
    if not path.exists():
        return None
    try:
        return Journal.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: key '{key}': {first['msg']}; delete {folder} and give the command again"
        ) from None


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}


@dataclass(frozen=True)
class Harvest:
    """What reading the activations of a text took, in seconds of the thread that read them."""

    n_rows: int
    n_tokens: int
    total: float
    lm: float
    """In the language model."""
    checks: float
    """Choosing and checking what it gave."""
    disk: float
    """Waiting for the disk, which writes while the language model reads."""

    @property
    def tokens_per_s(self) -> float:
        return self.n_tokens / max(self.total, 1e-9)

    def record(self) -> dict[str, Any]:
        """For logs and files."""
        seconds = {"total": self.total, "lm": self.lm, "checks": self.checks, "disk": self.disk}
        return {
            "activations": self.n_rows,
            "tokens": self.n_tokens,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }

    @classmethod
    def of_record(cls, record: dict[str, Any], n_rows: int, n_tokens: int) -> Harvest:
        """What `record` kept; zeros where it is of a time before there was one."""
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
    """Runs from when it is made."""

    def __init__(self, reader: ActivationReader) -> None:
        self._reader = reader
        self._before = time.perf_counter(), reader.seconds, reader.seconds_checks

    def harvest(self, n_rows: int, n_tokens: int, disk: float = 0.0) -> Harvest:
        now = time.perf_counter(), self._reader.seconds, self._reader.seconds_checks
        total, lm, checks = (b - a for a, b in zip(self._before, now, strict=True))
        return Harvest(n_rows, n_tokens, total, lm, checks, disk)
