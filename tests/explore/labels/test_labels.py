"""Automatic labels: which tokens make them, and which of these leads."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerFast

from explore_cases import World
from saeforest.explore import Explorer
from saeforest.explore.api import Api


def test_a_token_of_the_strongest_activations_leads_a_label(
    world: World, tokenizer: PreTrainedTokenizerFast
) -> None:
    index = world.index
    feature = int(index.n_fired.argmax())
    ids, rows = index.tokens.ids.flatten(), index.top_row[feature]
    strong = int(ids[rows[0]])
    weak = [token for token in ids.unique().tolist() if token not in ids[rows[rows >= 0]].tolist()][:2]
    told = index.child_tokens.clone()
    told[feature] = torch.tensor([weak[0], strong, weak[1], -1, -1])
    api = Api(Explorer(replace(index, child_tokens=told), world.sae.forest, tokenizer))
    texts = {token: api.texts.of(token).strip() for token in (strong, *weak)}
    assert len({*texts.values()} - {""}) == 3
    assert api.labels.of(feature) == " · ".join(texts[token] for token in (strong, *weak))
    assert api.labels.tokens(feature) == tuple(texts[token] for token in (weak[0], strong, weak[1]))
