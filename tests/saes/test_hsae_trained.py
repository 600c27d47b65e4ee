"""HSAE and JumpReLU SAEs once trained: inference, files, what they learn, and configurations that cannot be."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hsae_cases import (
    CASES,
    ONE_LEVEL,
    SIZES,
    Case,
    D,
    K,
    batches,
    brute_force,
    make_oracle,
    make_training,
    same,
    train_levels,
)
from oracles.hsae_levels import conditional, hamming
from saeforest import InputError
from saeforest.saes import (
    HSAE,
    HSAEConfig,
    JumpReLUConfig,
    JumpReLUSAE,
    LayerNorm,
    ParentsConfig,
    RunLength,
    SparsityConfig,
    load_sae,
    save_sae,
)
from saeforest.saes.levels import LevelsSAE, LevelsTraining
from saeforest.structure.forest import ROOT

# ---- inference --------------------------------------------------------------------------------------------


def trained(case: Case, steps: int = 12) -> LevelsTraining:
    """A few float32 steps of an HSAE, so that it has a forest and thresholds."""
    training = make_training(case, dtype=torch.float32, lr=0.01)
    return trained_on(training, batches(steps, torch.float32))


def trained_on(training: LevelsTraining, data: list[torch.Tensor]) -> LevelsTraining:
    for x in data:
        training.step(x)
    return training


def one_level(case: Case, dtype: torch.dtype = torch.float64) -> LevelsTraining:
    return make_training(case, (13,), (3,), dtype=dtype, lr=0.01)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", 1.7])
def test_levels_equal_those_of_the_oracle(normalize: float | str) -> None:
    case = Case(normalize=normalize)
    training = trained(case)
    sae = training.finish().double()
    oracle = make_oracle(training, replace(case, normalize="none" if normalize == 1.7 else normalize), 0)
    x = batches(14, torch.float64)[-1].reshape(2, 8, D)
    with torch.no_grad():
        code, stats = sae.encode_with_stats(x)
    flat = x.reshape(-1, D).numpy()
    same(code.reshape(-1).dense(sae.d_sae), oracle.encode(flat))
    for level in range(3):
        z = sae.decode(code, stats, level)
        assert z.shape == x.shape
        same(z.reshape(-1, D), oracle.reconstruct(flat, level))
    assert torch.equal(sae(x), sae.decode(code, stats, 2)), "the finest level is the reconstruction"
    active = code.active()
    assert active.any(-1).all()
    for ids, on in zip(code.ids.reshape(16, -1), active.reshape(16, -1), strict=True):
        assert len(ids[on].unique()) == int(on.sum())
    assert not code.ids[~active].any()
    assert not code.values[~active].any()


def test_one_level_reconstruction_equals_the_oracle() -> None:
    case = ONE_LEVEL["wide kernel"]
    training = trained_on(one_level(case), batches(10))
    oracle = make_oracle(training, case, 0)
    x = batches(12)[-1]
    sae = training.sae
    sae.normalizer = LayerNorm(exact_inverse=True)
    same(sae(x), oracle.reconstruct(x.numpy(), 0))
    same(sae.encode(x).dense(13), oracle.encode(x.numpy()))


@pytest.mark.parametrize("levels", [1, 3])
def test_saved_and_loaded_bit_for_bit(tmp_path: Path, levels: int) -> None:
    if levels == 3:
        sae = trained(CASES["paper"]).finish()
    else:
        training = one_level(ONE_LEVEL["defaults"], torch.float32)
        sae = trained_on(training, batches(12, torch.float32)).finish()
    assert isinstance(sae, LevelsSAE)
    save_sae(sae, tmp_path / "sae")
    loaded = load_sae(tmp_path / "sae")
    assert type(loaded) is type(sae)
    x = batches(14, torch.float32)[-1]
    (a, stats), (b, _) = sae.encode_with_stats(x), loaded.encode_with_stats(x)
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.ids, b.ids)
    for level in range(levels):
        assert torch.equal(sae.decode(a, stats, level), loaded.decode(b, stats, level))
    for name, tensor in sae.tensors().items():
        assert torch.equal(tensor, loaded.tensors()[name]), name
    assert sae.threshold.any()
    if levels == 3:
        assert torch.equal(sae.b_dec, loaded.b_dec)
        assert (sae.parent != ROOT).any()
        assert len(sae.b_dec.unique(dim=0)) == 3


@pytest.mark.parametrize("levels", [1, 3])
def test_finish_folds_the_scale(levels: int) -> None:
    case = replace(CASES["paper"], normalize=0.37)
    sizes, k = (SIZES, K) if levels == 3 else ((13,), (3,))
    training = trained_on(make_training(case, sizes, k, lr=0.01), batches(12))
    sae = training.sae
    x = batches(14)[-1]
    with torch.no_grad():
        sae.decoder.copy_(F.normalize(sae.decoder))
    with torch.no_grad():
        before, stats = sae.encode_with_stats(x)
        expected = [sae.decode(before, stats, level) for level in range(levels)]
    training.finish()
    assert sae.config.normalize_activations == "none"
    with torch.no_grad():
        after, stats = sae.encode_with_stats(x)
    assert before.active().any()
    assert torch.equal(before.ids, after.ids)
    same(after.values, before.values.numpy() / 0.37)
    for level, z in enumerate(expected):
        torch.testing.assert_close(sae.decode(after, stats, level), z, rtol=1e-9, atol=1e-9)


# ---- the baseline -----------------------------------------------------------------------------------------


def copied(sae: LevelsSAE, level: int, case: Case) -> LevelsTraining:
    """The training of a JumpReLU SAE with the weights that a level has."""
    alone = make_training(case, (SIZES[level],), (K[level],), lr=0.01)
    own = sae.level(level)
    with torch.no_grad():
        for name in ("encoder", "decoder", "b_enc", "threshold"):
            getattr(alone.sae, name).copy_(getattr(sae, name)[own])
    return alone


@pytest.mark.parametrize("updates", ["alternate", "after"])
def test_without_links_every_level_trains_as_an_sae_of_its_own(updates: Any) -> None:
    case = Case(normalize=1.3, constraint=0, perturbation=0, hierarchy=ParentsConfig(updates, 4))
    training = make_training(case, lr=0.01)
    sae = training.sae
    alone = [copied(sae, level, case) for level in range(3)]
    data = batches(20)
    trained_on(training, data)
    assert (sae.parent != ROOT).any() == (updates == "alternate")
    for level, flat in enumerate(alone):
        trained_on(flat, data)
        own = sae.level(level)
        for name in ("encoder", "decoder", "b_enc", "threshold"):
            same(getattr(sae, name)[own], getattr(flat.sae, name).detach().numpy(), name)
        same(training.steps_since_fired[own], flat.steps_since_fired.numpy())
        same(sae.b_dec[level], flat.sae.b_dec.detach().numpy())
        same(training.sparsity.weight[level], float(flat.sparsity.weight[0]))


def test_after_training_links_independent_saes() -> None:
    """The paper's baseline: the assignment is made once, of the trained encoders."""
    hierarchy = ParentsConfig("after", 1, unassigned=0.3)
    training = trained(Case(constraint=0, perturbation=0, hierarchy=hierarchy))
    sae = training.sae
    assert (sae.parent == ROOT).all()
    training.finish()
    rows = F.normalize(sae.encoder.detach())
    for level in range(2):
        upper, lower = sae.level(level), sae.level(level + 1)
        cosine = rows[upper] @ rows[lower].T
        expected = brute_force(cosine.tolist(), 0.3, None)
        assert [p - upper.start if p >= 0 else p for p in sae.parent[lower].tolist()] == expected
    assert sae.forest.parent.tolist() == sae.parent.tolist()


