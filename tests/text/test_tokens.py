"""Documents packed into windows of tokens, and the files of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llama_cases import EOS, byte_tokenizer
from saeforest.text import Document, Tokens
from saeforest.text import tokens as tokens_module
from saeforest.text.held_out import split_of
from text_cases import error_line, pack, texts_of, write_jsonl


def test_packing_by_hand(tmp_path: Path):
    tokens = pack(write_jsonl(tmp_path / "d.jsonl", ["abc", "dé", "fghij", "k"]), context=4)
    # 3+1, 3+1 (é is two bytes), 5+1, 1+1 tokens: 16, four windows with nothing left over.
    assert tokens.ids.dtype == torch.int32
    assert tokens.document_starts.dtype == torch.int64
    assert (tokens.n_tokens, tokens.context, tuple(tokens.ids.shape)) == (16, 4, (4, 4))
    assert tokens.document_starts.tolist() == [0, 4, 8, 14]
    assert tokens.names == ("d.jsonl:1", "d.jsonl:2", "d.jsonl:3", "d.jsonl:4")
    assert (tokens.ids.flatten() == EOS).nonzero().flatten().tolist() == [3, 7, 13, 15]
    assert byte_tokenizer().decode(tokens.ids.flatten().tolist()) == "abc<eos>dé<eos>fghij<eos>k<eos>"


def test_ragged_tail_and_its_documents_are_dropped(tmp_path: Path):
    source = write_jsonl(tmp_path / "d.jsonl", ["abc", "de", "f", "gh"])  # 4 + 3 + 2 + 3 tokens
    tokens = pack(source, context=7)
    assert tokens.ids.shape == (1, 7)
    assert tokens.names == ("d.jsonl:1", "d.jsonl:2")
    assert tokens.document_starts.tolist() == [0, 4]


def test_stops_at_n_tokens_rounded_down(tmp_path: Path):
    source = write_jsonl(tmp_path / "d.jsonl", ["a" * 9] * 50)
    assert pack(source, n_tokens=107, context=10).n_tokens == 100
    assert len(pack(source, n_tokens=107, context=10).names) == 10
    assert pack(source, n_tokens=10**9, context=10).n_tokens == 500


def test_reads_no_more_than_a_batch_ahead(monkeypatch: pytest.MonkeyPatch):
    read = 0

    def endless(source: str, **_: object) -> Iterator[Document]:
        nonlocal read
        while True:
            read += 1
            yield Document(f"{read:099}", "n")

    monkeypatch.setattr(tokens_module, "documents", endless)
    monkeypatch.setattr(tokens_module, "_BATCH_CHARACTERS", 1_000)
    assert pack("any", n_tokens=5_000, context=100).n_tokens == 5_000
    assert read <= 61


@pytest.mark.parametrize(
    "text",
    ["one line " * 50, "short lines\n" * 40, "x" * 64, "é\n" * 33],
    ids=["one line", "many lines", "just fits", "two bytes"],
)
def test_a_long_document_is_encoded_in_stretches(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    whole = pack(tmp_path, context=1)  # a folder, since a lone text is cut into passages
    monkeypatch.setattr(tokens_module, "_BATCH_CHARACTERS", 64)
    pieces = pack(tmp_path, context=1)
    assert torch.equal(pieces.ids, whole.ids)
    assert pieces.names == ("long.txt",)
    assert pieces.document_starts.tolist() == [0]
    assert pieces.n_tokens == len(text.encode()) + 1


def test_a_lone_text_is_cut_into_passages_for_the_split(tmp_path: Path):
    paragraphs = [f"{i} " + "word " * 300 for i in range(40)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    tokens = pack(tmp_path / "book.txt", context=8)
    assert len(tokens.names) >= 8
    assert tokens.names[0] == "book.txt"
    assert tokens.names[1].startswith("book.txt:")


def test_pieces_of_one_whole_fall_on_one_side():
    pieces = [Document(f"piece {i}", f"m:{i}", whole=f"module {i // 5}") for i in range(500)]
    held = {d.name for d in split_of(iter(pieces), "held_out", 0.3, "pieces")}
    sides = [{d.name in held for d in pieces[i : i + 5]} for i in range(0, 500, 5)]
    assert all(len(side) == 1 for side in sides)
    assert 10 < sum(side == {True} for side in sides) < 60


def test_spelled_out_special_tokens_are_text(tmp_path: Path):
    tokens = pack(write_jsonl(tmp_path / "d.jsonl", ["a<eos>b"]), context=8)
    assert (tokens.ids == EOS).sum() == 1
    assert tokens.ids[0, 7] == EOS


def test_positions_match_a_walk_over_the_tokens(tmp_path: Path):
    texts = ["a" * n for n in (1, 5, 2, 13, 1, 1, 30, 4)]
    tokens = pack(write_jsonl(tmp_path / "d.jsonl", texts), context=6)
    document, position, walked = 0, 0, []
    for row, token in enumerate(tokens.ids.flatten().tolist()):
        walked.append((document, row % 6, position))
        document, position = (document + 1, 0) if token == EOS else (document, position + 1)
    rows = torch.randperm(tokens.n_tokens, generator=torch.Generator().manual_seed(0))
    for some in (rows, rows.int()):
        answers = (tokens.document_of(some), tokens.context_position(some), tokens.document_position(some))
        assert torch.stack(answers, 1).tolist() == [list(walked[row]) for row in rows.tolist()]


def test_splits_are_disjoint_complete_and_stable(tmp_path: Path):
    texts = [f"document number {i}" for i in range(400)]
    source = write_jsonl(tmp_path / "b.jsonl", [*texts, *texts[:50]])

    def sides(where: Path) -> tuple[list[str], list[str]]:
        train = pack(where, context=1, held_out=0.25)
        held_out = pack(where, context=1, held_out=0.25, split="held_out")
        return texts_of(train), texts_of(held_out)

    train, held_out = sides(source)
    assert not set(train) & set(held_out)
    assert Counter(train + held_out) == Counter([*texts, *texts[:50]])
    assert 60 < len(set(held_out)) < 140
    write_jsonl(tmp_path / "a.jsonl", [f"another {i}" for i in range(100)])
    more_train, more_held_out = sides(tmp_path)
    assert set(train) < set(more_train)
    assert set(held_out) < set(more_held_out)


def test_held_out_of_zero_keeps_everything(tmp_path: Path):
    source = write_jsonl(tmp_path / "d.jsonl", ["abc"] * 3)
    assert pack(source).n_tokens == 12
    message = error_line(lambda: pack(source, split="held_out"))
    assert "held_out split (held_out 0) has 0 tokens in 0 documents" in message


def test_too_little_text(tmp_path: Path):
    source = write_jsonl(tmp_path / "d.jsonl", ["abc", "de"])
    message = error_line(lambda: pack(source, context=8))
    assert str(source) in message
    assert "has 7 tokens in 2 documents, less than one window of 8" in message
    assert "n_tokens = 7" in error_line(lambda: pack(source, n_tokens=7, context=8))


def test_packaged_corpus_packs_deterministically():
    one = pack("packaged", n_tokens=60_000, context=128, held_out=0.1, seed=3)
    two = pack("packaged", n_tokens=60_000, context=128, held_out=0.1, seed=3)
    assert one.n_tokens == 59_904
    assert torch.equal(one.ids, two.ids)
    assert one.names == two.names
    assert {name.split(":")[0] for name in one.names} == {"wiki", "chat", "recipes", "python"}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Tokens, Path]:
    tokens = pack(write_jsonl(tmp_path / "d.jsonl", ["abc", "naïve", "f" * 30]))
    tokens.save(tmp_path / "東京.safetensors")
    return tokens, tmp_path / "東京.safetensors"


def test_save_and_load_round_trip(saved: tuple[Tokens, Path]):
    tokens, path = saved
    loaded = Tokens.load(path)
    assert torch.equal(loaded.ids, tokens.ids)
    assert loaded.ids.dtype == torch.int32
    assert torch.equal(loaded.document_starts, tokens.document_starts)
    assert loaded.names == tokens.names
    assert {entry.name for entry in path.parent.iterdir()} == {"d.jsonl", path.name}


def test_failed_save_leaves_the_old_file(saved: tuple[Tokens, Path], monkeypatch: pytest.MonkeyPatch):
    tokens, path = saved
    before = path.read_bytes()

    def full_disk(tensors: object, part: Path, metadata: object):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("saeforest.files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tokens.save(path)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_file(saved: tuple[Tokens, Path], keep: int):
    path = saved[1]
    path.write_bytes(path.read_bytes()[:keep])
    message = error_line(lambda: Tokens.load(path))
    assert str(path) in message
    assert "write or copy it again" in message


def test_files_of_another_kind(saved: tuple[Tokens, Path]):
    tokens, path = saved
    damaged = [
        Tokens(tokens.ids, tokens.document_starts, tokens.names[:-1]),
        Tokens(tokens.ids, tokens.document_starts.flip(0), tokens.names),
        Tokens(tokens.ids[:1], tokens.document_starts, tokens.names),
        Tokens(tokens.ids.long(), tokens.document_starts, tokens.names),
        Tokens(tokens.ids, tokens.document_starts[:0], ()),
    ]
    for each in damaged:
        each.save(path)
        assert "damaged or of another kind" in error_line(lambda: Tokens.load(path))
    for tensors in ({"weight": torch.zeros(2)}, {"ids": tokens.ids, "document_starts": tokens.ids + 1}):
        save_file(tensors, path)
        assert "damaged or of another kind" in error_line(lambda: Tokens.load(path))


def test_missing_tokens_file(tmp_path: Path):
    assert "no such file" in error_line(lambda: Tokens.load(tmp_path / "none.safetensors"))
