"""RAVEL: verdicts by hand, training and scores against slow arithmetic, and a model that a swap changes completely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from measure_cases import SITE, D, tree_sae
from oracles import ravel as oracle
from oracles.scr import subtrees
from saeforest.activations import ActivationReader
from saeforest.errors import InputError
from saeforest.lm import LanguageModel
from saeforest.measures.matched import alike
from saeforest.measures.ravel import RavelConfig, _pairs, _record, _Tested, ravel
from saeforest.measures.ravel_prompts import (
    Ask,
    Known,
    Pair,
    answers,
    asks,
    entity_activations,
    pairs_of,
    verdict,
)
from saeforest.measures.ravel_swap import Site, mask_loss, swap_of, train_mask
from saeforest.saes import SAE, TopKConfig, TopKSAE
from saeforest.structure.shuffled import shuffled_parents
from saeforest.text.facts import Facts, read_facts
from subject_cases import given

LAST = "blocks.2.hook_resid_post"
ENTITIES = [f"w{i}" for i in range(10, 22)]
TEMPLATES = {"A": ("w5 w6 %s",), "B": ("w7 w8 w9 %s", "w4 w4 %s")}


def exact_sae() -> SAE:
    """Its features are the positive and the negative parts of all coordinates, so it reconstructs exactly."""
    sae = TopKSAE(TopKConfig((2 * D,), (2 * D,), normalize_activations="none"), D)
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    sae.encoder.data = sae.decoder.data = both
    return sae


def facts_of(reader: ActivationReader, folder: Path) -> Facts:
    """Facts that the model knows: whatever it says of each entity. Read from RAVEL's files."""

    def said(template: str, entity: str) -> str:
        ids = torch.tensor([reader.lm.tokenizer(template % entity, add_special_tokens=False)["input_ids"]])
        if reader.bos_id is not None:
            ids = torch.cat([torch.tensor([[reader.bos_id]]), ids], 1)
        return str(reader.lm.tokenizer.decode([int(reader.lm.logits(ids)[0, -1].argmax())]))

    values = {e: {a: said(templates[0], e) for a, templates in TEMPLATES.items()} for e in ENTITIES}
    folder.mkdir()
    (folder / "ravel_thing_attribute_to_prompts.json").write_text(json.dumps(TEMPLATES))
    (folder / "ravel_thing_entity_attributes.json").write_text(json.dumps(values))
    [facts] = read_facts(str(folder), {})
    return facts


def reader_at(lm: LanguageModel, site: str) -> ActivationReader:
    return ActivationReader(lm, lm.site(site), batch_size=5)


@pytest.mark.parametrize(
    ("completion", "value", "expected"),
    [
        (" Paris, which", "Paris", True),
        (' paris" said', "Paris", True),
        (" Par", "Paris", None),
        (" London", "Paris", False),
        ("", "Paris", None),
        (" the", "the Netherlands", None),
        (" the Netherlands", "Netherlands", True),
        (" England", "United Kingdom", True),
        (" Korea", "South Korea", True),
        (" Hindi and", "English, Hindi", True),
        (' "', "Paris", False),
        (' Par" is', "Paris", False),
    ],
)
def test_verdicts(completion: str, value: str, expected: bool | None) -> None:
    assert verdict(completion, value) is expected


def test_prompts_and_answers_one_by_one(lm: LanguageModel, tmp_path: Path) -> None:
    reader = reader_at(lm, SITE)
    facts = facts_of(reader, tmp_path / "facts")
    every = asks(facts, reader)
    assert len(every) == len(ENTITIES) * 3
    bos = 0 if reader.bos_id is None else 1
    assert {(ask.at, len(ask.ids)) for ask in every} == {(bos + 2, bos + 3), (bos + 3, bos + 4)}
    assert lm.tokenizer.decode([every[0].ids[every[0].at]]) == every[0].entity == "w10"
    found = answers(reader, [ask.ids for ask in every], [ask.value for ask in every], 3, lambda _: None)
    for ask, (right, first) in zip(every, found, strict=True):
        ids = list(ask.ids)
        for _ in range(3):
            ids.append(int(lm.logits(torch.tensor([ids]))[0, -1].argmax()))
        text = str(lm.tokenizer.decode(ids[len(ask.ids) :])).strip().lower()
        assert first == ids[len(ask.ids)]
        assert right == (
            text.startswith(ask.value.strip().lower()) or ask.value.strip().lower().startswith(text)
        )
    # What the values were made of is known; that of the other template need not be.
    assert all(right for ask, (right, _) in zip(every, found, strict=True) if ask.attribute == "A")
    # A token that is left out is no place for a change.
    assert asks(Facts("x", {"A": ("%s w5",)}, {"w9": {"A": "w5"}}), reader) == [] or bos


