"""A text in which every feature is a set of capital letters, and a judge that is a function: shared by tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from oracles.autointerp import FloatArray
from saeforest.judges.related import obvious_trials, related_question
from saeforest.lm import load_tokenizer
from saeforest.measures.subject import Firings, MeasuredText, Subject
from saeforest.saes import TreeConfig, TreeSAE
from saeforest.sparse_code import SparseCode
from saeforest.structure.forest import Forest
from saeforest.structure.pairs import PairStatistics
from saeforest.text import Tokens
from subject_cases import given

CONTEXT, BUFFER = 32, 4
#: The letters on which each feature fires; the last is never written.
LETTERS = ("AB", "CD", "EF", "A", "B", "C", "E", "Z")
PARENT = (-1, -1, -1, 0, 0, 1, 2, 2)


def world(model: Path, windows: int = 60, share: float = 0.2, seed: int = 0) -> Subject:
    """Small letters with capitals between them, `share` of the text; the first position of a window is left out."""
    rng = np.random.default_rng(seed)
    capital = rng.random((windows, CONTEXT)) < share
    small = rng.integers(ord("a"), ord("z") + 1, (windows, CONTEXT))
    ids = np.where(capital, rng.integers(ord("A"), ord("F") + 1, (windows, CONTEXT)), small)
    measured = np.arange(windows * CONTEXT).reshape(windows, CONTEXT)[:, 1:].flatten()
    on = np.array([[chr(i) in letters for letters in LETTERS] for i in ids.flatten()[measured]])
    values = np.where(on, rng.uniform(0.5, 2, on.shape), 0).astype(np.float32)

    pairs = PairStatistics(len(LETTERS))
    pairs.add(SparseCode(torch.tensor(values), torch.arange(len(LETTERS)).expand(len(values), -1)))
    tokens = Tokens(torch.tensor(ids).int(), torch.tensor([0]), ("document",))
    return given(
        TreeSAE(TreeConfig(layer_sizes=(3, 5), k_per_layer=(1, 1)), 16, seed=0),
        {"sae": "the sae"},
        text=MeasuredText(tokens, load_tokenizer(str(model))),
        firings=Firings(torch.tensor(measured), pairs),
        forest=Forest(torch.tensor(PARENT), (3, 5)),
        judge=None,
    )


def dense(seen: Subject) -> FloatArray:
    """The features on every token, `[windows, context, features]`; 0 where nothing was measured."""
    a = np.zeros((seen.tokens.n_tokens, seen.pairs.d_sae))
    for feature in range(seen.pairs.d_sae):
        token, value = seen.pairs.firings(feature)
        a[seen.rows[token.long()].numpy(), feature] = value.numpy()
    return a.reshape(*seen.tokens.ids.shape, -1)


class Fake:
    """A judge that is a function."""

    name, workers = "fake", 1

    def __init__(self, reply: Callable[[str, str], str]) -> None:
        self.reply = reply
        self.asked: list[tuple[str, str, int]] = []

    def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        self.asked.append((system, user, max_tokens))
        return self.reply(system, user)


OBVIOUS = {related_question(t.general.passages, t.special.passages).user: t.related for t in obvious_trials()}


class Sound(Fake):
    """A judge that knows what is obvious, and is a function elsewhere; `asked` leaves the obvious questions out."""

    def ask(self, system: str, user: str, *, max_tokens: int) -> str:
        if user in OBVIOUS:
            return f"HaveRelationship: {'Yes' if OBVIOUS[user] else 'No'}\nConfidence: High"
        return super().ask(system, user, max_tokens=max_tokens)


def marked(text: str) -> set[str]:
    return {letter for run in re.findall("<<(.*?)>>", text) for letter in run}
