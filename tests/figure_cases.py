"""An index of words made by hand: a feature of time, with weekdays, months and hours below it, and nulls."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saeforest.explore import Explorer
from saeforest.explore.index import About, Index
from saeforest.explore.index.form import unused
from saeforest.explore.measuring.columns import COLUMNS
from saeforest.structure.directions import RIDGE
from saeforest.structure.forest import Forest
from saeforest.text import Tokens

CONCEPTS = {
    "time": "yesterday today tomorrow",
    "weekday": "Monday Tuesday Friday",
    "month": "January March October",
    "hour": "noon midnight dawn",
    "weekend": "Saturday Sunday",
    "summer": "June July August",
    "silent": "",
}
#: 0 time: 1 weekday (4 weekend), 2 month (5 summer), 3 hour, 6 silent
PARENTS = [-1, 0, 0, 0, 1, 2, 0]
SIZES = (1, 3, 3)
TEXTS = (
    "it was told to everybody that on {} the lamps had been lit and nobody would speak of it again",
    "we went to see them on {} and then walked home along the canal before the rain",
    "the last report says that {} is mentioned only once although the authors knew about it quite well",
)
UNGATED = [math.nan, 0.61, 0.44, 0.08, 0.83, 0.3, math.nan]
N_TOKENS = 1000


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")


def words_explorer(labels: dict[int, str] | None = None, *, nulls: bool = True, extra: str = "") -> Explorer:
    """An explorer of these concepts. nulls: whether edges have columns and nulls. extra: words put into every text."""
    texts, fires = [], {name: [] for name in CONCEPTS}
    row = 0
    for name, words in CONCEPTS.items():
        for i, word in enumerate(words.split()):
            text = [*extra.split(), *TEXTS[i % len(TEXTS)].replace("{}", word).split(), "<eos>"]
            fires[name].append(row + text.index(word))
            texts.append(text)
            row += len(text)
    length = 32
    flat = [word for text in texts for word in text]
    flat += ["<eos>"] * (-len(flat) % length)
    vocabulary = sorted(set(flat) - {"<unk>"})
    tokenizer = word_tokenizer(vocabulary)
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(flat), dtype=torch.int32)
    starts = torch.tensor([0, *torch.tensor([len(t) for t in texts]).cumsum(0).tolist()[:-1]])
    tokens = Tokens(ids.view(-1, length), starts, tuple(f"document {i}" for i in range(len(texts))))
    return Explorer(
        _index(tokens, list(fires.values()), nulls=nulls),
        Forest(torch.tensor(PARENTS), SIZES),
        tokenizer,
        labels,
    )


def _index(tokens: Tokens, fires: list[list[int]], *, nulls: bool) -> Index:
    f, places = len(fires), 4
    alive = torch.tensor([bool(rows) for rows in fires])
    padded = torch.tensor([(rows + [-1] * places)[:places] for rows in fires])
    n = torch.tensor([90, 40, 30, 12, 16, 9, 0])
    measured = {
        "n_fired": n,
        "n_with_parent": torch.tensor([0, *n[1:].tolist()]),
        "value_sum": n.double(),
        "value_max": torch.where(alive, 2.0, 0.0),
        "top_value": torch.where(padded >= 0, 2.0 - 0.25 * torch.arange(places), 0.0),
        "top_row": padded,
        "cos_child": torch.full((f,), 0.5),
        "cos_parent": torch.full((f,), 0.4),
        "rank_child": torch.ones(f, dtype=torch.int64),
        "rank_parent": torch.tensor([0, 1, 2, 1, 1, 2, 0]),
    }
    abouts = tuple(column.about for column in COLUMNS) if nulls else ()
    shape = unused(f, places, [about.name for about in abouts], n_null=200 if nulls else 0)
    about = replace(About("words", "blocks.0", N_TOKENS, 20, "document", RIDGE, ""), columns=abouts)
    if nulls:
        generator = random.Random(0)
        null = sorted(min(generator.expovariate(14), 1.0) for _ in range(200))
        measured |= {
            "column.ungated": torch.tensor(UNGATED),
            "place.ungated": torch.tensor([math.nan, 0.99, 0.97, 0.6, 1.0, 0.95, math.nan]),
            "null.ungated": torch.tensor(null),
        }
    return Index.of_tensors(about, tokens, shape | measured | _geometry(tokens))


def _geometry(tokens: Tokens) -> dict[str, torch.Tensor]:
    """Three clusters under the first feature, the third child's encoder pointing away from its own."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[3.0, 0.5], [-2.0, 2.0], [-1.0, -2.5]])
    child = torch.tensor([i % 4 for i in range(64)])
    child[child == 3] = -1
    points = torch.randn(64, 2, generator=generator) * 0.6
    points += torch.where(child[:, None] >= 0, centers[child.clamp(min=0)], 0.0)
    direction = torch.full((len(PARENTS), 2), math.nan)
    direction[1:4] = torch.tensor([[0.5, 0.1], [-0.3, 0.35], [0.1, 0.3]])
    return {
        "geometry.parent": torch.tensor([0]),
        "geometry.points": points[None],
        "geometry.child": child[None],
        "geometry.row": torch.arange(64)[None] % tokens.n_tokens,
        "geometry.explained": torch.tensor([[0.31, 0.22]]),
        "geometry.direction": direction,
    }
