"""Activations: which positions count, every source gives every row once, positions are exact, damage is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edits import edit_json, forget_checksums
from llama_cases import EOS, WIDTH, MakeConfig, save_llama
from saeforest import InputError
from saeforest.activations import (
    ActivationBatch,
    ActivationReader,
    ActivationStream,
    Blocks,
    LiveActivations,
    StoredActivations,
    harvest_folder,
    harvest_memory,
    open_store,
    sources,
    writer,
)
from saeforest.activations.sources import is_store, seeded
from saeforest.lm import load_lm
from saeforest.session import open_reader, read_tokens
from saeforest.text import Tokens

SITE = "blocks.1.hook_resid_post"
ABOUT: dict[str, Any] = {
    "model": "tiny", "site": SITE, "data": "text", "tokens": 1280, "context": 32, "held_out": 0.2,
    "exclude_first": True, "exclude_special": True, "max_norm": 0.0,
}  # fmt: skip
KINDS = ["memory", "disk", "live", "ahead"]
Open = Callable[..., Blocks]


class Ahead(LiveActivations):
    """Read from the language model in the background, as where it has a GPU to itself."""

    @property
    def in_background(self) -> bool:
        return True


@pytest.fixture(scope="module")
def reader(tiny_config: MakeConfig) -> ActivationReader:
    return open_reader(tiny_config())


@pytest.fixture(scope="module")
def tokens(tiny_config: MakeConfig, reader: ActivationReader) -> Tokens:
    return read_tokens(tiny_config(), reader, "train", 1280)


@pytest.fixture
def open_source(
    reader: ActivationReader, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Open:
    """Sources with blocks so small that a few dozen windows make several of them."""
    monkeypatch.setattr(sources, "BLOCK_ROWS", 100)
    monkeypatch.setattr(writer, "SHARD_ROWS", 100)
    monkeypatch.setattr(sources, "SHARDS_MIXED", 2)

    def open_kind(kind: str, seed: int = 0) -> Blocks:
        if kind == "memory":
            return harvest_memory(reader, tokens, seed)
        if kind == "disk":
            folder = tmp_path / "store"
            if not is_store(folder):
                harvest_folder(reader, tokens, folder, ABOUT)
            return open_store(folder, seed)
        return (Ahead if kind == "ahead" else LiveActivations)(reader, tokens, seed, WIDTH)

    return open_kind


def epoch(blocks: Blocks, number: int) -> ActivationBatch:
    parts = [blocks.block(number, i) for i in range(blocks.n_blocks)]
    return ActivationBatch(torch.cat([p.x for p in parts]), torch.cat([p.rows for p in parts]))


def same(a: ActivationBatch, b: ActivationBatch) -> bool:
    return torch.equal(a.rows, b.rows) and torch.equal(a.x, b.x)


# Reading


def test_first_positions_and_special_tokens_are_left_out(reader: ActivationReader) -> None:
    ids = torch.tensor([[5, 6, EOS, 7], [EOS, EOS, 8, 9]], dtype=torch.int32)

    def keep(first: bool, special: bool) -> list[list[int]]:
        chosen = ActivationReader(reader.lm, reader.site, exclude_first=first, exclude_special=special)
        return chosen.keep(ids).int().tolist()

    assert keep(True, True) == [[0, 1, 0, 1], [0, 0, 1, 1]]
    assert keep(True, False) == [[0, 1, 1, 1], [0, 1, 1, 1]]
    assert keep(False, True) == [[1, 1, 0, 1], [0, 0, 1, 1]]
    assert keep(False, False) == [[1, 1, 1, 1], [1, 1, 1, 1]]


def test_rows_point_at_the_tokens_that_were_read(reader: ActivationReader, tokens: Tokens) -> None:
    windows = torch.tensor([3, 0, 7])
    batch = reader.read(tokens, windows)
    everything = reader.lm.activations(tokens.ids[windows].long(), reader.site)
    flat = tokens.ids.flatten()
    assert len(batch) == int(reader.keep(tokens.ids[windows]).sum()) == len(batch.x)
    for x, row in zip(batch.x, batch.rows.tolist(), strict=True):
        window, position = divmod(row, tokens.context)
        assert position > 0
        assert flat[row] != EOS
        assert torch.equal(x, everything[windows.tolist().index(window), position])


def test_batches_read_every_window_once_and_count_their_tokens(
    reader: ActivationReader, tokens: Tokens
) -> None:
    found = list(reader.batches(tokens))
    assert sum(n for _, n in found) == tokens.n_tokens == 1280
    rows = torch.cat([batch.rows for batch, _ in found])
    keep = reader.keep(tokens.ids).flatten().nonzero().flatten()
    assert torch.equal(rows, keep)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_names_document_and_position(tmp_path: Path, bad: float) -> None:
    """Every "Z" (byte 90) is embedded as NaN; there is one, at token 5 of the second document. Later in the model
    attention spreads it over the window."""

    lm = load_lm(str(save_llama(tmp_path / "model")))
    weights: Any = lm.model.get_input_embeddings().weight
    weights.data[90] = bad  # a model with such weights in its files is not loaded in the first place
    texts = ["hello world, all is well", "12345Z789"]
    ids = [i for text in texts for i in [*text.encode(), EOS]]
    ids += [EOS] * (-len(ids) % 8)
    starts = torch.tensor([0, len(texts[0]) + 1])
    text = Tokens(torch.tensor(ids, dtype=torch.int32).view(-1, 8), starts, ("first.txt", "notes.jsonl:7"))
    reader = ActivationReader(lm, lm.site("model.embed_tokens"), batch_size=2)
    with pytest.raises(InputError, match=r"document 'notes\.jsonl:7', token 5;") as error:
        list(reader.batches(text))
    assert "\n" not in str(error.value)
    assert "model.embed_tokens" in str(error.value)
    reader = ActivationReader(lm, lm.site(SITE), batch_size=2)
    with pytest.raises(InputError, match="NaN or infinite"):
        harvest_folder(reader, text, tmp_path / "store", ABOUT)
    assert [left.name for left in tmp_path.iterdir()] == ["model"], "half a store"


def test_a_norm_that_overflows_is_only_too_large(reader: ActivationReader, tokens: Tokens) -> None:
    """Its entries are finite: it is left out like any row above `max_norm`, where there is one."""
    limited = replace(reader, max_norm=1e6)
    x = torch.ones(1, tokens.context, WIDTH)
    x[0, 4] = 1e30
    windows, ids = torch.arange(1), tokens.ids[:1]
    assert 4 in reader.kept(tokens, windows, x).rows.tolist()
    assert 4 not in limited.kept(tokens, windows, x).rows.tolist()
    assert not bool(limited.keep(ids, x)[0, 4])
    x[0, 6] = float("inf")
    with pytest.raises(InputError, match=r"token 6; choose another site$"):  # it was read in float32 as it is
        limited.kept(tokens, windows, x)


# Sources


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_holds_every_row_once_with_its_activation(
    kind: str, open_source: Open, reader: ActivationReader, tokens: Tokens
) -> None:
    blocks = open_source(kind)
    assert blocks.n_blocks >= 3
    assert blocks.d_in == WIDTH
    whole = reader.read(tokens, torch.arange(len(tokens.ids)))
    for number in (0, 1, 5):
        found = epoch(blocks, number)
        order = found.rows.argsort()
        assert torch.equal(found.rows[order], whole.rows)
        torch.testing.assert_close(found.x[order], whole.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_depends_on_epoch_and_seed_alone(kind: str, open_source: Open) -> None:
    blocks, again, other = open_source(kind, 0), open_source(kind, 0), open_source(kind, 1)
    first = epoch(blocks, 0)
    assert not torch.equal(first.rows, epoch(blocks, 1).rows)
    assert not torch.equal(first.rows, epoch(other, 0).rows)
    assert not torch.equal(first.rows, first.rows.sort().values)
    # Another object, blocks in another order: the same rows.
    for i in reversed(range(again.n_blocks)):
        assert same(again.block(1, i), blocks.block(1, i))
    assert same(epoch(again, 0), first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_mixes_rows_from_afar(kind: str, open_source: Open, tokens: Tokens) -> None:
    """A block of a shuffled source isn't a stretch of the text: neighbours are far apart in it."""
    rows = epoch(open_source(kind), 0).rows
    near = ((rows[1:] - rows[:-1]).abs() < 32).float().mean()
    assert near < 0.5


