"""What fired on which token, and some of the activations: kept during the pass over activations, for what comes after.

In a run it is kept in files, a shard a minute, so that a stopped index goes on; otherwise in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float16, Float32, Int, Int32, Int64
from torch import Tensor

from ...errors import InputError
from ...files import check_file, read_tensors, write_tensors
from ...sparse_code import SparseCode, from_entries

#: Number of firings after which a shard is closed even before it is time to.
SHARD_FIRINGS = 1 << 20
# Multipliers of splitmix64, as signed numbers.
_STEP, _MIX = -0x61C8864680B583EB, (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


def hashes(rows: Int[Tensor, "n"]) -> Int64[Tensor, "n"]:
    """A number from 0 to 2^63 - 1 for each row, as if drawn at random, but always the same (splitmix64)."""
    z = (rows.long() + 1) * _STEP
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX[0]
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX[1]
    return (z ^ ((z >> 31) & ((1 << 33) - 1))) & ((1 << 63) - 1)


def lowest(n_rows: int, n: int) -> Bool[Tensor, "n_rows"]:
    """Which rows of a text have the `n` lowest hashes: a sample that depends on nothing else."""
    if n >= n_rows:
        return torch.ones(n_rows, dtype=torch.bool)
    found = hashes(torch.arange(n_rows))
    return found <= found.kthvalue(n).values if n else torch.zeros(n_rows, dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the activations.

    rows, width:  row of each activation in the text, and how many features fire on it.
    ids, values:  of all firings, activation by activation.
    x_row, x:     activations of the sample, as they were read.
    u_feature, u_row, u: a feature with children, and a row that is among the first on which it fires; and the
                  activations of these rows (`u_place` says which), in the units of the SAE.
    """

    rows: Int64[Tensor, "n"]
    width: Int32[Tensor, "n"]
    ids: Int32[Tensor, "m"]
    values: Float32[Tensor, "m"]
    x_row: Int64[Tensor, "s"]
    x: Float[Tensor, "s d_in"]
    u_feature: Int64[Tensor, "g"]
    u_row: Int64[Tensor, "g"]
    u_place: Int64[Tensor, "g"]
    u: Float16[Tensor, "v d_in"]

    def row_of(self) -> Int64[Tensor, "m"]:
        """The row of each firing."""
        return self.rows.repeat_interleave(self.width)

    def codes(self, kept: Bool[Tensor, "n"] | None = None, step: int = 1 << 14) -> Iterator[SparseCode]:
        """The codes of the activations, or of those that are kept, in slices."""
        of = torch.repeat_interleave(torch.arange(len(self.rows)), self.width)
        ids, values, n = self.ids, self.values, len(self.rows)
        if kept is not None:
            place = kept.cumsum(0) - 1
            mine = kept[of]
            of, ids, values, n = place[of[mine]], ids[mine], values[mine], int(kept.sum())
        for first in range(0, n, step):
            low, high = torch.searchsorted(of, torch.tensor([first, first + step]))
            yield from_entries(
                of[low:high] - first, ids[low:high].long(), values[low:high], min(step, n - first)
            )

    def valid(self, d_sae: int, d_in: int) -> bool:
        """Whether the tensors fit each other and an SAE."""
        n, m, s, g, v = map(len, (self.rows, self.ids, self.x_row, self.u_row, self.u))
        return (
            all(getattr(self, field.name).ndim == (2 if field.name in ("x", "u") else 1) for field in fields(self))
            and (len(self.width), len(self.values), len(self.x), len(self.u_feature), len(self.u_place))
            == (n, m, s, g, g)
            and self.x.shape[1] == self.u.shape[1] == d_in
            and int(self.width.sum()) == m
            and all(_within(ids, d_sae) for ids in (self.ids, self.u_feature))
            and _within(self.u_place, v)
        )  # fmt: skip


def _within(ids: Tensor, n: int) -> bool:
    return not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < n


def joined(parts: list[Part]) -> Part:
    """All parts as one."""
    if len(parts) == 1:
        return parts[0]
    before = torch.tensor([0, *(len(part.u) for part in parts)]).cumsum(0).tolist()
    found = {field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Part)}
    found["u_place"] = torch.cat([part.u_place + n for part, n in zip(parts, before, strict=False)])
    return Part(**found)


class Firings:
    """The parts so far. `folder` is where they are written; None keeps them in memory."""

    def __init__(self, d_sae: int, d_in: int) -> None:
        self.folder: Path | None = None
        self.checksums: dict[str, str] = {}
        self._sizes = d_sae, d_in
        self._open: list[Part] = []
        self._closed: list[Part] = []
        self._n_open = 0

    def add(self, part: Part) -> None:
        """Add a part."""
        self._open.append(part)
        self._n_open += len(part.ids)
        if self._n_open >= SHARD_FIRINGS:
            self.close()

    def close(self) -> None:
        """Write what was added since the last shard."""
        if not self._open:
            return
        part = joined(self._open)
        self._open, self._n_open = [], 0
        if self.folder is None:
            self._closed.append(part)
            return
        name = _name(len(self.checksums))
        tensors = {field.name: getattr(part, field.name) for field in fields(part)}
        self.checksums[name] = write_tensors(self.folder / name, tensors)

    def restore(self, folder: Path, checksums: Mapping[str, Any]) -> None:
        """Go on after the shards of an earlier process. Raises InputError or ValueError if one is damaged."""
        names = [_name(i) for i in range(len(checksums))]
        if sorted(checksums) != names or not all(isinstance(checksums[name], str) for name in names):
            raise ValueError("shards are missing")
        for name in names:
            check_file(folder / name, checksums[name])
        self.folder, self.checksums = folder, dict(checksums)

    def __iter__(self) -> Iterator[Part]:
        """All parts, in the order of reading. Raises InputError if a shard is damaged."""
        self.close()
        yield from self._closed
        for name in self.checksums:
            assert self.folder is not None
            tensors = read_tensors(self.folder / name, self.checksums[name], "delete it and index again")
            part = Part(**tensors)
            if not part.valid(*self._sizes):
                raise InputError(f"{self.folder / name}: damaged; delete it and index again")
            yield part


def _name(i: int) -> str:
    return f"firings-{i:05d}.safetensors"


def remove_shards(folder: Path) -> None:
    """Delete all shards in a folder."""
    for path in folder.glob("firings-*.safetensors"):
        path.unlink(missing_ok=True)
