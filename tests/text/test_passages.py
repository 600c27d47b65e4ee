"""Text around a token: decoded whole, harmless, and fitted to its columns."""

from __future__ import annotations

import pytest
import torch
from rich.cells import cell_len
from transformers import PreTrainedTokenizerFast

from explore_cases import (
    byte_tokenizer,
    text_tokens,
)
from saeforest.text import Tokens
from saeforest.text.passages import BLANK, fit, keyword_line, read_passage


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def test_passages_stay_within_document_and_window(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = text_tokens("one two", "three four five", "end", context=8)
    first = read_passage(tokens, tokenizer, 4)
    assert (first.before, first.token, first.after) == ("one ", "t", "wo")
    assert (first.starts, first.ends) == (True, True)
    cut = read_passage(tokens, tokenizer, 8 + 2)
    assert (cut.before, cut.token, cut.after) == ("th", "r", "ee fo")
    assert (cut.starts, cut.ends) == (True, False)
    tail = read_passage(tokens, tokenizer, 16 + 2)
    assert (tail.before, tail.token, tail.after) == ("ur", BLANK, "five")
    assert (tail.starts, tail.ends) == (False, True)


def test_a_closing_token_can_be_the_active_one(tokenizer: PreTrainedTokenizerFast) -> None:
    assert read_passage(text_tokens("ab", "cd"), tokenizer, 2).token == "<eos>"


def test_a_character_spelled_by_several_tokens_is_shown_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = text_tokens("aé中😀z")
    shown = [read_passage(tokens, tokenizer, row) for row in range(11)]
    assert [p.token for p in shown] == ["a", *"éé", *"中中中", *"😀😀😀😀", "z"]
    assert all(p.before + p.token + p.after == "aé中😀z" for p in shown)


def test_a_character_cut_by_the_window_leaves_no_garbage(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = text_tokens("abc中def中x", context=4)  # windows: abc+1 byte, 2 bytes+de, f+3 bytes, x
    passage = read_passage(tokens, tokenizer, 6)
    assert (passage.before, passage.token, passage.after) == ("", "d", "e")
    assert read_passage(tokens, tokenizer, 0).after == "bc"
    assert read_passage(tokens, tokenizer, 3).token == "�"  # all that this window holds of it


def test_bytes_that_are_no_text_are_shown_as_such(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = torch.tensor([[97, 0xFF, 98, 0xFE]], dtype=torch.int32)
    passage = read_passage(Tokens(ids, torch.zeros(1, dtype=torch.int64), ("d",)), tokenizer, 2)
    assert (passage.before, passage.token) == ("a�", "b")


@pytest.mark.parametrize("keep", ["start", "end"])
@pytest.mark.parametrize("text", ["plain text", "中文中文中", "", "a中" * 5])
def test_fit_never_exceeds_its_columns(text: str, keep: str) -> None:
    for columns in range(13):
        assert cell_len(fit(text, columns, keep, cut=False)) <= columns  # pyright: ignore[reportArgumentType]
        assert cell_len(fit(text, columns, keep, cut=True)) <= columns  # pyright: ignore[reportArgumentType]
    assert fit("hello", 5, "start") == "hello"
    assert (fit("hello!", 5, "start"), fit("hello!", 5, "end")) == ("hell…", "…llo!")
    assert (fit("hello", 9, "start", cut=True), fit("hello", 9, "end", cut=True)) == ("hello…", "…hello")


def test_marked_tokens_stand_one_below_the_other(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = text_tokens("中文 here is a token, and more text behind it", context=64)
    lines = [keyword_line(read_passage(tokens, tokenizer, row), 12, 20).plain for row in (0, 8, 30)]
    assert [cell_len(line[: line.index("«")]) for line in lines] == [12, 12, 12]
    assert max(map(cell_len, lines)) <= 32
