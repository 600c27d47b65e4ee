"""Exams: what a language model gets right, on next tokens of text or on multiple-choice questions, and still gets right
when it is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..activations import ActivationReader
from ..errors import InputError
from ..lm.hooks import Hooks
from ..text.questions import CHOICES, Question
from .bootstrap import FloatArray

HooksOf = Callable[[Int[Tensor, "b ctx"]], Hooks | None]
"""The hooks for a forward pass over these tokens; None for a clean one."""
_LETTERS = "ABCD"


class Exam(NamedTuple):
    """What the clean model gets right.

    rows:  tokens of each unit: a document, or a question.
    total: `[u]` how much of each unit the clean model gets right, 1 or more.
    grade: how much of it is right by the logits `[length, vocab]` of the unit with this number.
    """

    rows: list[list[int]]
    total: FloatArray
    grade: Callable[[int, Tensor], int]

    def right(self, reader: ActivationReader, hooks: HooksOf) -> FloatArray:
        """How much of each unit is right, `[u]`, of what the clean model gets right."""
        return _graded(reader, self.rows, hooks, self.grade)


def padded(rows: Sequence[list[int]]) -> tuple[Int[Tensor, "b ctx"], Bool[Tensor, "b ctx"]]:
    """Rows filled up behind, which no token before can see, and which positions are their own."""
    length = max(map(len, rows))
    ids = torch.tensor([row + row[-1:] * (length - len(row)) for row in rows])
    return ids, torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]


def batches_of(rows: Sequence[list[int]], size: int) -> list[list[int]]:
    """The numbers of the rows, in batches of rows of about one length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    return [order[first : first + size] for first in range(0, len(order), size)]


@torch.no_grad()
def _graded(
    reader: ActivationReader, rows: Sequence[list[int]], hooks: HooksOf, grade: Callable[[int, Tensor], int]
) -> FloatArray:
    found = np.zeros(len(rows))
    for batch in batches_of(rows, reader.batch_size):
        ids, _ = padded([rows[i] for i in batch])
        logits = reader.lm.logits(ids, hooks(ids))
        for i, row in zip(batch, logits, strict=True):
            found[i] = grade(i, row[: len(rows[i])])
    return found


def text_exam(reader: ActivationReader, documents: Sequence[list[int]]) -> Exam:
    """The next tokens that the clean model predicts rightly. Documents without one are left out."""
    known: list[Bool[Tensor, "n"]] = [torch.zeros(0, dtype=torch.bool)] * len(documents)

    def count(i: int, logits: Float[Tensor, "n vocab"]) -> int:
        known[i] = _hits(documents[i], logits)
        return int(known[i].sum())

    total = _graded(reader, documents, lambda _: None, count)
    kept = np.flatnonzero(total > 0).tolist()
    rows = [documents[i] for i in kept]

    def grade(i: int, logits: Float[Tensor, "n vocab"]) -> int:
        return int((_hits(rows[i], logits) & known[kept[i]]).sum())

    return Exam(rows, total[kept], grade)


def _hits(row: list[int], logits: Float[Tensor, "n vocab"]) -> Bool[Tensor, "_"]:
    return logits[:-1].argmax(-1).cpu() == torch.tensor(row[1:])


def question_exam(reader: ActivationReader, questions: Sequence[Question], chat: bool) -> Exam:
    """The questions that the clean model answers rightly in every order of the choices, asked in the order given.

    An answer is the likeliest of the letters, with or without a space before them.

    chat: put each question into the tokenizer's chat template, and begin the reply with "Answer: (".
    Raises InputError if the tokenizer has no chat template, or no tokens for the letters.
    """
    letters = _letter_ids(reader)
    orders = list(permutations(range(CHOICES)))
    kept: list[Question] = []
    for question in questions:
        rows = [_encoded(reader, question, order, chat) for order in orders]
        answers = [order.index(question.answer) for order in orders]
        right = _graded(
            reader,
            rows,
            lambda _: None,
            lambda i, logits, answers=answers: int(_said(logits, letters) == answers[i]),
        )
        if right.all():
            kept.append(question)
    rows = [_encoded(reader, question, range(CHOICES), chat) for question in kept]
    return Exam(rows, np.ones(len(rows)), lambda i, logits: int(_said(logits, letters) == kept[i].answer))


def _letter_ids(reader: ActivationReader) -> list[list[int]]:
    """The tokens of each letter."""
    found, unknown = [], reader.lm.tokenizer.unk_token_id
    for letter in _LETTERS:
        ways = [
            reader.lm.tokenizer(way, add_special_tokens=False)["input_ids"] for way in (letter, f" {letter}")
        ]
        ids = sorted({way[0] for way in ways if len(way) == 1 and way[0] != unknown})
        if not ids:
            raise InputError(
                f"model {reader.lm.name!r}: its tokenizer has no token for the letter {letter}; leave out questions"
            )
        found.append(ids)
    return found


def _said(logits: Float[Tensor, "n vocab"], letters: list[list[int]]) -> int:
    return int(torch.stack([logits[-1, ids].max() for ids in letters]).argmax())


def question_text(question: Question, order: Sequence[int]) -> str:
    """A question as it is asked, with its choices in an order."""
    choices = "".join(f"\n{letter}. {question.choices[i]}" for letter, i in zip(_LETTERS, order, strict=True))
    intro = f"The following are multiple choice questions (with answers) about {question.subject}.\n"
    return f"{intro}{question.question}{choices}"


def _encoded(reader: ActivationReader, question: Question, order: Sequence[int], chat: bool) -> list[int]:
    tokenizer = reader.lm.tokenizer
    text = question_text(question, order)
    if not chat:
        bos = [] if reader.bos_id is None else [reader.bos_id]
        return bos + tokenizer(f"{text}\nAnswer:", add_special_tokens=False)["input_ids"]
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"model {reader.lm.name!r}: its tokenizer has no chat template; leave out unlearning.chat"
        )
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(f"{prompt}Answer: (", add_special_tokens=False)["input_ids"]
