"""RAVEL's prompts: sentences about entities that the language model completes rightly, and pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..activations import ActivationReader
from ..lm.hooks import Hooks
from ..progress import progress
from ..text import encode
from ..text.facts import Facts

# What else counts as naming a value that contains the key, as in SAEBench.
_ALSO = {
    "united states": ("united states", "england"),
    "united kingdom": ("united kingdom", "england"),
    "south korea": ("korea",),
    "north america": ("america",),
    "mandarin": ("chinese",),
}


class Ask(NamedTuple):
    """A prompt: tokens, the place of the entity's last token, and what completes it."""

    ids: list[int]
    at: int
    entity: str
    attribute: str
    value: str


class Known(NamedTuple):
    """A prompt that the model completes with the right value, and the first token of its completion."""

    ask: Ask
    first: int


class Pair(NamedTuple):
    """A prompt whose entity is swapped (base) for that of another (source): numbers of known prompts.

    cause: whether the completion should become the source's, or stay the base's.
    """

    base: int
    source: int
    cause: bool


def asks(facts: Facts, reader: ActivationReader) -> list[Ask]:
    """A prompt for each entity, attribute and template; without those whose entity does not end at a token's end, or
    ends at a position that the reader leaves out."""
    tokenizer = reader.lm.tokenizer
    bos = [] if reader.bos_id is None else [reader.bos_id]
    wanted: list[tuple[str, str, str, str]] = []
    for attribute, templates in facts.templates.items():
        for template in templates:
            for entity, values in facts.values.items():
                if attribute in values:
                    wanted.append(
                        (template.split("%s")[0] + entity, template.split("%s")[1], entity, attribute)
                    )
    starts = encode(tokenizer, [start for start, *_ in wanted])
    wholes = encode(tokenizer, [start + end for start, end, *_ in wanted])
    found = []
    for (_, _, entity, attribute), start, whole in zip(wanted, starts, wholes, strict=True):
        at = len(bos) + len(start) - 1
        ids = bos + whole
        if start and whole[: len(start)] == start and bool(reader.keep(torch.tensor([ids]))[0, at]):
            found.append(Ask(ids, at, entity, attribute, facts.values[entity][attribute]))
    return found


def accepted(value: str) -> tuple[str, ...]:
    """The beginnings of a completion that name a value, in lower case. A value may list several, with commas."""
    text = value.lower().strip().removeprefix("the ")
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    return parts + tuple(other for key, more in _ALSO.items() if key in text for other in more)


def verdict(completion: str, value: str) -> bool | None:
    """Whether a completion names a value; None if it breaks off before one can tell.

    It counts up to a quotation mark, in lower case, without white space around it and "the" before it.
    """
    said, names = _said(completion), accepted(value)
    if any(said.startswith(name) for name in names):
        return True
    may_still = any(name.startswith(said) for name in names) or "the".startswith(said)
    return None if may_still and '"' not in completion else False


def _said(completion: str) -> str:
    text = completion.split('"')[0].lower().strip()
    return "" if text == "the" else text.removeprefix("the ")


HooksOf = Callable[[Sequence[int]], Hooks | None]
"""The hooks for a forward pass over the prompts with these numbers, in this order; None for a clean one."""


