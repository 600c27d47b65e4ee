"""Rows that may be more than memory should hold: in memory while they are few, beyond that in a file without a name."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary, finalize

import torch
from jaxtyping import Int
from torch import Tensor

#: Bytes of rows that wait in memory before they are written to the file.
WAITING = 1 << 23
# The mapped files, by the address of their first byte.
_MAPS: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()


class Spill:
    """Rows of one type and shape, on the CPU, that are added at the end.

    Up to `WAITING` bytes of them are held in memory. The file is gone when this object and all tensors of it are, or
    the process ends, however it ends.
    """

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...] = (), folder: Path | None = None) -> None:
        """shape: of one row. folder: on whose disk the file is; None for that of temporary files."""
        self._dtype, self._shape, self._folder = dtype, shape, folder
        self._row_bytes = dtype.itemsize * math.prod(shape)
        self._waiting: list[Tensor] = []
        self._n = self._n_written = 0
        self._file: IO[bytes] | None = None
        self._mapped: Tensor | None = None

    def __len__(self) -> int:
        return self._n

    @property
    def in_memory(self) -> bool:
        """Whether nothing has been written to a file."""
        return self._file is None

    def add(self, rows: Tensor) -> None:
        """Add rows, from any device. Raises OSError, which names the folder, if the disk is full."""
        if not len(rows):
            return
        self._waiting.append(rows.detach().to("cpu", self._dtype))
        self._n += len(rows)
        if (self._n - self._n_written) * self._row_bytes > WAITING:
            self._write_waiting()

    def reserve(self, n: int) -> None:
        """Make room for `n` rows at the end, of any values, which `put` is to write."""
        if n * self._row_bytes <= WAITING:
            self.add(torch.empty(n, *self._shape, dtype=self._dtype))
        else:
            self._write_waiting()
            self._n += n
            self._n_written += n

    def put(self, place: Int[Tensor, "m"], rows: Tensor) -> None:
        """Replace the rows in some places, which ascend."""
        if self._file is None:
            self.tensor[place] = rows
            return
        if not len(place):
            return
        self._write_waiting()
        data, size = _bytes(rows.to(self._dtype)), self._row_bytes
        ends = (place.diff() != 1).nonzero().flatten() + 1
        first = torch.cat([ends.new_zeros(1), ends])
        last = [*ends.tolist(), len(rows)]
        for begin, end, at in zip(first.tolist(), last, place[first].tolist(), strict=True):
            self._write(data[begin * size : end * size], at)

    def read(self, begin: int, end: int) -> Tensor:
        """The rows from `begin` to before `end`, which take memory only as long as they are used."""
        if self._file is None:
            return self.tensor[begin:end]
        self._write_waiting()
        rows = torch.empty(max(end - begin, 0), *self._shape, dtype=self._dtype)
        into, at = _bytes(rows), begin * self._row_bytes
        while into:
            n = os.preadv(self._file.fileno(), [into], at)
            if not n:
                raise OSError(f"{self._folder or tempfile.gettempdir()}: a temporary file was cut")
            into, at = into[n:], at + n
        return rows

    @property
    def tensor(self) -> Tensor:
        """All rows. Those in a file are mapped: the system reads them when they are looked at, and `let_go` forgets
        them. It is one tensor until rows are added."""
        if self._file is None:
            if len(self._waiting) != 1:
                empty = torch.empty(0, *self._shape, dtype=self._dtype)
                self._waiting = [torch.cat([empty, *self._waiting])]
            return self._waiting[0]
        self._write_waiting()
        if self._mapped is None:
            pages = mmap.mmap(self._file.fileno(), self._n * self._row_bytes)
            self._mapped = torch.frombuffer(pages, dtype=self._dtype).view(self._n, *self._shape)
            _MAPS[self._mapped.data_ptr()] = pages
        return self._mapped

    def _write_waiting(self) -> None:
        if self._file is None:
            folder = self._folder
            while folder is not None and not folder.is_dir():
                folder = folder.parent
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed with this object
            finalize(self, self._file.close)
        for rows in self._waiting:
            self._write(_bytes(rows), self._n_written)
            self._n_written += len(rows)
            self._mapped = None
        self._waiting = []

    def _write(self, data: memoryview, place: int) -> None:
        assert self._file is not None
        at = place * self._row_bytes
        try:
            while data:
                n = os.pwrite(self._file.fileno(), data, at)
                data, at = data[n:], at + n
        except OSError as error:
            error.filename = str(self._folder or tempfile.gettempdir())
            raise


def _bytes(rows: Tensor) -> memoryview:
    """The memory of some rows, or of a copy of them if they do not lie together."""
    return rows.contiguous().flatten().view(torch.uint8).numpy().data


def let_go(rows: Tensor) -> None:
    """Take the rows of a mapped file out of this process's memory, until they are looked at again.

    rows: any part of the tensor. A tensor that is not of a `Spill`'s file stays as it is.
    """
    if (pages := _MAPS.get(rows.untyped_storage().data_ptr())) is not None:
        pages.madvise(mmap.MADV_DONTNEED)


def slices(rows: Tensor, n: int) -> Iterator[Tensor]:
    """`rows.split(n)`, letting go of each slice before the next one."""
    for part in rows.split(n):
        yield part
        let_go(rows)
