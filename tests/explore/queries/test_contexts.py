"""Contexts of features against the activations they were made from, and text as pieces of whole characters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from explore_cases import EOS, World, byte_tokenizer
from saeforest.explore import Explorer
from saeforest.explore.api import Api
from saeforest.explore.queries.contexts import TokenTexts
from saeforest.output import UNKNOWN, printable

TEXTS = TokenTexts(byte_tokenizer())


def test_contexts_say_what_the_feature_does_on_each_token(
    world: World, tokenizer: PreTrainedTokenizerFast
) -> None:
    api = Api(Explorer(world.index, world.sae.forest, tokenizer), sae=world.sae)
    contexts, n_tokens = api.features.contexts, world.tokens.n_tokens
    f = torch.zeros(n_tokens, world.sae.d_sae, dtype=torch.float64)
    f[world.rows] = world.f
    ids = world.tokens.ids.flatten().tolist()
    for feature in range(world.sae.d_sae):
        most = float(world.index.value_max[feature])
        rows = [row for row in world.index.top_row[feature].tolist() if row >= 0]
        found = contexts.top(feature)
        assert [context.row for context in found] == rows
        for context in (*found, *contexts.samples(feature)):
            assert context.value == pytest.approx(float(f[context.row, feature]), abs=1e-4)
            assert context.values[context.at] == pytest.approx(context.value, abs=most / 255)
            assert len(context.tokens) == len(context.values)
            # The window of tokens that the pieces are made of, around the row.
            pieces = TEXTS.pieces(
                ids[context.row - context.row % world.tokens.context :][: world.tokens.context]
            )
            assert set(context.tokens) <= {text for text, _, _ in pieces} | {UNKNOWN}
            if context.child is not None:
                child = context.child[context.at]
                firing = {c: float(f[context.row, c]) for c in world.sae.forest.children(feature)}
                strongest = max(firing.values(), default=0.0)
                assert (child == -1) == (strongest <= 1e-3)
                assert child == -1 or firing[child] == pytest.approx(strongest)


@given(st.text(max_size=12), st.integers(0, 8))
def test_pieces_are_whole_characters(text: str, cut: int) -> None:
    ids = [*text.encode("utf-8", "replace"), EOS][cut:]
    pieces = TEXTS.pieces(ids)
    assert [first for _, first, _ in pieces] == [0, *(end for _, _, end in pieces)][:-1]
    assert (pieces[-1][2] if pieces else 0) == len(ids)
    if cut == 0 and UNKNOWN not in text:
        letters = [piece for piece, _, _ in pieces][:-1]
        assert letters == [printable(letter) for letter in text.encode("utf-8", "replace").decode()]
    if (whole := TEXTS.whole(ids)) is not None:
        assert whole == [piece for piece, _, _ in pieces]
