"""Shards on their way to the disk while the language model goes on, and what a harvest took."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..files import write_tensors
from .reader import ActivationBatch, ActivationReader


class ShardWriter:
    """Writes shards into a folder, in the background and one at a time.

    So two shards at most are in memory: the one being written and the one being read. Leaving the context waits for
    the writing to end, whatever happened, so that nobody deletes a folder that is still being filled.
    """

    def __init__(self, folder: Path) -> None:
        self.shards: list[dict[str, Any]] = []
        """File and number of rows of each, as the manifest lists them."""
        self.seconds_waited = 0.0
        """Time spent waiting for the disk so far."""
        self._folder = folder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._writing: Future[None] | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def put(self, parts: list[ActivationBatch]) -> None:
        """Makes a shard of `parts`, and empties the list. Raises what went wrong with the shard before."""
        self.wait()
        name = f"shard-{len(self.shards):05}.safetensors"
        self.shards.append({"file": name, "rows": sum(map(len, parts))})
        self._writing = self._pool.submit(_write, self._folder / name, parts.copy())
        parts.clear()

    def check(self) -> None:
        """Raises what went wrong with the shard being written, if it has by now. Doesn't wait."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def wait(self) -> None:
        """Waits for the shard being written. Raises what went wrong with it."""
        start = time.perf_counter()
        if self._writing is not None:
            self._writing.result()
        self.seconds_waited += time.perf_counter() - start


def _write(path: Path, parts: list[ActivationBatch]) -> None:
    tensors = {"x": torch.cat([part.x for part in parts]), "rows": torch.cat([part.rows for part in parts])}
    parts.clear()  # what they hold is in memory twice by now
    write_tensors(path, tensors)


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