def test_memory_keeps_the_type_of_the_language_model(tiny_config: MakeConfig) -> None:
    config = tiny_config(lm={"dtype": "bfloat16"})
    reader = open_reader(config)
    memory = harvest_memory(reader, read_tokens(config, reader, "train", 320), 0)
    assert memory.x.dtype == torch.bfloat16
    assert len(memory.x) == len(memory.rows) < 320


def test_text_without_a_token_that_counts_is_told(reader: ActivationReader) -> None:
    nothing = Tokens(torch.full((3, 8), EOS, dtype=torch.int32), torch.tensor([0]), ("empty",))
    with pytest.raises(InputError, match="no activations"):
        harvest_memory(reader, nothing, 0)


def test_generators_for_different_places_differ() -> None:
    paths: list[tuple[int | str, ...]] = [
        ("rows", 0),
        ("rows", 1),
        ("windows", 0),
        ("rows", 0, 1),
        ("rows", 1, 0),
    ]
    draws = {
        tuple(torch.rand(3, generator=seeded(seed, *path)).tolist()) for seed in (0, 1) for path in paths
    }
    assert len(draws) == 2 * len(paths)


# The stream


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 37, 100, 512, 3000])
def test_a_stream_gives_whole_batches_in_the_order_of_the_source(
    kind: str, size: int, open_source: Open
) -> None:
    """3000 is more than two epochs at once."""
    blocks = open_source(kind)
    stream = ActivationStream(blocks, size)
    expected = torch.cat([epoch(blocks, number).rows for number in range(6)])
    for i in range(2 if size > 1000 else 5):
        batch = stream.next()
        assert len(batch) == len(batch.x) == size
        assert torch.equal(batch.rows, expected[i * size : (i + 1) * size])
    assert stream.seconds > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_from_any_point(kind: str, open_source: Open) -> None:
    """Within blocks, at their ends, across epochs: a state taken anywhere leads to the very next batch."""
    size, n = 90, 40
    stream = ActivationStream(open_source(kind), size)
    states, batches = [], []
    for _ in range(n):
        states.append(json.loads(json.dumps(stream.state())))
        batches.append(stream.next())
    epochs = {state["epoch"] for state in states}
    assert len(epochs) >= 3
    assert {state["row"] for state in states} > {0}
    fresh = ActivationStream(open_source(kind), size)
    for i in [*range(0, n - 1, 4), *range(5)]:
        fresh.restore(states[i])
        assert same(fresh.next(), batches[i]), i
        assert same(fresh.next(), batches[i + 1]), i


