"""Chats, written out through the model's template and read as what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from llama_cases import EOS, MakeConfig, byte_tokenizer
from saeforest.session import open_reader, read_tokens
from saeforest.text import Reading, chat_renderer, documents, encode, tokenize
from saeforest.training import run_training
from text_cases import error_line, write_records

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
)
USER, ASSISTANT = "<|user|>", "<|assistant|>"
SHAREGPT = [
    {
        "id": f"conv_{i}",
        "conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": f"{i}!"}],
    }
    for i in range(3)
]
MESSAGES = [
    {
        "messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}],
        "source": "web",
    }
    for i in range(3)
]
WRITTEN = [f"<|user|>{i}?<eos>\n<|assistant|>{i}!<eos>\n" for i in range(3)]


def chat_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": [USER, ASSISTANT]})  # pyright: ignore[reportArgumentType]
    tokenizer.chat_template = template
    bos = tokenizer.convert_tokens_to_ids("<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    return tokenizer


def reading(**options: Any) -> Reading:
    return Reading(render=chat_renderer(chat_tokenizer(), "m"), **options)


def chats(source: Path, **options: Any) -> list[str]:
    found = list(documents(str(source), reading=reading(**options)))
    assert all(document.chat for document in found)
    return [document.text for document in found]


@pytest.mark.parametrize("records", [SHAREGPT, MESSAGES], ids=["ShareGPT", "messages"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".arrow"])
def test_chats_are_written_out(records: list[dict], kind: str, tmp_path: Path):
    from test_fields import KINDS

    path = KINDS[kind](tmp_path / f"d{kind}", records)
    assert chats(path) == WRITTEN
    assert "set text.chat to true" in error_line(lambda: list(documents(str(path))))


def test_special_tokens_of_a_chat_are_special_and_bos_comes_once(tmp_path: Path):
    tokenizer = chat_tokenizer()
    path = write_records(tmp_path / "d.jsonl", MESSAGES)
    options: dict = {"n_tokens": 10**6, "context": 9, "split": "train", "held_out": 0.0, "reading": reading()}
    tokens = tokenize(str(path), tokenizer, EOS, **options)
    bos, user, assistant = (tokenizer.convert_tokens_to_ids(name) for name in ("<bos>", USER, ASSISTANT))
    assert torch.isin(tokens.ids[:, 0], torch.tensor(bos)).all()
    assert not torch.isin(tokens.ids[:, 1:], torch.tensor(bos)).any()
    flat = tokens.ids[:, 1:].flatten().tolist()
    chat = [user, ord("0"), ord("?"), EOS, 10, assistant, ord("0"), ord("!"), EOS, 10, EOS]
    assert flat[: len(chat)] == chat
    without = tokenize(str(path), tokenizer, EOS, bos="no", **options)
    assert not torch.isin(without.ids, torch.tensor(bos)).any()
    # In plain text they stay letters.
    (tmp_path / "d.txt").write_text(WRITTEN[0], "utf-8")
    plain = tokenize(str(tmp_path / "d.txt"), tokenizer, EOS, **{**options, "reading": Reading()})
    assert not torch.isin(plain.ids, torch.tensor(user)).any()


def test_a_chat_that_closes_itself_is_not_closed_twice(tmp_path: Path):
    tokenizer = chat_tokenizer("{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}")
    path = write_records(tmp_path / "d.jsonl", MESSAGES)
    read = Reading(render=chat_renderer(tokenizer, "m"))
    options: dict = {"n_tokens": 100, "context": 6, "split": "train", "held_out": 0.0, "reading": read}
    tokens = tokenize(str(path), tokenizer, EOS, bos="no", **options)
    assert tokens.ids.tolist() == [[48 + i, ord("?"), EOS, 48 + i, ord("!"), EOS] for i in range(3)]
    assert tokens.document_starts.tolist() == [0, 6, 12]


def test_bos_that_only_looks_like_one_is_kept():
    """SmolLM2's BOS is the mark at which each of its messages begins: the template spells it, and does not add it."""
    tokenizer = chat_tokenizer("{% for m in messages %}<bos>{{ m['content'] }}{% endfor %}")
    render = chat_renderer(tokenizer, "m")
    assert render([{"role": "user", "content": "a"}]) == "<bos>a"
    assert encode(tokenizer, ["<bos>a"], special=True)[0] == [tokenizer.bos_token_id, ord("a")]


