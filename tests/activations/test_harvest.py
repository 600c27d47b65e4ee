"""Harvesting beside other work: shards are written, and blocks read, in the background, and nothing else changes."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from harvest_cases import ABOUT, PATIENCE_S, SHARD_ROWS, kept_shards, on_read, on_write, threads
from llama_cases import EOS, WIDTH, MakeConfig
from saeforest import InputError
from saeforest.activations import (
    ActivationBatch,
    ActivationReader,
    ActivationStream,
    Harvest,
    LiveActivations,
    StoredActivations,
    harvest_folder,
    harvest_memory,
    open_store,
    writer,
)
from saeforest.activations.reader import all_finite
from saeforest.activations.sources import Stopped, is_store
from saeforest.files import is_temporary, read_json
from saeforest.session import open_reader, read_tokens
from saeforest.text import Tokens
from saeforest.training import run_training
from saeforest.training.log import read_log
from thread_ranks import in_ranks


@pytest.fixture(scope="module")
def tokens(tiny_config: MakeConfig) -> Tokens:
    return read_tokens(tiny_config(), open_reader(tiny_config()), "train", 1280)


@pytest.fixture
def reader(tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> ActivationReader:
    """A new one each time, for its times; 5 batches of windows and 3 shards for `tokens`."""
    monkeypatch.setattr(writer, "SHARD_ROWS", SHARD_ROWS)
    return open_reader(tiny_config())


# Shards are written while the language model reads


def test_a_store_holds_the_bytes_it_always_held(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    harvest_folder(reader, tokens, tmp_path / "a", ABOUT)
    harvest_folder(reader, tokens, tmp_path / "b", ABOUT)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / x).iterdir()} for x in "ab")
    assert set(a) == {"activations.json", "tokens.safetensors", "harvest.json"} | {
        f"shard-0000{i}.safetensors" for i in range(3)
    }
    assert {name for name in a if a[name] != b[name]} <= {"harvest.json"}
    whole = reader.read(tokens, torch.arange(len(tokens.ids)))
    start = 0
    for i in range(3):
        rows = json.loads(a["activations.json"])["shards"][i]["rows"]
        x = torch.cat([batch.x for batch, _ in reader.batches(tokens)])[start : start + rows]
        expected = save({"x": x.clone(), "rows": whole.rows[start : start + rows].clone()})
        assert a[f"shard-0000{i}.safetensors"] == expected
        start += rows
    assert start == len(whole)


def test_the_language_model_reads_on_while_a_shard_is_written(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads_on, in_time = threading.Event(), []
    on_read(monkeypatch, lambda i: reads_on.set() if i == 4 else None)
    on_write(monkeypatch, lambda *_: in_time.append(reads_on.wait(PATIENCE_S)))
    harvest_folder(reader, tokens, tmp_path / "store", ABOUT)
    assert in_time == [True, True, True]
    assert threads("shards") == []


def test_on_a_slow_disk_two_shards_wait_in_memory(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_ROWS", 50)
    reader.batch_size = 2
    read = written = 0
    most = 0

    def look(_: int) -> None:
        nonlocal read, most
        most = max(most, read - written)
        read += 2 * 31

    def count(_: Path, tensors: dict[str, Tensor]) -> None:
        nonlocal written
        time.sleep(0.03)
        written += len(tensors["rows"])

    on_read(monkeypatch, look)
    on_write(monkeypatch, count)
    harvest = harvest_folder(reader, tokens, tmp_path / "store", ABOUT)
    assert harvest is not None
    # A shard of one batch each: one being written, one read, and the batch that the language model is ahead.
    assert 2 * 31 <= most <= 4 * 2 * 31
    assert harvest.disk > 0.05, "it waited for the disk and says so"
    assert open_store(tmp_path / "store").n_rows == harvest.n_rows


def test_an_error_of_the_disk_stops_the_harvest_at_once(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.batch_size = 1
    full, reads = threading.Event(), []

    def fail(path: Path, _: dict[str, Tensor]) -> None:
        if path.name.startswith("shard-00001"):
            full.set()
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def follow(i: int) -> None:
        if full.is_set():
            reads.append(i)
            time.sleep(0.2)

    on_write(monkeypatch, fail)
    on_read(monkeypatch, follow)
    with pytest.raises(OSError, match="No space left") as error:
        harvest_folder(reader, tokens, tmp_path / "store", ABOUT)
    assert error.value.errno == errno.ENOSPC
    assert len(reads) <= 3, "it read on for a disk that is full"
    assert not is_store(tmp_path / "store")
    assert kept_shards(tmp_path / "store") == ["shard-00000.safetensors"]
    assert threads("shards") == []


def test_an_error_of_the_last_shard_is_told(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, _: dict[str, Tensor]) -> None:
        if path.name.startswith("shard-00002"):
            raise OSError(errno.EIO, "Input/output error")

    on_write(monkeypatch, fail)
    with pytest.raises(OSError, match="Input/output"):
        harvest_folder(reader, tokens, tmp_path / "store", ABOUT)
    assert not is_store(tmp_path / "store")
    assert kept_shards(tmp_path / "store") == ["shard-00000.safetensors", "shard-00001.safetensors"]


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_really_full_is_told_in_a_line(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses to write more, and safetensors has an error of its own for that."""
    monkeypatch.setattr(writer, "SHARD_ROWS", 10**6)
    folder = tmp_path / "store"
    with file_size_limit(40_000), pytest.raises(OSError, match="File too large") as error:
        harvest_folder(reader, tokens, folder, ABOUT)
    assert error.value.filename == str(folder / "shard-00000.safetensors")
    assert not is_store(folder)
    assert not any(map(is_temporary, folder.iterdir()))


