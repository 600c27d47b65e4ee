"""Text to train on and text held out of any source, apart from one another; and what today's sources give, pinned."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from llama_cases import MakeConfig
from saeforest.run_folder import RunFolder
from saeforest.text import Document, Tokens
from saeforest.text.held_out import split_of
from saeforest.training import run_training
from text_cases import error_line, pack, texts_of, write_jsonl


def words(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(["sun", "moon", "river", "stone", "naïve", "fox"]) for _ in range(n))


def digest(tokens: Tokens) -> str:
    parts = (
        tokens.ids.numpy().tobytes(),
        tokens.document_starts.numpy().tobytes(),
        json.dumps(tokens.names).encode(),
    )
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


PINNED = {
    ("packaged:wiki,chat,recipes", "train"): "0475e0fa5f0cfec4",
    ("packaged:wiki,chat,recipes", "held_out"): "71ac9570c3f93ee5",
    ("packaged:recipes", "train"): "17fbff8165272c90",
    ("packaged:recipes", "held_out"): "4bcc080f509dee5f",
}


@pytest.mark.parametrize(("source", "split"), PINNED)
def test_the_packaged_corpus_is_what_it_was(source: str, split: str):
    tokens = pack(source, n_tokens=200_000, context=128, split=split, held_out=0.05, seed=3)
    assert digest(tokens) == PINNED[source, split]


def test_folders_and_books_are_what_they_were(tmp_path: Path):
    rng, folder = random.Random(0), tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    for i in range(12):
        (folder / f"n{i}.txt").write_text("\n\n".join(words(rng, 40) for _ in range(5)), "utf-8")
    write_jsonl(folder / "b" / "m.jsonl", [words(rng, 30) for _ in range(60)])
    (tmp_path / "book.txt").write_text("\n\n".join(words(rng, 300) for _ in range(60)), "utf-8")
    expected = {
        ("folder", "train"): "48989a37cf946f62",
        ("folder", "held_out"): "e0be06ec70596998",
        ("book.txt", "train"): "b11eccaf246313e9",
        ("book.txt", "held_out"): "3393cc041214c366",
    }
    for (name, split), pinned in expected.items():
        assert digest(pack(tmp_path / name, context=64, held_out=0.1, split=split)) == pinned, (name, split)


# Sources that would leave one side empty


def both(source: Path, context: int = 128, held_out: float = 0.05) -> tuple[Tokens, Tokens]:
    """Training and held-out text, which are apart."""
    train, held = (pack(source, context=context, held_out=held_out, split=s) for s in ("train", "held_out"))
    assert not set(texts_of(train)) & set(texts_of(held))
    return train, held


LONG = words(random.Random(1), 60_000)  # some 300,000 characters, all in one line


@pytest.mark.parametrize(
    "text",
    [LONG, LONG.replace(" ", ". "), LONG.replace(" ", "\r"), LONG.replace(" ", ""), LONG.replace(" ", "。")],
    ids=["words", "sentences", "old Macintosh", "no boundary", "Chinese"],
)
@pytest.mark.parametrize("kind", ["txt", "jsonl", "folder"])
def test_one_long_document(text: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / f"d.{kind}"
    if kind == "jsonl":
        write_jsonl(source, [text])
    elif kind == "txt":
        source.write_bytes(text.encode())
    else:
        source.mkdir()
        (source / "a.txt").write_bytes(text.encode())
    train, held = both(source)
    assert 0.005 < held.n_tokens / (train.n_tokens + held.n_tokens) < 0.15
    assert train.n_tokens + held.n_tokens > 0.99 * len(text.encode())
    assert len(set(train.names)) == len(train.names)
    error = capsys.readouterr().err
    assert "its 1 document would leave nothing to train on or to hold out, so they are split into" in error
    assert error.count("would leave nothing") == 1  # said once, though read twice


def test_the_pieces_of_a_document_are_all_of_it(tmp_path: Path):
    source = write_jsonl(tmp_path / "d.jsonl", [LONG])
    train, held = both(source, context=1)
    pieces = texts_of(train) + texts_of(held)
    places = {
        name: text
        for tokens in (train, held)
        for name, text in zip(tokens.names, texts_of(tokens), strict=True)
    }
    assert sorted("".join(pieces)) == sorted(LONG)
    for name, text in places.items():
        start = int(name.partition("+")[2] or 0)
        assert LONG[start : start + len(text)] == text


def test_equal_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = "\n".join(words(random.Random(i), 30) for i in range(40))
    _, held = both(write_jsonl(tmp_path / "d.jsonl", [text] * 400))
    assert held.n_tokens > 0
    assert "its 400 documents (399 of them duplicates) would leave" in (said := capsys.readouterr().err)
    assert "documents of its train text are exact duplicates" in said


def test_equal_documents_among_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts = [f"document {i}" for i in range(100)]
    pack(write_jsonl(tmp_path / "d.jsonl", [*texts, *texts[:9]]), context=8)
    assert "word for word" not in capsys.readouterr().err
    pack(write_jsonl(tmp_path / "d.jsonl", [*texts, *texts[:50]]), context=8)
    assert "50 of the 150 documents of its train text are exact duplicates" in capsys.readouterr().err


def test_a_few_documents(tmp_path: Path):
    for n in range(2, 9):
        both(
            write_jsonl(tmp_path / "d.jsonl", [words(random.Random(i), 400) for i in range(n)]), held_out=0.01
        )


def test_a_source_with_both_sides_is_cut_nowhere():
    texts = [Document(f"{i} " + "x" * 20_000, str(i)) for i in range(40)]
    for split in ("train", "held_out"):
        assert all(len(d.text) > 20_000 for d in split_of(iter(texts), split, 0.2, "s"))


def test_a_share_that_leaves_nothing_to_train_on(tmp_path: Path):
    source = write_jsonl(tmp_path / "d.jsonl", [words(random.Random(i), 400) for i in range(9)])
    assert "its train split (held_out 0.9999) has 0 tokens" in error_line(
        lambda: pack(source, held_out=0.9999)
    )


def test_reading_ahead_has_an_end():
    """A source that goes on for ever is not kept in memory to its end."""
    import itertools

    endless = (Document(f"{i} " + "x" * 10**6, str(i)) for i in itertools.count())
    found = split_of(endless, "train", 1e-12, "s")
    assert [next(found).name for _ in range(3)] == ["0", "1", "2"]


def test_text_that_cannot_be_divided(tmp_path: Path):
    source = write_jsonl(tmp_path / "d.jsonl", ["short"])
    message = error_line(lambda: both(source, context=4))
    assert "has 0 tokens in 0 documents, less than one window of 4" in message
    assert "give more text, a smaller text.context or a larger text.held_out" in message


# Fewer tokens than asked for


def test_the_true_number_of_tokens(
    tiny_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = str(write_jsonl(tmp_path / "d.jsonl", [words(random.Random(i), 60) for i in range(12)]))
    config = tiny_config(data=source, tokens=5_000_000, epochs=1)
    run = run_training(config, tmp_path / "run")
    there = run.tokens.n_tokens
    assert f"the train text has {there:,} tokens in whole windows, fewer than the 5,000,000 requested" in (
        capsys.readouterr().err
    )
    resolved, sae = RunFolder(tmp_path / "run").load()
    assert resolved.tokens == sae.metadata["tokens_read"] == there
    # With that number from the start, nothing is different.
    run_training(tiny_config(data=source, tokens=there, epochs=1), tmp_path / "again")
    assert "fewer than" not in capsys.readouterr().err
    weights = [
        (tmp_path / name / "sae" / "sae_weights.safetensors").read_bytes() for name in ("run", "again")
    ]
    assert weights[0] == weights[1]


def test_enough_tokens_leave_the_number_as_it_was_asked_for(tiny_config: MakeConfig, tmp_path: Path):
    run_training(tiny_config(tokens=3_075, epochs=1), tmp_path / "run")  # three beyond the last window
    resolved, sae = RunFolder(tmp_path / "run").load()
    assert (resolved.tokens, sae.metadata["tokens_read"]) == (3_075, 3_072)