def test_a_chat_is_the_same_on_every_day():
    """Or the split into training and held-out text would change overnight."""
    tokenizer = chat_tokenizer(
        "{{ strftime_now('%d %B %Y') }} {{ date_string }} {{ messages[0]['content'] }}"
    )
    text = chat_renderer(tokenizer, "m")([{"role": "user", "content": "a"}])
    assert text == "26 July 2024 26 Jul 2024 a"


def test_parts_tools_and_nulls(tmp_path: Path):
    records = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
            ]
        },
        {"messages": [{"role": "user", "content": None}, {"from": "gpt", "value": "c", "weight": 1}]},
        {"messages": []},
        {"messages": None},
    ]
    assert chats(write_records(tmp_path / "d.jsonl", records)) == [
        "<|user|>ab<eos>\n",
        "<|user|><eos>\n<|assistant|>c<eos>\n",
    ]


def test_a_field_of_chats_by_name(tmp_path: Path):
    path = write_records(tmp_path / "d.jsonl", [{"dialog": r["messages"], "text": "x"} for r in MESSAGES])
    assert chats(path, column="dialog") == WRITTEN
    message = error_line(lambda: chats(path))
    assert 'expected the text under "messages" or "conversations", found dialog, text' in message
    assert "or text.chat to false" in message


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": "a"}, 'd.jsonl:1: expected the messages of a chat under "messages", got a str'),
        (
            {"messages": ["a"]},
            'd.jsonl:1, message 1: expected "role" and "content", or "from" and "value", found a str',
        ),
        ({"messages": [{"role": "user"}]}, "d.jsonl:1, message 1: expected"),
        ({"messages": [{"role": 3, "content": "a"}]}, "message 1: expected"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "message 1: expected text, got a dict"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "message 1: expected text, got a list",
        ),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "the model's chat template refuses this chat (no tools here)",
        ),
        ({"messages": [], "conversations": []}, 'the text may be under "messages" or "conversations"'),
        ({"text": "a"}, 'expected the text under "messages" or "conversations", found text'),
    ],
)
def test_chats_that_are_none(record: dict, message: str, tmp_path: Path):
    path = write_records(tmp_path / "d.jsonl", [record])
    assert message in (said := error_line(lambda: chats(path)))
    assert said.startswith(f"{path}:1")


def test_plain_text_is_no_chat(tmp_path: Path):
    (tmp_path / "a.txt").write_text("plain")
    for source in (tmp_path / "a.txt", tmp_path):
        assert "text.chat = true, but this is plain text" in error_line(lambda s=source: chats(s))
    assert "text.chat: the packaged corpus is plain text" in error_line(lambda: chats(Path("packaged")))


def test_a_model_without_a_template():
    message = error_line(lambda: chat_renderer(chat_tokenizer(None), "org/model"))
    assert "text.chat = true: the tokenizer of org/model has no chat template" in message


def test_a_run_on_chats(tiny_model: Path, tiny_config: MakeConfig, tmp_path: Path):
    config = tiny_config(data=str(write_records(tmp_path / "d.jsonl", MESSAGES)), text={"chat": True})
    assert "has no chat template" in error_line(lambda: run_training(config, tmp_path / "run"))
    reader = open_reader(config)
    reader.lm.tokenizer.chat_template = TEMPLATE.replace("{{ bos_token }}", "")
    records = [
        {
            "messages": [
                {"role": "user", "content": f"question {i} " * 9},
                {"role": "assistant", "content": "yes"},
            ]
        }
        for i in range(40)
    ]
    write_records(tmp_path / "d.jsonl", records)
    tokens = read_tokens(config, reader, "train", 640)
    assert tokens.ids.shape == (20, 32)
    text = reader.lm.tokenizer.decode(tokens.ids.flatten().tolist())
    assert "<|assistant|>yes<eos>" in str(text)
