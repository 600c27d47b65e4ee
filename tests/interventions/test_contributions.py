"""The largest attributions beside ablation and its null, on a tiny model, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lm_cases import VOCAB, WIDTH, gpt2, tiny
from saeforest.errors import InputError
from saeforest.interventions.attribution import (
    ablation_effects,
    attribute,
    logit_difference,
    next_log_probability,
    text_loss,
)
from saeforest.interventions.contributions import Question, faithfulness, of_prompt, of_texts
from saeforest.lm import LanguageModel
from saeforest.saes import SAE, TreeConfig, build

SITE = "blocks.1.hook_resid_post"
IDS = torch.randint(3, VOCAB, (2, 5), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    lm = tiny(gpt2)
    lm.model.double()
    decode: Any = lambda ids: f"<{ids[0]}>"  # noqa: E731
    lm.tokenizer.decode = decode
    return lm


@pytest.fixture(scope="module")
def sae() -> SAE:
    sae = build(TreeConfig(layer_sizes=(6, 12, 22), k_per_layer=(2, 2, 2)), WIDTH, seed=1).double()
    sae.metadata = {"hook_name": SITE}
    return sae.requires_grad_(False)


def test_of_a_prompt(lm: LanguageModel, sae: SAE) -> None:
    asked = Question(IDS[:1], 4, 7)
    found = of_prompt(lm, sae, asked, top=3, method="integrated", steps=4)
    metric = logit_difference(4, 7)
    one = attribute(lm, sae, IDS[:1], metric, steps=4)
    by_feature, by_subtree = one.by_feature(sae.d_sae), one.by_subtree(sae.forest)
    assert [c.feature for c in found.features] == by_feature.abs().argsort(descending=True)[:3].tolist()
    for c in found.features:
        assert c.attribution == float(by_feature[c.feature])
        (effect,) = ablation_effects(lm, sae, IDS[:1], metric, [[c.feature]]).tolist()
        assert c.ablation == effect
        assert c.path == tuple(sae.forest.path(c.feature))
        dense = one.code.dense(sae.d_sae)[0, :, c.feature]
        assert all(float(dense[p.position]) == p.attribution for p in c.places)
        assert c.places[0].attribution == dense[dense.abs().argmax()]
        assert c.places[0].token == f"<{IDS[0, c.places[0].position]}>"
    for c in found.edges:
        assert len(c.path) > 1
        below = list(sae.forest.subtree(c.feature))
        assert c.attribution == float(by_subtree[c.feature]) == pytest.approx(float(by_feature[below].sum()))
        assert c.ablation == ablation_effects(lm, sae, IDS[:1], metric, [below]).item()
    assert (found.metric, found.without) == (one.metric, one.without)
    assert found.total == float(by_feature.sum())
    assert found.of_features.n == 6
    assert found.of_features.largest == pytest.approx(np.mean([abs(c.ablation) for c in found.features]))


def test_of_texts_is_the_mean_loss_per_token(lm: LanguageModel, sae: SAE) -> None:
    found = of_texts(lm, sae, [IDS[:1], IDS[1:]], top=2)
    parts = [attribute(lm, sae, ids, text_loss(ids), method="gradient") for ids in (IDS[:1], IDS[1:])]
    mean = sum(part.by_feature(sae.d_sae) for part in parts) / 8
    for c in found.features:
        assert c.attribution == pytest.approx(float(mean[c.feature]))  # pyright: ignore[reportIndexIssue]
        effects = [
            ablation_effects(lm, sae, ids, text_loss(ids), [[c.feature]]).item() for ids in (IDS[:1], IDS[1:])
        ]
        assert c.ablation == pytest.approx(sum(effects) / 8)
        assert c.places == ()
    assert found.metric == pytest.approx(sum(part.metric for part in parts) / 8)


def test_the_log_probability_of_a_token(lm: LanguageModel) -> None:
    logits = lm.logits(IDS).numpy().astype(np.float64)[:, -1]
    expected = (logits[:, 3] - np.log(np.exp(logits).sum(-1))).sum()
    assert float(next_log_probability(3)(lm.logits(IDS))) == pytest.approx(expected)


def test_faithfulness_by_hand() -> None:
    found = faithfulness(np.array([3.0, -2.0, 1.0, 0.5]), np.array([6.0, -4.0, -2.0, 1.0]), 2)
    assert (found.n, found.same_sign, found.largest, found.others) == (4, 0.75, 5.0, 1.5)
    assert found.correlation == pytest.approx(np.corrcoef([3, -2, 1, 0.5], [6, -4, -2, 1])[0, 1])
    none = faithfulness(np.zeros(0), np.zeros(0), 0)
    assert (none.n, none.correlation, none.same_sign, none.largest, none.others) == (0, *[None] * 4)
    assert faithfulness(np.ones(3), np.ones(3), 3).correlation is None


def test_a_transcoder_or_no_site_is_refused_by_the_same_line(lm: LanguageModel, sae: SAE) -> None:
    with pytest.raises(InputError, match="steps = 0"):
        of_prompt(lm, sae, Question(IDS[:1], 4, None), steps=0)