# ---- determinism ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["encoder", "coactivation"])
def test_two_runs_and_a_resumed_one_are_bit_identical(similarity: Any) -> None:
    case = replace(CASES["paper"], perturbation=0.5, hierarchy=ParentsConfig(period=4, similarity=similarity))
    data = batches(20, torch.float32)
    first, second = trained(case, 20), trained(case, 20)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name

    half = make_training(case, dtype=torch.float32, lr=0.01)
    for step, x in enumerate(data, 1):
        if step == 11:
            states = half.state_dict(), half.optimizer.state_dict()
            half = make_training(case, dtype=torch.float32, lr=0.01)
            half.load_state_dict(states[0])
            half.optimizer.load_state_dict(states[1])
        half.step(x)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, half.state_dict()[name]), name
    assert (first.sae.parent != ROOT).any()


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    trained(CASES["paper"], 8)
    assert torch.equal(before, torch.get_rng_state())


# ---- it learns --------------------------------------------------------------------------------------------


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the shape checks, which cost ten times as much as such small steps."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def learnt(
    sae: LevelsSAE, draw: Callable[[int], torch.Tensor], steps: int, batch: int, seed: int = 0
) -> None:
    training = train_levels(sae, RunLength(steps, batch), 3e-3, seed)
    trained_on(training, [draw(batch) for _ in range(steps)]).finish()