def test_a_state_at_the_very_end_of_an_epoch_leads_into_the_next(open_source: Open) -> None:
    blocks = open_source("memory")
    n_rows = len(epoch(blocks, 0))
    stream = ActivationStream(blocks, n_rows)
    first = stream.next()
    state = stream.state()
    second = stream.next()
    assert torch.equal(first.rows.sort().values, second.rows.sort().values)
    again = ActivationStream(blocks, n_rows)
    again.restore(state)
    assert same(again.next(), second)


# The store on disk


@pytest.fixture
def store(open_source: Open, tmp_path: Path) -> Path:
    blocks = open_source("disk")
    assert isinstance(blocks, StoredActivations)
    assert len(blocks.shards) >= 3
    return tmp_path / "store"


def told(store: Path, names: str) -> str:
    with pytest.raises(InputError) as error:
        epoch(open_store(store), 0)
    message = str(error.value)
    assert "\n" not in message
    assert str(store) in message
    assert names in message
    return message


def edit_manifest(store: Path, **changes: Any) -> None:
    edit_json(store / "activations.json", **changes)


def test_a_store_holds_its_tokens_and_what_it_was_made_of(store: Path, tokens: Tokens) -> None:
    opened = open_store(store)
    assert opened.manifest.items() >= ABOUT.items()
    again = opened.tokens()
    assert torch.equal(again.ids, tokens.ids)
    assert again.names == tokens.names
    assert opened.n_rows == len(epoch(opened, 0))
    assert {p.suffix for p in store.iterdir()} == {".json", ".safetensors"}


def test_an_interrupted_harvest_is_no_store(store: Path) -> None:
    (store / "activations.json").unlink()
    assert not is_store(store)
    assert "no activations.json" in told(store, "harvest")


def test_a_missing_shard(store: Path) -> None:
    (store / "shard-00001.safetensors").unlink()
    assert "missing" in told(store, "shard-00001.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_shard(store: Path, share: float) -> None:
    path = store / "shard-00001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert "does not match its checksum" in told(store, "shard-00001.safetensors")
    forget_checksums(store)
    assert "not a whole safetensors file" in told(store, "shard-00001.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_shard_with_a_nan(store: Path, bad: float) -> None:
    path = store / "shard-00001.safetensors"
    tensors = load_file(path)
    tensors["x"][7, 3] = bad
    save_file(tensors, path)
    forget_checksums(store)
    assert "NaN or infinite" in told(store, "shard-00001.safetensors")


def test_a_shard_of_other_sizes(store: Path) -> None:
    path = store / "shard-00001.safetensors"
    tensors = load_file(path)
    save_file({k: v[:-1].contiguous() for k, v in tensors.items()}, path)
    forget_checksums(store)
    assert "expected x of shape [" in told(store, "shard-00001.safetensors")
    save_file({"x": tensors["x"]}, path)
    assert "expected rows of shape [" in told(store, "shard-00001.safetensors")


@pytest.mark.parametrize("version", [2, 0, "1", None, ...])
def test_a_store_of_another_version(store: Path, version: Any) -> None:
    edit_manifest(store, format_version=version)
    assert "format_version" in told(store, "activations.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shards", ...),
        ("shards", 5),
        ("shards", []),
        ("shards", [{"file": "shard-00000.safetensors"}]),
        ("shards", [{"rows": 5}]),
        ("shards", ["shard-00000.safetensors"]),
        ("shards", [{"file": "shard-00000.safetensors", "rows": "5"}]),
        ("shards", [{"file": 5, "rows": 5}]),
        ("d_in", ...),
        ("d_in", "wide"),
        ("d_in", None),
        ("d_in", 0),
        *((key, ...) for key in ABOUT),
    ],
)
def test_a_manifest_that_makes_no_sense(store: Path, key: str, value: Any) -> None:
    edit_manifest(store, **{key: value})
    assert key in told(store, "activations.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_a_manifest_that_is_no_object(store: Path, text: str) -> None:
    (store / "activations.json").write_text(text)
    told(store, "activations.json")


def test_damaged_tokens_of_a_store(store: Path) -> None:
    (store / "tokens.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"tokens\.safetensors"):
        open_store(store).tokens()
