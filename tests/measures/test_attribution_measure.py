"""The measure of attribution: its values against loops, and what it ablates on a tiny model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lm_cases import VOCAB, WIDTH, llama, tiny
from oracles import attribution as oracle
from saeforest.activations import ActivationReader
from saeforest.errors import InputError
from saeforest.interventions import Where
from saeforest.interventions.attribution import ablation_effects, attribute
from saeforest.measures.attribution import Ablated, AttributionConfig, _mean_loss, attribution, summary
from saeforest.measures.subject import MeasuredText, Subject
from saeforest.saes import TreeConfig, build
from saeforest.structure.forest import Forest
from saeforest.text import Tokens
from subject_cases import given

SITE = "blocks.1.hook_resid_post"


def test_values_against_loops() -> None:
    rng = np.random.default_rng(0)
    texts = [
        Ablated(np.arange(n), rng.normal(size=n), 1e-4 * rng.normal(size=n), np.arange(n) < 2)
        for n in (5, 3, 4)
    ]
    texts[1].effect[0] = texts[1].attribution[2] = 0.0
    drawn = [[0, 1, 2], [2, 2, 0], [1, 1, 1]]
    weights = np.array([[of.count(i) for i in range(3)] for of in drawn], dtype=np.float64)
    found = summary(texts, weights)
    for b, of in enumerate(drawn):
        slow = oracle.values(
            [list(zip(*(column.tolist() for column in texts[i][1:]), strict=True)) for i in of]
        )
        for name, value in slow.items():
            assert found[name][b] == pytest.approx(value, rel=1e-9), name


def subject(forest: Forest | None = None) -> Subject:
    lm = tiny(llama)
    lm.model.double()
    sae = build(TreeConfig(layer_sizes=(6, 12), k_per_layer=(3, 3)), WIDTH, seed=1).double()
    ids = torch.randint(3, VOCAB, (6, 8), generator=torch.Generator().manual_seed(0))
    return given(
        sae.requires_grad_(False),
        text=MeasuredText(Tokens(ids.int(), torch.tensor([0]), ("document",)), lm.tokenizer),
        forest=forest or sae.forest,
        language_model=ActivationReader(lm, lm.site(SITE), batch_size=2),
    )


CONFIG = AttributionConfig(texts=4, context=7, top=3, dtype="run")


def test_the_largest_are_ablated_and_as_many_others() -> None:
    given_to = subject()
    record = attribution(given_to, CONFIG)
    sae, reader = given_to.sae, given_to.reader
    sae.metadata = {"hook_name": SITE}
    where = Where("all", reader.exclude_first, reader.exclude_special)
    text = record.detail["texts"][1]
    ids = given_to.tokens.ids[text["window"], :7].long()[None]
    found = attribute(reader.lm, sae, ids, _mean_loss(ids), where, method="gradient")
    for of, own in (("features", found.by_feature(18)), ("edges", found.by_subtree(sae.forest))):
        entry = text[of]
        assert entry["largest"] == 3
        assert len(entry["features"]) == len({*entry["features"]}) > 3
        size = own.abs()[entry["features"]]
        assert size[:3].min() >= size[3:].max()
        sets = [[f] if of == "features" else list(sae.forest.subtree(f)) for f in entry["features"]]
        effects = ablation_effects(reader.lm, sae, ids, _mean_loss(ids), sets, where)
        assert entry["ablation"] == pytest.approx(effects.tolist(), abs=1e-8)
        assert entry["attribution"] == pytest.approx(own[entry["features"]].tolist(), abs=1e-8)
    assert all(int(sae.parent[f]) >= 0 for f in text["edges"]["features"])
    for of in ("features", "edges"):
        pairs = [
            list(zip(t[of]["attribution"], t[of]["ablation"], np.arange(99) < t[of]["largest"], strict=False))
            for t in record.detail["texts"]
        ]
        for name, value in oracle.values(pairs).items():
            assert record.value[f"{of}_{name}"] == pytest.approx(value, abs=1e-5), name
    assert record.interval["features_largest"] is not None
    assert record.settings["dtype"] == "float64"
    assert attribution(given_to, CONFIG) == record


def test_without_a_forest_there_are_no_edges() -> None:
    flat = Forest(torch.full((18,), -1), (6, 12))
    record = attribution(subject(flat), CONFIG)
    assert record.value["features_largest"] is not None
    assert record.null["edges_correlation"].startswith("the forest has no edges")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"texts": 0}, r"attribution\.texts = 0: expected 1 or more"),
        ({"context": 1}, r"attribution\.context = 1: expected 2 or more"),
    ],
)
def test_wrong_configurations(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AttributionConfig(**wrong)