def test_ctrl_c_while_a_shard_is_written_waits_for_it(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, stopped = threading.Event(), threading.Event()

    def interrupt(i: int) -> None:
        if i == 4:
            assert writing.wait(PATIENCE_S)
            stopped.set()
            raise KeyboardInterrupt

    def slowly(*_: Any) -> None:
        writing.set()
        stopped.wait(PATIENCE_S)
        time.sleep(0.1)  # long after a harvest that doesn't wait would have cleaned up

    on_read(monkeypatch, interrupt)
    on_write(monkeypatch, slowly)
    with pytest.raises(KeyboardInterrupt):
        harvest_folder(reader, tokens, tmp_path / "store", ABOUT)
    assert threads("shards") == []
    assert kept_shards(tmp_path / "store") == ["shard-00000.safetensors"]


# What it took


def test_a_harvest_says_where_the_time_went(reader: ActivationReader, tokens: Tokens, tmp_path: Path) -> None:
    harvest = harvest_folder(reader, tokens, tmp_path / "store", ABOUT)
    assert harvest is not None
    assert harvest.n_tokens == 1280
    assert min(harvest.lm, harvest.checks) > 0
    assert harvest.disk >= 0
    assert harvest.lm + harvest.checks + harvest.disk <= harvest.total
    assert harvest.lm == pytest.approx(reader.seconds)
    record = read_json(tmp_path / "store" / "harvest.json")
    assert record == harvest.record() == open_store(tmp_path / "store").harvest
    assert record["seconds"].keys() == {"total", "lm", "checks", "disk"}
    memory = harvest_memory(reader, tokens, 0).harvest
    assert memory.keys() == record.keys()
    assert memory["activations"] == record["activations"] == harvest.n_rows
    assert memory["seconds"]["lm"] < reader.seconds, "the first harvest's time isn't the second's"


def test_the_line_of_a_harvest() -> None:
    line = str(Harvest(593_042, 600_000, total=231.66, lm=222.4, checks=4.6, disk=2.3))
    assert line == (
        "593,042 activations of 600,000 tokens in 232 s: 2,590 tokens/s "
        "(language model 96 %, checks 2 %, disk 1 %)"
    )


def test_a_store_of_before_is_read_all_the_same(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path
) -> None:
    harvest_folder(reader, tokens, tmp_path / "store", ABOUT)
    (tmp_path / "store" / "harvest.json").unlink()
    stream = ActivationStream(open_store(tmp_path / "store"), 100)
    assert stream.harvest == {}
    assert len(stream.next()) == 100


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_the_log_of_a_run_begins_with_its_harvest(
    store: str, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    run_training(tiny_config(tokens=1024, epochs=1, activations={"store": store}), tmp_path / "run")
    first, *others = read_log(tmp_path / "run")
    assert (first["event"], first["step"], first["tokens"]) == ("harvest", 0, 1024)
    assert first["tokens_per_s"] == pytest.approx(1024 / first["seconds"]["total"], rel=0.2)
    steps = [line for line in others if "event" not in line]
    assert all(line["seconds"]["lm"] == 0 for line in steps)
    assert all(line["seconds"]["data"] >= 0 for line in steps)


# The checks


def test_large_activations_are_finite(reader: ActivationReader, tokens: Tokens) -> None:
    """The squares of their entries are not, in float32."""
    x = torch.full((600, 3), 1e30)
    assert all_finite(x)
    for i, bad in ((0, float("nan")), (511, float("inf")), (599, float("-inf"))):
        damaged = x.clone()
        damaged[i, 1] = bad
        assert not all_finite(damaged)
    windows = torch.arange(2)
    whole = torch.full((2, 32, WIDTH), 1e30)
    assert torch.equal(reader.kept(tokens, windows, whole).x, whole[:, 1:][tokens.ids[:2, 1:] != EOS])
    whole[0, 0] = float("nan")  # at a position that doesn't count
    reader.kept(tokens, windows, whole)
    whole[1, 5, 2] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite"):
        reader.kept(tokens, windows, whole)


def test_a_row_above_the_largest_norm_is_left_out(reader: ActivationReader, tokens: Tokens) -> None:
    reader.max_norm = 4.0
    x = torch.ones(1, 32, WIDTH)  # a norm of 4
    x[0, 7] *= 1.1
    x[0, 9] = float("inf")  # too large as well, but it must be told, not dropped
    with pytest.raises(InputError, match="NaN or infinite"):
        reader.kept(tokens, torch.arange(1), x)
    x[0, 9] = 1.0
    found = reader.kept(tokens, torch.arange(1), x).rows.tolist()
    assert 7 not in found
    assert {6, 8, 9} <= set(found) | set((tokens.ids[0] == EOS).nonzero().flatten().tolist())


# Blocks are read while the training uses the one before


class Slow:
    """A source that has to be read, and that can be watched. A block in `endless` is read until it is stopped."""

    d_in = 2
    n_blocks = 3
    in_background = True

    def __init__(self, *endless: tuple[int, int], seconds: float = 0.0) -> None:
        self.endless, self.seconds = endless, seconds
        self.begun: list[tuple[int, int]] = []
        self.stopped: list[tuple[int, int]] = []
        self.fails_at: tuple[int, int] | None = None
        self.reading = 0

    def block(self, epoch: int, index: int, stop: Callable[[], bool] = lambda: False) -> ActivationBatch:
        self.reading += 1
        assert self.reading == 1, "two threads read at once"
        try:
            self.begun.append((epoch, index))
            time.sleep(self.seconds)
            while (epoch, index) in self.endless:
                time.sleep(0.01)
                if stop():
                    self.stopped.append((epoch, index))
                    raise Stopped
            if (epoch, index) == self.fails_at:
                raise InputError(f"block {index} of epoch {epoch} is damaged")
            rows = torch.arange(10) + 1000 * epoch + 100 * index
            return ActivationBatch(rows[:, None].float().expand(-1, 2), rows)
        finally:
            self.reading -= 1


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_next_block_is_read_in_the_background() -> None:
    source = Slow()
    stream = ActivationStream(source, 4)
    stream.next()
    wait_until(lambda: source.begun == [(0, 0), (0, 1)])
    found = [row for _ in range(7) for row in stream.next().rows.tolist()]
    assert found[:10] == [4, 5, 6, 7, 8, 9, 100, 101, 102, 103]
    wait_until(lambda: source.begun == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)])
    assert stream.state() == {"epoch": 1, "block": 0, "row": 2}


