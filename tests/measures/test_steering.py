"""The measure of steering: against loops, in a world where the truth is planted, and on a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lm_cases import VOCAB, WIDTH, WORDS, llama, tiny
from oracles import steering as oracle
from saeforest.activations import ActivationReader
from saeforest.errors import InputError
from saeforest.evaluation import MeasureOptions, measure_run
from saeforest.interventions import set_to
from saeforest.lm import LanguageModel
from saeforest.measures.record import Record
from saeforest.measures.steered_text import Effect, SteeredText, typical
from saeforest.measures.steering import SteeringConfig, columns_of, steering
from saeforest.measures.subject import Firings, MeasuredText
from saeforest.run_folder import RunFolder
from saeforest.saes import SAE, TreeConfig, build
from saeforest.structure.forest import Forest
from saeforest.structure.pairs import PairStatistics
from saeforest.text import Tokens
from subject_cases import given

SITE = "blocks.1.hook_resid_post"
#: Two families in a vocabulary: the tokens on which the parent is active, and those of its two children.
FAMILIES = (((3, 4, 5, 6), (3, 4)), ((7, 8, 9, 10), (7, 8)))
CONTEXT = 12


def text(n: int, seed: int = 0) -> Tokens:
    ids = torch.randint(3, VOCAB, (n, CONTEXT), generator=torch.Generator().manual_seed(seed))
    return Tokens(ids.int(), torch.tensor([0]), ("document",))


# Formulas


def test_effects_against_loops() -> None:
    lm = tiny(llama)
    lm.model.double()
    sae = (
        build(TreeConfig(layer_sizes=(6, 12), k_per_layer=(3, 3)), WIDTH, seed=1)
        .double()
        .requires_grad_(False)
    )
    reader = ActivationReader(lm, lm.site(SITE), batch_size=2)
    tokens = text(5)
    steered = SteeredText(sae, reader, tokens, 3, 7, np.random.default_rng(4))
    assert steered.n_positions == 3 * 6
    drawn = np.sort(np.random.default_rng(4).permutation(5)[:3])
    features, values = (2, 9), {2: 3.0, 9: -1.0}
    at = steered.silent(features)
    assert 0 < at.sum() < len(at)
    sets = ([3, 5], [8])
    found = steered.effect(
        [set_to(f, v) for f, v in values.items()], [np.array(tokens) for tokens in sets], at
    )
    ratios: list[list[float]] = []
    divergences = []
    place = 0
    for window in drawn.tolist():
        ids = tokens.ids[window, :7].long()
        clean = lm.logits(ids[None])[0]
        after = oracle.steered_logits(lm, SITE, sae, ids, values, [False, *[True] * 6])
        dense = sae.encode(lm.activations(ids[None], SITE)[0]).dense(sae.d_sae)
        for i in range(1, 7):
            is_silent = not bool((dense[i, list(features)] > sae.config.activation_threshold).any())
            assert bool(at[place]) == is_silent
            if is_silent:
                ratios.append([oracle.log_ratio(clean[i], after[i], tokens) for tokens in sets])
                divergences.append(oracle.divergence(clean[i], after[i]))
            place += 1
    assert found.on == pytest.approx(np.mean(ratios, axis=0), abs=1e-5)
    assert found.kl == pytest.approx(np.mean(divergences), abs=1e-5)
    assert max(map(abs, found.on)) > 0.01


def test_typical_tokens_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        own, others = rng.integers(0, 12, rng.integers(1, 40)), rng.integers(0, 20, rng.integers(0, 60))
        without = rng.integers(0, 12, 2)
        expected = oracle.typical(own.tolist(), others.tolist(), 4, without.tolist())
        assert typical(own, others, 4, without).tolist() == expected
    assert typical(np.zeros(0, dtype=np.int64), np.arange(3), 4, np.zeros(0, dtype=np.int64)).tolist() == []


def test_values_by_hand() -> None:
    """Effects of parent, null, child, random and path on special and general tokens, own ones and next ones."""
    on = {
        "parent": (1.0, 2.0, 0.1, 0.2), "null": (0.5, 0.5, 0.0, 0.3), "child": (4.0, 1.0, 0.1, 0.0),
        "random": (0.5, 0.25, 0.0, 0.0), "path": (4.5, 9.0, 0.3, 9.0),
    }  # fmt: skip
    effects = [{who: Effect(values, 0.0) for who, values in on.items()}]
    own, after = columns_of(effects, "own"), columns_of(effects, "next")
    assert {name: float(column[0]) for name, column in own.items()} == {
        "own_parent_general": 1.5, "own_parent_special": 0.5, "own_child_general": 0.75, "own_child_special": 3.5,
        "own_specialization": 4.0, "own_holds": 1.0, "own_path_gain": 0.5, "own_path_specialization": -3.5,
        "own_path_holds": 0.0,
    }  # fmt: skip
    assert float(after["next_holds"][0]) == 0.0  # the null parent does more for the general tokens
    assert float(after["next_specialization"][0]) == pytest.approx(0.2)
    beaten = [{**effects[0], "child": Effect((0.9, 1.0, 0, 0), 0.0)}]
    assert float(columns_of(beaten, "own")["own_holds"][0]) == 0.0


# A planted world


def planted() -> tuple[LanguageModel, SAE]:
    """A model that predicts the token it reads, by one coordinate for each; features are sets of tokens."""
    lm = tiny(llama)
    model: Any = lm.model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed" in name or "lm_head" in name:
                weight.copy_(3 * torch.eye(VOCAB, WIDTH))
            else:
                weight.fill_(1.0 if "norm" in name else 0.0)
    sizes = (2, 4)
    sae = build(
        TreeConfig(layer_sizes=sizes, k_per_layer=(1, 1), normalize_activations="none"), WIDTH, seed=0
    )
    rows = torch.zeros(6, WIDTH)
    for f, (parent, children) in enumerate(FAMILIES):
        rows[f, list(parent)] = 1
        for i, child in enumerate(children):
            rows[2 + 2 * f + i, child] = 1
    state = sae.state_dict()
    state |= {"encoder": rows, "decoder": torch.nn.functional.normalize(rows), "b_enc": torch.zeros(6)}
    state |= {"parent": torch.tensor([-1, -1, 0, 0, 1, 1])}
    sae.load_state_dict(state)
    return lm, sae.requires_grad_(False)


def measured(
    lm: LanguageModel, sae: SAE, tokens: Tokens, forest: Forest | None = None, **config: Any
) -> Record:
    reader = ActivationReader(lm, lm.site(SITE))
    ids = tokens.ids.long()
    keep = reader.keep(ids)
    x = lm.activations(ids, SITE)[keep]
    pairs = PairStatistics(sae.d_sae)
    # Values that vary a little, so that the child's detector has a median to exceed.
    wobble = 1 + 0.1 * torch.rand(len(x), 1, generator=torch.Generator().manual_seed(5))
    x = x * wobble
    pairs.add(sae.encode(x))
    rows = keep.flatten().nonzero().flatten()
    subject = given(
        sae,
        activations=x,
        text=MeasuredText(tokens, lm.tokenizer),
        firings=Firings(rows, pairs),
        forest=forest or sae.forest,
        language_model=reader,
    )
    return steering(subject, SteeringConfig(windows=6, context=8, min_tokens=4, **config))


def test_a_planted_hierarchy_is_found() -> None:
    lm, sae = planted()
    record = measured(lm, sae, text(60))
    assert record.value["edges"] == 2
    for name in ("parent_general", "parent_special", "child_special", "specialization"):
        assert (record.value[f"own_{name}"] or 0) > 0.1, name
    assert record.value["own_holds"] == 1
    for edge in record.detail["edges"]:
        parent, children = FAMILIES[edge["parent"]]
        assert edge["null"] == 1 - edge["parent"]
        assert edge["random"] // 4 != edge["child"] // 4 or edge["random"] < 2
        special = children[edge["child"] % 2]
        assert edge["tokens"]["own_special"] == [WORDS[special]]
        assert set(edge["tokens"]["own_general"]) == {WORDS[t] for t in parent if t != special}


def test_parents_of_others_children_do_not_speak_for_them() -> None:
    """Without a gate, under which the children would be silent."""
    lm, sae = planted()
    sae.parent.fill_(-1)
    true, exchanged = (
        Forest(torch.tensor([-1, -1, *below]), (2, 4)) for below in ([0, 0, 1, 1], [1, 1, 0, 0])
    )
    found, other = (measured(lm, sae, text(60), forest) for forest in (true, exchanged))
    assert found.value["edges"] == other.value["edges"] == 2
    assert (found.value["own_parent_special"] or 0) > 0.1
    assert (other.value["own_parent_special"] or 0) < -0.1
    assert (found.value["own_holds"], other.value["own_holds"]) == (1, 0)
    # Any two features speak for their own tokens, each more than the other.
    assert (other.value["own_specialization"] or 0) > (found.value["own_specialization"] or 0)


def test_more_strength_does_more() -> None:
    lm, sae = planted()
    weak, strong = (measured(lm, sae, text(60), strength=strength) for strength in (0.1, 0.8))
    assert weak.settings["value"] == pytest.approx(strong.settings["value"] / 8, rel=1e-4)
    assert (strong.value["kl_parent"] or 0) > 4 * (weak.value["kl_parent"] or 1)
    one = measured(lm, sae, text(60), families=1)
    assert (one.value["edges"], one.interval["own_holds"]) == (1, None)


def test_nothing_to_steer() -> None:
    lm, sae = planted()
    sae.parent.fill_(-1)
    record = measured(lm, sae, text(20))
    assert record.value["own_holds"] is None
    assert "every feature hangs from the root" in record.null["own_holds"]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"families": 0}, "steering.families = 0"),
        ({"context": 1}, "steering.context = 1"),
        ({"strength": 0.0}, "steering.strength = 0.0"),
    ],
)
def test_wrong_settings(settings: Any, part: str) -> None:
    with pytest.raises(InputError, match=part):
        SteeringConfig(**settings)


def test_on_a_run_beside_its_nulls(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    config = SteeringConfig(families=4, windows=4, context=8, min_tokens=5)
    options = MeasureOptions(tokens=1600, measures={"steering": config})
    (record,) = measure_run(RunFolder(run), ["steering"], options)["tree"]
    assert (record.value["edges"] or 0) >= 2
    for name in ("own_parent_special", "next_holds"):
        assert record.value[f"{name}_shuffled"] is not None
        low, high = record.interval[f"{name}_untrained"] or (0, 0)
        assert low <= (record.value[f"{name}_untrained"] or 0) <= high
    assert 0 <= (record.value["own_parent_special_auc"] or -1) <= 1
    again = measure_run(RunFolder(run), ["steering"], options)["tree"]
    assert again == [record]