def test_pairs_differ_in_what_is_asked_for() -> None:
    known = [Known(Ask([1], 0, f"e{i}", attribute, "xyz"[i % 3]), 0) for attribute in "ABC" for i in range(6)]
    pairs = pairs_of(known, "B", ["A", "C"], 4, np.random.default_rng(0))
    assert [p.cause for p in pairs] == [True] * 4 + [False] * 4
    for p in pairs:
        base, source = known[p.base].ask, known[p.source].ask
        assert base.attribute == source.attribute
        assert base.value != source.value
        assert (base.attribute == "B") == p.cause
    assert len({p.base for p in pairs if p.cause}) == 4


def site_and_pairs(lm: LanguageModel, sae: SAE, tmp_path: Path) -> tuple[Site, list[Pair]]:
    reader = reader_at(lm, SITE)
    facts = facts_of(reader, tmp_path / "facts")
    every = asks(facts, reader)
    found = answers(reader, [ask.ids for ask in every], [ask.value for ask in every], 1, lambda _: None)
    known = [Known(ask, first) for ask, (right, first) in zip(every, found, strict=True) if right]
    site = Site(reader, known, swap_of(sae, entity_activations(reader, known), False))
    return site, pairs_of(known, "A", ["B"], 5, np.random.default_rng(1))


def test_entities_are_read_where_they_end(lm: LanguageModel, tmp_path: Path) -> None:
    site, _ = site_and_pairs(lm, tree_sae(), tmp_path)
    for one, x in zip(site.known, site.swap.x, strict=True):
        alone = lm.activations(torch.tensor([one.ask.ids]), site.reader.site)[0, one.ask.at]
        torch.testing.assert_close(x, alone.float(), rtol=1e-5, atol=1e-5)


def test_a_swap_and_its_training_against_slow_arithmetic(lm: LanguageModel, tmp_path: Path) -> None:
    sae = tree_sae()
    site, pairs = site_and_pairs(lm, sae, tmp_path)
    decoder = sae.W_dec.detach().double().numpy()
    with torch.no_grad():
        code, stats = sae.encode_with_stats(site.swap.x)
        f = code.dense(sae.d_sae).double().numpy()
        scale = [float(s) for s in stats.std.expand(len(f), 1)[:, 0]]
        plain = sae.decode(code, stats).double().numpy()
    mask = torch.linspace(0, 1, sae.d_sae)
    base, source = [p.base for p in pairs], [p.source for p in pairs]
    x = site.swap.mixed(base, source, mask)
    for row, b, s in zip(x, base, source, strict=True):
        slow = oracle.mixed(plain[b], f[b], f[s], mask.tolist(), scale[b], decoder)
        np.testing.assert_allclose(row, slow, atol=1e-4)

    target = [site.known[s if p.cause else b].first for p, b, s in zip(pairs, base, source, strict=True)]

    def loss_of(i: int, at: Float[Tensor, "d"]) -> Tensor:
        """A pair's logits, without padding, with its activation replaced."""
        ask = site.known[base[i]].ask

        def hook(whole: Tensor) -> Tensor:
            changed = whole.clone()
            changed[0, ask.at] = at
            return changed

        return lm.logits(torch.tensor([ask.ids]), {site.reader.site: hook})[0, -1]

    losses = [
        oracle.cross_entropy(loss_of(i, x[i]).detach().double().numpy(), target[i]) for i in range(len(pairs))
    ]
    assert float(mask_loss(site, pairs, mask).detach()) == pytest.approx(np.mean(losses), abs=1e-5)

    trained = train_mask(site, pairs, 3, 20, 0.02, np.random.default_rng(0))
    z, gradients = [0.0] * sae.d_sae, []
    for step in range(3):
        t = oracle.temperature(step, 3)
        m = [oracle.sigmoid(z_i, t) if abs(z_i / t) < 500 else float(z_i > 0) for z_i in z]
        slopes = []
        for i, (b, s) in enumerate(zip(base, source, strict=True)):
            at = (
                torch.from_numpy(oracle.mixed(plain[b], f[b], f[s], m, scale[b], decoder))
                .float()
                .requires_grad_()
            )
            loss = torch.nn.functional.cross_entropy(loss_of(i, at)[None].float(), torch.tensor([target[i]]))
            slopes.append(torch.autograd.grad(loss, at)[0].double().numpy())
        bounded = [max(min(z_i, 500 * t), -500 * t) for z_i in z]
        of = [f[b] for b in base], [f[s] for s in source], [scale[b] for b in base]
        gradients.append(oracle.slopes(slopes, *of, decoder, bounded, t))
        z = oracle.adam([0.0] * sae.d_sae, gradients, 0.02)
    clear = (
        np.abs(gradients[0]) > 1e-6
    )  # Adam makes a full step of any gradient, also of one that is rounding
    assert clear.sum() >= 3
    np.testing.assert_allclose(trained.numpy()[clear], np.array(z)[clear], rtol=0.02, atol=1e-5)
    assert not trained.numpy()[
        ~np.any([f[b] != f[s] for b, s in zip(base, source, strict=True)], axis=0)
    ].any()