def test_no_block_is_read_ahead_where_it_does_not_pay() -> None:
    source = Slow()
    source.in_background = False
    stream = ActivationStream(source, 4)
    stream.next()
    time.sleep(0.05)
    assert source.begun == [(0, 0)]
    assert threads("next block") == []


def test_a_stream_says_how_long_it_was_waited_for() -> None:
    source = Slow(seconds=0.5)
    stream = ActivationStream(source, 10)
    stream.next()
    assert stream.seconds >= 0.5
    wait_until(lambda: len(source.begun) == 2 and source.reading == 0)
    before = stream.seconds
    stream.next()
    assert stream.seconds - before < 0.3, "the block was there already"


def test_going_elsewhere_drops_the_block_under_way() -> None:
    source = Slow((0, 1))
    stream = ActivationStream(source, 4)
    stream.next()
    wait_until(lambda: source.begun == [(0, 0), (0, 1)])
    stream.restore({"epoch": 2, "block": 1, "row": 3})
    assert source.stopped == [(0, 1)]
    assert stream.next().rows.tolist() == [2103, 2104, 2105, 2106]
    assert stream.state() == {"epoch": 2, "block": 1, "row": 7}
    stream.restore({"epoch": 0, "block": 2, "row": 8})
    assert stream.next().rows.tolist() == [208, 209, 1000, 1001]


