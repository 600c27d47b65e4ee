"""What the tests of text share: a tokenizer of bytes, texts on disk, and errors that are one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from llama_cases import EOS, byte_tokenizer
from saeforest.errors import InputError
from saeforest.text import Document, Tokens, documents, tokenize


def pack(
    source: object, n_tokens: int = 10**6, context: int = 4, held_out: float = 0.0, **rest: object
) -> Tokens:
    options: dict = {"split": "train", **rest}
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 8  # it would warn if nothing prevented that
    return tokenize(
        str(source), tokenizer, EOS, n_tokens=n_tokens, context=context, held_out=held_out, **options
    )


def texts_of(tokens: Tokens) -> list[str]:
    return str(byte_tokenizer().decode(tokens.ids.flatten().tolist())).split("<eos>")[:-1]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def write_records(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read(source: object, **options: object) -> list[str]:
    return [document.text for document in documents(str(source), **options)]  # pyright: ignore[reportArgumentType]


def first(n: int, source: str, seed: int = 0) -> list[Document]:
    return list(islice(documents(source, seed=seed), n))


def error_line(do: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        do()
    message = str(caught.value)
    assert "\n" not in message
    return message


def reading_error(source: object, **options: object) -> str:
    return error_line(lambda: read(source, **options))