def test_where_a_swap_of_all_changes_everything(lm: LanguageModel, tmp_path: Path) -> None:
    """At the last token, after the last block, the activation is all that the completion depends on."""
    reader = reader_at(lm, LAST)
    facts_of(reader, tmp_path / "facts")
    config = RavelConfig(
        source=str(tmp_path / "facts"), kinds=("thing",), n_tokens=1, pairs=20, train=0.5, epochs=1
    )
    sae = exact_sae()
    subject = given(sae, {"sae": "test"}, language_model=reader, forest=sae.forest)
    record = ravel(subject, config)
    assert record.detail["kinds"]["thing"]["known"] >= 24
    assert record.value["attributes"] == 2
    assert record.value["cause_all"] == record.value["isolation_none"] == 1
    assert record.value["isolation_all"] == record.value["cause_none"] == 0
    assert record.value["disentanglement_all"] == record.value["disentanglement_none"] == 0.5
    assert record.interval["isolation_none"] == (1, 1)
    for entry in record.detail["attributes"]:
        assert 0 < entry["features"] <= entry["of_active"]
        assert entry["random_features"] <= entry["of_active"] - entry["features"]
    pairs = ravel(subject, RavelConfig(**{**vars(config), "split": "pairs"}))
    assert pairs.value["cause_all"] == 1
    assert ravel(subject, config) == record


def test_subtrees_of_a_mask_beside_shuffled_ones(lm: LanguageModel, tmp_path: Path) -> None:
    """What a swap with all below the mask completes, against one prompt at a time by slow arithmetic."""
    sae = tree_sae()
    reader = reader_at(lm, SITE)
    facts_of(reader, tmp_path / "facts")
    config = RavelConfig(str(tmp_path / "facts"), ("thing:A,B",), n_tokens=1, pairs=20, train=0.5, epochs=1)
    record = ravel(given(sae, {"sae": "test"}, language_model=reader, forest=sae.forest), config)
    every = asks(read_facts(config.source, config.attributes())[0], reader)
    said = answers(reader, [ask.ids for ask in every], [ask.value for ask in every], 1, lambda _: None)
    known = [Known(ask, first) for ask, (right, first) in zip(every, said, strict=True) if right]
    site = Site(reader, known, swap_of(sae, entity_activations(reader, known), False))
    fired = (site.swap.f > 0).sum(0)
    parents = sae.parent, shuffled_parents(sae.forest, fired)
    assert not torch.equal(*parents)
    rng = np.random.default_rng(config.seed)
    decoder, differ = sae.W_dec.detach().double().numpy(), 0
    for attribute, entry in zip("AB", record.detail["attributes"], strict=True):
        train, test = _pairs(known, attribute, [other for other in "AB" if other != attribute], config, rng)
        mask = (
            (train_mask(site, train, 1, config.batch_size, config.lr, rng) > 0).nonzero().flatten().tolist()
        )
        alike(
            np.array(mask), fired.double().numpy(), fired.numpy() > 0, rng
        )  # it draws from the same numbers
        for name, parent in zip(("subtree", "subtree_shuffled"), parents, strict=True):
            features = subtrees(parent.tolist(), mask)
            assert entry[f"{name}_features"] == sum(int(fired[i]) > 0 for i in features)
            differ += len(features) > len(mask)
            right: dict[bool, list[bool]] = {True: [], False: []}
            for p in test:
                b, s = (known[i].ask for i in p[:2])
                f, plain = site.swap.f.double().numpy(), site.swap.plain.double().numpy()
                m = [float(i in features) for i in range(sae.d_sae)]
                scale = float(site.swap.std[p.base])
                x = oracle.mixed(plain[p.base], f[p.base], f[p.source], m, scale, decoder)
                logits = lm.logits(
                    torch.tensor([b.ids]), site.hooks([p.base], torch.from_numpy(x)[None].float())
                )
                token = str(lm.tokenizer.decode([int(logits[0, -1].argmax())]))
                right[p.cause].append(bool(verdict(token, (s if p.cause else b).value)))
            assert entry[f"cause_{name}"] == pytest.approx(np.mean(right[True]))
            assert entry[f"isolation_{name}"] == pytest.approx(np.mean(right[False]))
    assert differ >= 2
    assert record.value["disentanglement_subtree_over_shuffled"] is not None