def test_an_error_in_the_background_is_raised_where_the_block_is_needed() -> None:
    source = Slow()
    source.fails_at = (0, 1)
    stream = ActivationStream(source, 6)
    assert stream.next().rows.tolist() == [0, 1, 2, 3, 4, 5]
    for _ in range(2):
        with pytest.raises(InputError, match="block 1 of epoch 0 is damaged"):
            stream.next()
    source.fails_at = None
    assert stream.next().rows.tolist() == [100, 101, 102, 103, 104, 105], "the place was kept"


@pytest.mark.parametrize("how", ["close", "forget"])
def test_the_thread_ends_with_its_stream(how: str) -> None:
    source = Slow((0, 1))
    stream = ActivationStream(source, 4)
    stream.next()
    wait_until(lambda: source.begun == [(0, 0), (0, 1)])
    if how == "close":
        stream.close()
    else:
        del stream
    assert source.stopped == [(0, 1)]
    assert threads("next block") == []


def test_python_does_not_wait_for_a_block_that_nobody_wants() -> None:
    program = """if True:
        import sys, time
        sys.path.append("activations")
        from test_harvest import Slow
        from saeforest.activations import ActivationStream
        stream = ActivationStream(Slow((0, 1)), 4)
        stream.next()
        print(time.time(), flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert time.time() - float(done.stdout) < 50


@pytest.mark.parametrize("kind", ["live", "disk"])
def test_real_sources_stop_in_the_middle_of_a_block(
    kind: str, reader: ActivationReader, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    if kind == "live":
        source: LiveActivations | StoredActivations = LiveActivations(reader, tokens, 0, WIDTH)
        on_read(monkeypatch, reads.append)
    else:
        harvest_folder(reader, tokens, tmp_path / "store", ABOUT)
        source = open_store(tmp_path / "store")
        shard = StoredActivations.shard

        def counted(self: StoredActivations, index: int) -> ActivationBatch:
            reads.append(index)
            return shard(self, index)

        monkeypatch.setattr(StoredActivations, "shard", counted)
    with pytest.raises(Stopped):
        source.block(0, 0, lambda: True)
    assert 1 <= len(reads) <= 2


def test_a_language_model_beside_its_trainer_is_read_in_the_foreground(
    reader: ActivationReader, tokens: Tokens
) -> None:
    assert not LiveActivations(reader, tokens, 0, WIDTH).in_background


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_divide_the_passes_of_a_block(
    size: int, reader: ActivationReader, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads some of the windows, and all get the block of one process, bit for bit."""
    reader.batch_size = 2
    alone = LiveActivations(reader, tokens, 0, WIDTH).block(0, 0)
    reads: list[int] = []
    on_read(monkeypatch, reads.append)
    for batch in in_ranks(size, lambda ranks: LiveActivations(reader, tokens, 0, WIDTH, ranks).block(0, 0)):
        assert torch.equal(batch.x, alone.x)
        assert torch.equal(batch.rows, alone.rows)
    assert len(reads) == -(-len(tokens.ids) // reader.batch_size)


def test_two_threads_may_read_with_one_reader(reader: ActivationReader, tokens: Tokens) -> None:
    reader.batch_size = 2
    expected = torch.cat([batch.x for batch, _ in reader.batches(tokens)])
    found: list[Tensor] = []

    def read() -> None:
        found.append(torch.cat([batch.x for batch, _ in reader.batches(tokens)]))

    both = [threading.Thread(target=read) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(found) == 2
    assert all(torch.equal(x, expected) for x in found)
