"""Rows beyond what memory should hold are in a file: the same rows, whose pages can be let go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from saeforest import spill
from saeforest.spill import Spill, let_go, slices


@pytest.mark.parametrize("waiting", [1 << 20, 100])
@pytest.mark.parametrize(("dtype", "shape"), [(torch.int32, ()), (torch.bfloat16, (3,))])
def test_rows_come_back_as_they_were(
    dtype: torch.dtype, shape: tuple[int, ...], waiting: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "WAITING", waiting)
    rows = torch.randint(-99, 99, (101, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    kept = Spill(dtype, shape, tmp_path / "not yet there")
    for part in rows[:90].split([50, 0, 7, 33]):
        kept.add(part)
    assert torch.equal(kept.tensor, rows[:90])
    kept.add(rows[90:])
    assert len(kept) == 101
    assert kept.in_memory == (waiting > 100)
    assert torch.equal(kept.tensor, rows)
    assert torch.equal(kept.read(37, 95), rows[37:95])
    assert not len(kept.read(40, 40))
    assert [torch.equal(a, b) for a, b in zip(slices(kept.tensor, 40), rows.split(40), strict=True)] == [
        True
    ] * 3
    assert not list(tmp_path.iterdir())  # the file has no name

    order = torch.randperm(101, generator=torch.Generator().manual_seed(1))
    other = Spill(dtype, shape, tmp_path)
    other.reserve(101)
    for part in order.split(30):  # as places that ascend, in runs and alone
        place = part.sort().values
        other.put(place, rows[place])
    other.put(torch.zeros(0, dtype=torch.int64), rows[:0])
    assert torch.equal(other.tensor, rows)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is counted as Linux does")
def test_what_is_let_go_takes_no_memory_and_can_be_read_again(tmp_path: Path) -> None:
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")

    kept = Spill(torch.float32, (1024,), tmp_path)
    for i in range(6):
        kept.add(torch.full((1024, 1024), float(i)))
    before = mapped()
    total = kept.tensor.sum()
    assert mapped() - before > 20 << 20
    let_go(kept.tensor[5:])
    assert mapped() - before < 2 << 20
    assert kept.tensor.sum() == total
    let_go(torch.ones(3))  # another tensor stays


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill, "WAITING", 100)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as error:
        Spill(torch.float32, folder=tmp_path).add(torch.zeros(100))
    assert error.value.filename == str(tmp_path)
