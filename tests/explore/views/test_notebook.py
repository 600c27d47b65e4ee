"""What notebooks display of a forest and of cards: small, without scripts, and with hostile text made visible."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from explore_cases import FOREST, hand_index, made_index, text_tokens
from saeforest.explore import Explorer
from saeforest.explore.queries.cards import Card
from saeforest.structure.forest import Forest

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp; </style> "
    "\x1b[31m \u202edlrow\u2066 \x00\x85\u2028"
)
TAGS = {
    "div", "style", "h4", "p", "b", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "span", "mark", "details",
    "summary",
}  # fmt: skip


class Reader(HTMLParser):
    """Checks that tags are those of our fragments, closed in order, with nothing but classes; collects the text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.marked: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= {"class"}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)
            if self.open[-1] == "mark":
                self.marked.append(data)


def read(shown: Any) -> Reader:
    html = shown._repr_html_()
    assert len(html) < 30_000
    for forbidden in ("<script", "javascript:", "http:", "https:", "@import", "url("):
        assert forbidden not in html.lower()
    return Reader(html)


@pytest.fixture
def explorer(tokenizer: PreTrainedTokenizerFast) -> Explorer:
    return Explorer(hand_index(), FOREST, tokenizer)


def test_a_feature(explorer: Explorer) -> None:
    found = read(explorer.feature(3))
    text = "".join(found.text)
    assert "feature 3 d" in text
    assert "path 0 › 3" in text
    assert "on 3.0% of tokens" in text
    assert found.marked == ["d"]
    assert "10100%3.0%" in text  # child 10 fires on all of the parent's tokens; unrelated, it would on 3 %
    silent = Explorer(hand_index(n_fired=[30] * 11 + [0]), FOREST, explorer.tokenizer)
    assert "1 of its children never fired here" in "".join(read(silent.feature(3)).text)
    assert "Never fired" in "".join(read(silent.feature(11)).text)


def test_every_other_card(explorer: Explorer) -> None:
    family = explorer.families(1)[0]
    assert "feature 0 a" in "".join(read(family).text)
    assert "m, s" in "".join(read(explorer.overview()).text)
    assert "feature 4 under 0" in "".join(read(explorer.edge(0, 4)).text)
    assert read(explorer.feature(3).contexts[0]).marked == ["d"]
    assert "found in its token" in "".join(read(explorer.search("d")[0]).text)

    class Another(Card):
        pass

    assert Another()._repr_html_() is None


def test_the_explorer_shows_families(explorer: Explorer) -> None:
    text = "".join(read(explorer).text)
    assert "12 of 12 features fire on 1,000 tokens" in text
    assert "feature 0 a, 3 children" in text
    none = Explorer(hand_index(rank_parent=[0] * 12), FOREST, explorer.tokenizer)
    assert "Some families" not in "".join(read(none).text)


def test_a_forest() -> None:
    text = "".join(read(FOREST).text)
    assert "Forest(12 features" in text
    assert "0333" in text  # level 0: 3 features, 3 roots, 3 with children
    assert "feature 0, 5 below it" in text
    flat = Forest(torch.full((12,), -1), (12,))
    assert "Every feature is a root" in "".join(read(flat).text)
    large = Forest(torch.tensor([-1, *[0] * 5000]), (1, 5000))
    assert "and 4,940 more" in "".join(read(large).text)
    chain = Forest(torch.arange(-1, 400), (401,), layered=False)
    read(chain)


def test_hostile_text_is_shown_and_not_obeyed(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = text_tokens(HOSTILE * 2, context=256)
    index = made_index(tokens, [[i] for i in range(12)])
    index = replace(index, about=replace(index.about, model=HOSTILE, site=HOSTILE))
    explorer = Explorer(index, FOREST, tokenizer, labels={3: HOSTILE}, origin=HOSTILE)
    feature = explorer.feature(3)
    for shown in (explorer, feature, feature.contexts[0], explorer.overview(), explorer.search("script")[0]):
        html = str(shown._repr_html_())
        text = "".join(read(shown).text)
        assert "<script>" in text
        for c in "\x1b\u202e\u2066\x00\x85\u2028":
            assert c not in html
        if shown is not feature.contexts[0]:  # which is cut before
            assert "␛[31m" in text
            assert "\ufffddlrow" in text


def test_a_large_family_is_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    forest = Forest(torch.tensor([-1, *[0] * 200]), (1, 200))
    index = made_index(text_tokens("a" * 50), [[0]] * 201)
    assert "and 188 more" in "".join(read(Explorer(index, forest, tokenizer).feature(0)).text)
