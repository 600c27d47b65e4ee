"""The measure `edges`: the weights of parent and child (docs/spec/hierarchy.md#edges)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from oracles.pairs import cosine_of
from saeforest import Forest
from saeforest.errors import InputError
from saeforest.measures.edges import EdgesConfig, edges
from seen_cases import random_values, seen_of, tree_of

FOREST = Forest(torch.tensor([-1, -1, 0, 0, 1, 1, 2, 4, 5]), (2, 4, 3))


def test_equals_the_oracle() -> None:
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(9, 6, generator=generator)
    decoder[3] = 2 * decoder[0] + 0.1 * decoder[1]  # a copy
    sae = tree_of(FOREST, decoder)
    sae.encoder.data = torch.randn(9, 6, generator=generator)
    values = random_values(0)[:, :9].clone()
    values[:, 7] = 0
    record = edges(seen_of(sae, values), EdgesConfig())
    e, d = (w.detach().double().tolist() for w in (sae.encoder, sae.decoder))
    pairs = [(p, c) for c, p in enumerate(FOREST.parent.tolist()) if p >= 0 and c != 7]
    columns = {
        "encoder_parent": [cosine_of(e[c], d[p]) for p, c in pairs],
        "encoder_parent_abs": [abs(cosine_of(e[c], d[p])) for p, c in pairs],
        "encoder_child": [cosine_of(e[c], d[c]) for p, c in pairs],
        "decoder_cosine": [cosine_of(d[c], d[p]) for p, c in pairs],
        "decoder_negative": [float(cosine_of(d[c], d[p]) < 0) for p, c in pairs],
        "copies": [float(cosine_of(d[c], d[p]) > 0.9) for p, c in pairs],
    }
    for name, column in columns.items():
        assert record.value[name] == pytest.approx(np.mean(column)), name
        low, high = record.interval[name] or (1.0, 0.0)
        assert low <= (record.value[name] or 0) <= high
    assert sum(columns["copies"]) == 1
    assert record.value["features_in_copies"] == 2 / 8  # 0 and 3, of the 8 that fired
    assert record.detail["edges"] == {"all": 7, "measured": 6}
    assert record.value["with_parent"] == 7 / (FOREST.d_sae - FOREST.layer_sizes[0])
    assert [(layer["layer"], layer["edges"]) for layer in record.detail["by_layer"]] == [(1, 4), (2, 2)]
    of_layer_1 = [x for x, (_, c) in zip(columns["encoder_parent"], pairs, strict=True) if c < 6]
    assert record.detail["by_layer"][0]["encoder_parent"] == pytest.approx(np.mean(of_layer_1))


def test_a_copy_of_a_copy_counts_once() -> None:
    decoder = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    sae = tree_of(Forest(torch.tensor([-1, 0, 1, 0]), (1, 1, 2)), decoder)
    record = edges(seen_of(sae, torch.ones(5, 4)), EdgesConfig())
    assert record.value["copies"] == pytest.approx(2 / 3)
    assert record.value["features_in_copies"] == 3 / 4
    assert record.value["random_abs"] == pytest.approx(2 / math.pi)
    assert edges(seen_of(sae, torch.ones(5, 4)), EdgesConfig(copy=0.999)).value["copies"] == 0


def test_reasons_and_errors() -> None:
    sae = tree_of(Forest(torch.tensor([-1, -1, 0]), (2, 1)), torch.eye(3))
    silent = edges(seen_of(sae, torch.tensor([[1.0, 1.0, 0.0]])), EdgesConfig())
    assert silent.null["copies"] == "on no edge did both parent and child fire on the measured tokens"
    flat = Forest(torch.full((3,), -1), (2, 1))
    none = edges(seen_of(sae, torch.ones(4, 3), forest=flat), EdgesConfig())
    assert none.null["encoder_parent"] == "the forest has no edges: every feature hangs from the root"
    assert none.null["features_in_copies"] == none.null["encoder_parent"]
    assert none.value["with_parent"] == 0
    one = tree_of(Forest(torch.full((3,), -1), (3,)), torch.eye(3))
    assert edges(seen_of(one, torch.ones(4, 3)), EdgesConfig()).null["with_parent"] == (
        "the SAE has one layer, so no feature could have a parent"
    )
    with pytest.raises(InputError, match=r"^edges\.copy = 1.0: expected a cosine from -1 to 1, less than 1$"):
        EdgesConfig(copy=1.0)