def test_scores_by_hand() -> None:
    """Kind k has attributes with causes of 1/2 and 1, kind l one with 0: the mean over kinds is (3/4 + 0) / 2."""

    def tested(kind: str, attribute: str, pairs: list[tuple[str, bool, bool]]) -> _Tested:
        right = np.array([r for *_, r in pairs])
        masks = {
            "": right,
            "random": ~right,
            "all": right,
            "none": right,
            "subtree": right,
            "subtree_shuffled": ~right,
        }
        return _Tested(
            kind, attribute, [(kind, e) for e, *_ in pairs], np.array([c for _, c, _ in pairs]), masks
        )

    first = [("a", True, True), ("b", True, False), ("a", False, True)]
    second = [("c", True, True), ("b", False, True), ("c", False, False)]
    third = [("a", True, False), ("d", False, True)]
    found = [tested("k", "A", first), tested("k", "B", second), tested("l", "A", third)]
    entries = [{"features": 3}, {"features": 6}, {}]
    record = _record(
        given(exact_sae(), {"sae": "test"}),
        RavelConfig(),
        found,
        {"k": {"asked": 9, "known": 5}},
        entries,
        None,
    )
    once = dict.fromkeys("abcd", 1.0)
    cause = (
        np.mean([oracle.share(p, True, once) for p in (first, second)]) + oracle.share(third, True, once)
    ) / 2
    isolation = (np.mean([oracle.share(p, False, once) for p in (first, second)]) + 1) / 2
    assert (cause, isolation) == (0.375, 0.875)
    assert record.value["cause"] == pytest.approx(cause)
    assert record.value["isolation"] == pytest.approx(isolation)
    assert record.value["disentanglement"] == pytest.approx(0.625)
    assert record.value["disentanglement_random"] == pytest.approx(0.375)
    assert record.value["disentanglement_over_random"] == pytest.approx(0.25)
    assert record.value["disentanglement_subtree_over_shuffled"] == pytest.approx(0.25)
    assert record.value["features"] == 4.5


def test_a_model_that_knows_nothing_has_no_score(lm: LanguageModel, tmp_path: Path) -> None:
    reader = reader_at(lm, LAST)
    facts_of(reader, tmp_path / "facts")
    values = {entity: dict.fromkeys(TEMPLATES, "Atlantis") for entity in ENTITIES}
    (tmp_path / "facts" / "ravel_thing_entity_attributes.json").write_text(json.dumps(values))
    config = RavelConfig(source=str(tmp_path / "facts"), kinds=("thing:A,B",), n_tokens=1)
    sae = exact_sae()
    record = ravel(given(sae, {"sae": "test"}, language_model=reader, forest=sae.forest), config)
    assert record.value["disentanglement"] is None
    assert record.null["disentanglement"].startswith(
        "the model completes 0 of 36 prompts rightly, too few for 3 pairs"
    )
    assert record.value["attributes"] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pairs": 0}, r"ravel\.pairs = 0: expected 1 or more"),
        ({"train": 1.0}, r"ravel\.train = 1\.0: expected a fraction"),
        ({"lr": 0.0}, r"ravel\.lr = 0\.0"),
        ({"kinds": ("city:",)}, r"ravel\.kinds = 'city:': expected a kind with its attributes"),
    ],
)
def test_wrong_configurations(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RavelConfig(**wrong)