@torch.no_grad()
def answers(
    reader: ActivationReader,
    prompts: Sequence[list[int]],
    values: Sequence[str],
    n_tokens: int,
    hooks: HooksOf,
) -> list[tuple[bool, int]]:
    """Whether the greedy completion of each prompt names the value, and its first token.

    A completion that is still the beginning of the value after `n_tokens` counts as naming it, as in SAEBench.
    """
    lm = reader.lm
    found: list[tuple[bool, int]] = [(False, -1)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with progress("complete prompts", len(prompts), "prompts") as advance:
        for first in range(0, len(order), reader.batch_size):
            left = order[first : first + reader.batch_size]
            advance(len(left))
            new: dict[int, list[int]] = {i: [] for i in left}
            for step in range(n_tokens):
                logits = last_logits(reader, [prompts[i] + new[i] for i in left], hooks(left))
                still = []
                for i, token in zip(left, logits.argmax(-1).tolist(), strict=True):
                    new[i].append(token)
                    text = str(lm.tokenizer.decode(new[i]))
                    right = verdict(text, values[i])
                    if right is None and step + 1 < n_tokens:
                        still.append(i)
                    else:
                        found[i] = (bool(right) or (right is None and bool(_said(text))), new[i][0])
                left = still
                if not left:
                    break
    return found


def last_logits(
    reader: ActivationReader, rows: Sequence[list[int]], hooks: Hooks | None
) -> Float[Tensor, "b vocab"]:
    """The logits after the last token of each row. Shorter rows are filled up behind, which no token before can see."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [row[-1]] * (length - len(row)) for row in rows])
    logits = reader.lm.logits(ids, hooks)
    return logits[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])].float()


def known_prompts(
    reader: ActivationReader, facts: Facts, n_tokens: int, most_entities: int
) -> tuple[list[Known], int]:
    """The prompts that the model completes rightly, of the entities with the most of them, and how many were asked."""
    every = asks(facts, reader)
    said = answers(reader, [ask.ids for ask in every], [ask.value for ask in every], n_tokens, lambda _: None)
    known = [Known(ask, first) for ask, (right, first) in zip(every, said, strict=True) if right]
    count: dict[str, int] = {}
    for one in known:
        count[one.ask.entity] = count.get(one.ask.entity, 0) + 1
    kept = set(sorted(count, key=lambda entity: (-count[entity], entity))[:most_entities])
    return [one for one in known if one.ask.entity in kept], len(every)


@torch.no_grad()
def entity_activations(reader: ActivationReader, known: Sequence[Known]) -> Float[Tensor, "p d_in"]:
    """The activation at the last token of each prompt's entity, in float32."""
    found = []
    for first in range(0, len(known), reader.batch_size):
        part = known[first : first + reader.batch_size]
        length = max(len(one.ask.ids) for one in part)
        ids = torch.tensor([one.ask.ids + one.ask.ids[-1:] * (length - len(one.ask.ids)) for one in part])
        x = reader.lm.activations(ids, reader.site)
        found.append(x[torch.arange(len(part)), torch.tensor([one.ask.at for one in part])].float())
    return torch.cat(found)


def pairs_of(
    known: Sequence[Known], attribute: str, others: Sequence[str], n: int, rng: np.random.Generator
) -> list[Pair]:
    """Up to n pairs that should change an attribute, and as many of the other attributes that should change nothing.

    The prompts of a pair ask for the same attribute, whose values differ. Every base prompt is drawn once.
    """
    cause = [Pair(*pair, True) for pair in _different(known, attribute, n, rng)]
    isolation = [Pair(*pair, False) for other in others for pair in _different(known, other, n, rng)]
    kept = rng.permutation(len(isolation))[: len(cause)]
    return cause + [isolation[i] for i in kept]


def _different(
    known: Sequence[Known], attribute: str, n: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    mine = [i for i, one in enumerate(known) if one.ask.attribute == attribute]
    found = []
    for base in rng.permutation(mine)[:n].tolist() if mine else []:
        usable = [i for i in mine if known[i].ask.value != known[base].ask.value]
        if usable:
            found.append((base, int(rng.choice(usable))))
    return found


def divided(
    known: Sequence[Known], train: float, rng: np.random.Generator
) -> tuple[list[Known], list[Known]]:
    """The prompts of a share of the entities, and those of the others."""
    entities = sorted({one.ask.entity for one in known})
    order = rng.permutation(len(entities))
    first = {entities[i] for i in order[: round(train * len(entities))]}
    return [one for one in known if one.ask.entity in first], [
        one for one in known if one.ask.entity not in first
    ]


def positions(rows: Sequence[Known]) -> Int[Tensor, "b"]:
    """The place of the entity's last token in each prompt."""
    return torch.tensor([one.ask.at for one in rows])
