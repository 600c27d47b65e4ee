"""Ranks that are threads of the test: they exchange tensors as processes do, and start in no time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch import Tensor

from saeforest.ranks import Ranks

T = TypeVar("T")
_PATIENCE_S = 60


class _World:
    """What the threads share. One of them runs at a time."""

    def __init__(self, size: int) -> None:
        self.turn = threading.Lock()
        self.sent = {(a, b): SimpleQueue[dict[str, Tensor]]() for a in range(size) for b in range(size)}
        self.barriers: list[threading.Barrier] = []

    def barrier(self, size: int) -> threading.Barrier:
        self.barriers.append(threading.Barrier(size, timeout=_PATIENCE_S))
        return self.barriers[-1]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self.turn.release()
        try:
            yield
        finally:
            self.turn.acquire()


class _Board:
    """Where each of some threads posts a value for the others."""

    def __init__(self, size: int, world: _World) -> None:
        self._values: list[Any] = [None] * size
        self._world, self._barrier = world, world.barrier(size)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        with self._world.waiting():
            self._barrier.wait()
            found = list(self._values)
            self._barrier.wait()
        return found


class ThreadRanks(Ranks):
    """One of the threads."""

    sent: int
    """Bytes of tensors that it has sent to others."""

    def __init__(self, rank: int, size: int, board: _Board, world: _World) -> None:
        self.rank, self.size, self.sent = rank, size, 0
        self._board, self._world = board, world

    def _every(self, own: Any) -> list[Any]:
        return self._board.exchange(self.rank, own)

    def gather(self, own: Tensor, *, lengths: Sequence[int] | None = None) -> Tensor:
        self.sent += own.nbytes * (self.size - 1)
        every = self._every(own)
        assert lengths is None or [len(part) for part in every] == list(lengths)
        return torch.cat(every)

    def gather_rows(self, own: Tensor, n: int) -> Tensor:
        return self.gather(own)

    def sum(self, own: Tensor) -> Tensor:
        return torch.stack(self._every(own)).sum(0)

    def trade(self, parts: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
        self.sent += sum(part.nbytes for rank, part in enumerate(parts) if rank != self.rank)
        found = [of_rank[self.rank].clone() for of_rank in self._every(list(parts))]
        assert [part.shape for part in found] == list(shapes)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        return json.loads(self._every(json.dumps(make()) if self.first else "")[0])

    def to_first(self, value: Any) -> list[Any]:
        every = self._every(json.dumps(value))
        return [json.loads(text) for text in every[1:]] if self.first else []

    def send(self, tensors: dict[str, Tensor], to: int) -> None:
        self._world.sent[self.rank, to].put({name: tensor.clone() for name, tensor in tensors.items()})

    def receive(self, source: int) -> dict[str, Tensor]:
        with self._world.waiting():
            return self._world.sent[source, self.rank].get(timeout=_PATIENCE_S)

    def share(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self._every(tensors)[0].items()}

    def mesh(self, shards: int) -> tuple[ThreadRanks, ThreadRanks]:
        rows, (row, column) = self.size // shards, divmod(self.rank, shards)
        made = [[_Board(n, self._world) for _ in range(self.size // n)] for n in (rows, shards)]
        columns, lines = self._every(made)[0]
        data = ThreadRanks(row, rows, columns[column], self._world)
        return data, ThreadRanks(column, shards, lines[row], self._world)


def in_ranks(size: int, work: Callable[[Ranks], T]) -> list[T]:
    """What `work` returns on each of `size` ranks. Raises the first error of any."""
    world = _World(size)
    board, found, errors = _Board(size, world), {}, []

    def one(rank: int) -> None:
        with world.turn:
            try:
                found[rank] = work(ThreadRanks(rank, size, board, world))
            except threading.BrokenBarrierError:
                pass  # another one failed
            except BaseException as error:
                errors.append(error)
                for barrier in world.barriers:
                    barrier.abort()

    threads = [threading.Thread(target=one, args=[rank]) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error
    return [found[rank] for rank in range(size)]