@torch.no_grad()
def explained(sae: LevelsSAE, x: torch.Tensor) -> float:
    return 1 - float((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum())


# Steers twenty times as fast as the paper; its 0.001 is made for runs of 100,000 steps.
QUICK = SparsityConfig(rate=0.01, momentum=0.95, gain=0.05)


@pytest.mark.usefixtures("unchecked")
def test_jumprelu_learns_a_dictionary_at_its_l0() -> None:
    """60 directions, 3.6 of them active. Measured over 3 seeds: L0 3.9 to 4.1 for a target of 4, FVE 0.85 to 0.88."""
    generator = torch.Generator().manual_seed(0)
    truth = F.normalize(torch.randn(60, 24, generator=generator))

    def draw(n: int) -> torch.Tensor:
        active = torch.rand(n, 60, generator=generator) < 0.06
        return (active * torch.rand(n, 60, generator=generator)) @ truth + 0.3

    held_out = draw(4096)
    scale = float(24**0.5 / held_out.norm(dim=1).mean())
    sae = JumpReLUSAE(JumpReLUConfig((64,), (4,), normalize_activations=scale, sparsity=QUICK), 24)
    learnt(sae, draw, 600, 512)
    assert explained(sae, held_out) > 0.85
    code = sae.encode(held_out)
    assert float(code.active().sum(1).double().mean()) == pytest.approx(4, abs=0.3)
    found = (F.normalize(sae.decoder.detach()) @ truth.T).max(0).values
    assert float((found > 0.9).double().mean()) > 0.5, "most directions of the truth are found"


def families(n: int, generator: torch.Generator) -> torch.Tensor:
    """8 parents, each active on a fifth of the tokens, mostly with one of three children of its own."""
    directions = F.normalize(torch.randn(8, 4, 24, generator=torch.Generator().manual_seed(7)), dim=2)
    parent = (torch.rand(n, 8, generator=generator) < 0.2) * (0.5 + torch.rand(n, 8, generator=generator))
    child = parent * (1 + 2 * torch.rand(n, 8, generator=generator))
    child = child * (torch.rand(n, 8, generator=generator) > 0.2)
    which = F.one_hot(torch.randint(3, (n, 8), generator=generator), 3) * child[:, :, None]
    return parent @ directions[:, 0] + torch.einsum("npc,pcd->nd", which, directions[:, 1:])


@torch.no_grad()
def hierarchy_measures(sae: HSAE, x: torch.Tensor) -> dict[str, float]:
    values = sae.encode(x).dense(sae.d_sae)
    active, parent, sizes = (values > 0).numpy(), sae.parent.numpy(), sae.config.layer_sizes
    vectors = values[:, :, None] * sae.decoder.detach()
    owns = (sae.parent[:, None] == torch.arange(sae.d_sae)).float()
    heads = owns.sum(0) > 0
    gap = (vectors - torch.einsum("nfd,fp->npd", vectors, owns))[:, heads]
    pairs, _ = conditional(active, parent, sizes)
    return {
        "constraint": float(gap.square().sum() / vectors[:, heads].square().sum()),
        "hamming": hamming(active, parent, sizes)[0],
        "P(parent|child)": float(np.mean([p for _, _, p in pairs])),
    }


@pytest.mark.usefixtures("unchecked")
def test_hsae_is_more_of_a_hierarchy_than_the_baseline() -> None:
    """Measured over seeds 0 to 2: Hamming distance 0.7 against 1.4, P(parent|child) 0.76 against 0.72; with seed 0
    constraint 0.20 against 0.90, Hamming distance 0.70 against 1.49, P(parent|child) 0.78 against 0.73."""
    held_out = families(1000, torch.Generator().manual_seed(99))
    scale = float(24**0.5 / held_out.norm(dim=1).mean())
    common: dict[str, Any] = {"normalize_activations": scale, "sparsity": QUICK, "bandwidth": 0.1}
    found = []
    for updates, constraint, perturbation in [("after", 0.0, 0.0), ("alternate", 0.3, 0.05)]:
        hierarchy = ParentsConfig(updates)  # pyright: ignore[reportArgumentType]
        own: dict[str, Any] = {"constraint": constraint, "perturbation": perturbation, "hierarchy": hierarchy}
        sae = HSAE(HSAEConfig((8, 32), (2, 4), **common, **own), 24, seed=0)
        generator = torch.Generator().manual_seed(0)
        learnt(sae, lambda n, g=generator: families(n, g), 400, 128)
        assert explained(sae, held_out) > 0.85
        counts = sae.encode(held_out).fired(40)
        assert float(counts[:8].sum()) / 1000 == pytest.approx(2, abs=0.4)
        assert float(counts[8:].sum()) / 1000 == pytest.approx(4, abs=0.6)
        found.append(hierarchy_measures(sae, held_out))
    baseline, hsae = found
    assert hsae["constraint"] < 0.6 * baseline["constraint"]
    assert hsae["hamming"] < 0.7 * baseline["hamming"]
    assert hsae["P(parent|child)"] > baseline["P(parent|child)"] + 0.01


# ---- configurations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: JumpReLUConfig((4, 8), (1, 1)), "one layer"),
        (lambda: JumpReLUConfig((4,), (5,)), "expected 1 to 4"),
        (lambda: JumpReLUConfig((4,), (1, 1)), "one k for each layer"),
        (lambda: JumpReLUConfig((), ()), "at least one layer"),
        (lambda: JumpReLUConfig((4,), (1,), bandwidth=0), r"sae\.bandwidth = 0: expected more than 0"),
        (lambda: JumpReLUConfig((4,), (1,), bandwidth=-0.1), r"sae\.bandwidth = -0\.1"),
        (lambda: JumpReLUConfig((4,), (1,), threshold_rate=0), r"sae\.threshold_rate = 0"),
        (lambda: JumpReLUConfig((4,), (1,), threshold_init=-1), r"sae\.threshold_init = -1"),
        (lambda: JumpReLUConfig((4,), (1,), dead_after_tokens=0), r"sae\.dead_after_tokens = 0"),
        (lambda: SparsityConfig(weight=0), r"sae\.sparsity\.weight = 0"),
        (lambda: SparsityConfig(rate=0), r"sae\.sparsity\.rate = 0"),
        (lambda: SparsityConfig(rate=1.1), r"sae\.sparsity\.rate = 1\.1"),
        (lambda: SparsityConfig(momentum=1), r"sae\.sparsity\.momentum = 1"),
        (lambda: SparsityConfig(gain=-1), r"sae\.sparsity\.gain = -1"),
        (lambda: HSAEConfig((4,), (1,)), "two or more levels"),
        (lambda: HSAEConfig((4, 4), (1, 1)), "each larger than the previous one"),
        (lambda: HSAEConfig((8, 4), (1, 1)), "each larger than the previous one"),
        (lambda: HSAEConfig((4, 8), (1,)), "one k for each layer"),
        (lambda: HSAEConfig((4, 8), (1, 1), constraint=-1), r"sae\.constraint = -1"),
        (lambda: HSAEConfig((4, 8), (1, 1), perturbation=1.5), "(fraction|probability) from 0 to 1"),
        (lambda: HSAEConfig((4, 8), (1, 1), perturbation=-0.1), "(fraction|probability) from 0 to 1"),
        (lambda: HSAEConfig((4, 8), (1, 1), bandwidth=-1), r"sae\.bandwidth = -1"),
        (lambda: ParentsConfig(period=0), r"sae\.hierarchy\.period = 0"),
        (lambda: ParentsConfig(unassigned=1.5), r"sae\.hierarchy\.unassigned = 1\.5"),
        (lambda: ParentsConfig(unassigned=-0.1), r"sae\.hierarchy\.unassigned = -0\.1"),
        (lambda: ParentsConfig(momentum=1), r"sae\.hierarchy\.momentum = 1"),
        (lambda: ParentsConfig(max_children=0), r"sae\.hierarchy\.max_children = 0"),
        (lambda: ParentsConfig(max_cosine=1.1), r"sae\.hierarchy\.max_cosine = 1\.1: expected a cosine"),
    ],
)
def test_bad_configuration(build: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        build()
    assert "\n" not in str(error.value)
