"""HSAE, and the JumpReLU SAE, which is its case of one level: training, against the oracle."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hsae_cases import (
    BATCH,
    CASES,
    DEAD_STEPS,
    ONE_LEVEL,
    SIZES,
    STEPS,
    Case,
    D,
    batches,
    brute_force,
    hierarchy_of,
    make_oracle,
    make_training,
    random_parent,
    same,
    train_levels,
)
from oracles.hsae_links import assign
from sae_cases import floats
from saeforest.saes import (
    HSAE,
    HSAEConfig,
    JumpReLUConfig,
    JumpReLUSAE,
    RunLength,
    SparsityConfig,
)
from saeforest.saes.hsae import Hierarchy
from saeforest.saes.levels import LevelsSAE, LevelsTraining
from saeforest.saes.parents import choose_parents
from saeforest.saes.thresholds import heaviside, jumprelu
from saeforest.seeds import seeded
from saeforest.structure.forest import ROOT

# ---- training, step by step -------------------------------------------------------------------------------


def follow(training: LevelsTraining, case: Case) -> dict[str, float]:
    """Trains SAE and oracle and compares them after every step; returns how much of what the run has met."""
    first, *data = batches(STEPS + 1)
    sae = training.sae
    training.initialize(first, first)
    with torch.no_grad():
        sae.threshold[::5] += 2.0  # these fall silent
        if case.parents:
            sae.parent.copy_(random_parent())
    config = training.optim
    oracle = make_oracle(training, case, config.eps)
    pairs = {
        "E": sae.encoder,
        "D": sae.decoder,
        "b_enc": sae.b_enc,
        "theta": sae.threshold,
        "B": sae.b_dec,
    }
    seen: dict[str, float] = dict.fromkeys(
        ("dead", "ghost", "links", "replaced", "moved", "updates", "negative", "near", "zero"), 0.0
    )
    for step, x in enumerate(data, 1):
        before = sae.parent.clone()
        u, stats = sae.normalize(x)
        bias = sae.b_dec.detach().view(-1, 1, D).repeat_interleave(torch.tensor(oracle.sizes), 0)
        h = ((u - bias) @ sae.encoder.detach()[:, :, None]).squeeze(2).T + sae.b_enc.detach()
        near = (h - sae.threshold.detach()).abs() < training.bandwidth / 2
        seen["near"] += int(near.sum())
        seen["negative"] += int((near & (h < 0)).sum())
        drawn = replaced(training).numpy() if isinstance(sae, HSAE) else None
        out = training(x, x)
        training.update(out.loss)
        expected = oracle.step(x.numpy(), config.lr, drawn)
        for name, weight in pairs.items():
            assert weight.grad is not None
            same(weight.grad.reshape(expected[f"grad_{name}"].shape), expected[f"grad_{name}"], name)
        events = training.after_step(out, step)
        training.done = step

        loss = float(out.loss.detach())
        assert loss == pytest.approx(expected["loss"], rel=1e-9)
        same(floats(out.terms["reconstruction"]), expected["recon"])
        same(floats(out.terms["sparsity"]), expected["sparsity"])
        same(floats(out.terms["weight"]), expected["lam"])
        assert ("ghost" in out.terms) == case.ghost
        if case.ghost:
            same(floats(out.terms["ghost"]), expected["ghost"])
        assert ("links" in out.terms) == (isinstance(sae, HSAE) and case.constraint > 0)
        if "links" in out.terms:
            same(floats(out.terms["links"]), [case.constraint * expected["constraint"].sum()])
        same(out.code.dense(sae.d_sae), expected["f"])
        same((out.x_hat - stats.mean) / stats.std, expected["u_hat"][-1])
        for name, weight in pairs.items():
            same(weight.reshape(getattr(oracle, name).shape), getattr(oracle, name), name)
        same(training.sparsity.weight, oracle.lam)
        same(training.sparsity.l0, oracle.l0_ema)
        assert sae.parent.tolist() == oracle.parent.tolist()
        assert training.steps_since_fired.tolist() == oracle.steps_since_fired.tolist()
        assert bool(events) == bool(expected["updated"] and isinstance(sae, HSAE))
        for event in events:
            level = event.log["layer"]
            own = slice(oracle.starts[level], oracle.starts[level] + SIZES[level])
            new = sae.parent[own]
            assert event.log == {
                "event": "hierarchy",
                "step": step,
                "layer": level,
                "moved": int((new != before[own]).sum()),
                "to_root": int((new == ROOT).sum()),
                "parents": len(set(new.tolist()) - {ROOT}),
            }
            seen["moved"] += event.log["moved"]
        if isinstance(training.links, Hierarchy) and training.links.averages is not None:
            for level in range(len(SIZES) - 1):
                below = slice(oracle.starts[level + 1], oracle.starts[level + 1] + SIZES[level + 1])
                together, child = training.links.averages.of(level)
                same(together, oracle.joint[level])
                same(child, oracle.frequency[below])
        seen["zero"] += int((sae.threshold == 0).sum())
        seen["dead"] += int(training.dead.sum())
        seen["ghost"] += expected["ghost"].sum()
        seen["links"] += expected["constraint"].sum()
        seen["replaced"] += expected["replaced"].sum()
        seen["updates"] += len(events)
    training.finish()
    oracle.finish()
    assert sae.parent.tolist() == oracle.parent.tolist()
    return seen


def replaced(training: LevelsTraining) -> torch.Tensor:
    """Which features the next step replaces by their children."""
    return hierarchy_of(training).draw(training.sae, training.done)[:-1]


@pytest.mark.parametrize("name", CASES)
def test_training_equals_the_oracle(name: str) -> None:
    """40 steps in float64 in which features die, are replaced, draw on ghosts and change their parents."""
    case = CASES[name]
    training = make_training(case)
    sae = training.sae
    assert isinstance(sae, HSAE)
    seen = follow(training, case)
    assert seen["dead"] > 0, "the run must meet dead features"
    assert (seen["ghost"] > 0) == case.ghost
    assert seen["near"] > 0, "the thresholds must learn"
    if case.bandwidth and case.bandwidth >= 0.7:
        assert seen["negative"] > 0, "negative pre-activations must lie within the kernel"
    updates = case.hierarchy.updates
    alternate = 2 * (STEPS // (case.hierarchy.period or 2))  # by default 5,000 of 97,657 steps: 2 of 40
    assert seen["updates"] == {"alternate": alternate, "fixed": 2}.get(updates, 0)
    assert training.done == STEPS
    if case.threshold_init == 0.02:
        assert seen["zero"] > 0, "thresholds must come to their lower end"
    if updates in ("alternate", "fixed"):
        assert seen["moved"] > SIZES[1] // 2, "the run must move children"
    if updates != "after":
        assert (seen["replaced"] > 0) == (case.perturbation > 0)
        assert seen["links"] > 0
    assert (sae.parent != ROOT).any()


@pytest.mark.parametrize("name", ONE_LEVEL)
def test_one_level_equals_the_oracle(name: str) -> None:
    case = ONE_LEVEL[name]
    seen = follow(make_training(case, (13,), (3,)), case)
    assert seen["dead"] > 0
    assert (seen["ghost"] > 0) == case.ghost
    assert (seen["negative"] > 0) == ((case.bandwidth or 0) > 1)
    assert seen["near"] > 0


def initialized(sae: LevelsSAE, x: torch.Tensor) -> LevelsSAE:
    train_levels(sae, RunLength(STEPS, len(x)), 0.01).initialize(x, x)
    return sae


@pytest.mark.parametrize("rows", [1, 2, 12, 600])
def test_thresholds_start_where_l0_is_at_its_target(rows: int) -> None:
    x = torch.randn(rows, D, generator=torch.Generator().manual_seed(2))
    config = HSAEConfig((40, 60), (4, 30), normalize_activations=0.7)
    sae = initialized(HSAE(config, D), x)
    fired = sae.encode(x).fired(100)
    if rows > 2:
        assert fired[:40].tolist() == [max(round(0.1 * rows), 1)] * 40
        # Half of the tokens: where that is more than are positive, the threshold is 0.
        full, low = fired[40:] == rows // 2, sae.threshold[40:] == 0
        assert bool((full | low).all())
        assert bool(full.any())
    assert torch.isfinite(sae.threshold).all()
    given = initialized(HSAE(replace(config, threshold_init=0.25), D), x)
    assert given.threshold.eq(0.25).all()


def test_bf16_leaves_out_no_active_feature() -> None:
    """Features are chosen with a margin below their thresholds, and then by their exact pre-activations."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 64, generator=generator)
    sae = JumpReLUSAE(JumpReLUConfig((512,), (16,), normalize_activations="none"), 64)
    initialized(sae, x)
    exact = sae.encode(x).dense(512)
    torch.testing.assert_close(sae.encode(x, precision=torch.bfloat16).dense(512), exact)


def test_the_weight_stays_within_bounds() -> None:
    """docs/spec/hsae.md#l0-control: 1e-8 to 1e2, of losses that are sums over coordinates."""
    case = Case(sparsity=SparsityConfig(gain=1))
    sparsity = make_training(case, (13,), (3,)).sparsity
    for far, bound in [(13.0, 1e2 * D), (0.0, 1e-8 * D)]:
        sparsity.l0.fill_(far)
        for _ in range(40):
            sparsity.steer(torch.tensor([far], dtype=torch.float64))
        assert float(sparsity.weight) == bound


# ---- gradients --------------------------------------------------------------------------------------------


def test_vector_15() -> None:
    """docs/spec/test-vectors.md#jumprelu. The kernel reaches as far below the threshold as above."""
    h = torch.tensor([0.55, 0.65, 0.45, 0.35, 0.5], dtype=torch.float64, requires_grad=True)
    theta = torch.full_like(h, 0.5).detach().requires_grad_()
    f = jumprelu(h, theta, 0.2)
    assert f.tolist() == [0.55, 0.65, 0, 0, 0]
    of_h, of_theta = torch.autograd.grad(f.sum(), (h, theta))
    assert of_h.tolist() == [1, 1, 0, 0, 0]
    same(of_theta, [-2.5, 0, -2.5, 0, -2.5])
    on = heaviside(h, theta, 0.2)
    assert on.tolist() == [1, 1, 0, 0, 0]
    of_h, of_theta = torch.autograd.grad(on.sum(), (h, theta), allow_unused=True)
    assert of_h is None
    same(of_theta, [-5, 0, -5, 0, -5])


def dense_loss(
    training: LevelsTraining, x: torch.Tensor, replaced: torch.Tensor, is_dead: torch.Tensor, case: Case
) -> torch.Tensor:
    """The loss of a step in dense formulas; a pseudo-derivative is a term that is 0 and has a gradient."""
    sae, weight = training.sae, training.sparsity.weight
    u = sae.normalize(x)[0]
    sizes = sae.config.layer_sizes
    has_child = torch.tensor([bool((sae.parent == i).any()) for i in range(sae.d_sae)])
    child_of = (sae.parent[:, None] == torch.arange(sae.d_sae)).to(torch.float64)
    level_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    b_dec = sae.b_dec.view(-1, D)
    h = torch.stack(
        [(u - b_dec[level_of[i]]) @ sae.encoder[i] + sae.b_enc[i] for i in range(sae.d_sae)], dim=1
    )
    theta = sae.threshold
    near = ((h - theta).detach().abs() < training.bandwidth / 2).double() / training.bandwidth
    zero = theta - theta.detach()
    f = torch.where(h > theta, h, 0) - near * theta.detach() * zero
    on = (h > theta).to(torch.float64) - near * zero
    vectors = f[:, :, None] * sae.decoder  # what each feature adds, per token
    of_children = torch.einsum("nfd,fp->npd", vectors, child_of)
    gaps = (vectors - of_children).square().sum(2)
    if case.compare == "projected":
        along = (of_children * sae.decoder).sum(2)
        gaps, of_children = (f - along).square(), along[:, :, None] * sae.decoder
    stand_in = torch.where(replaced[:, None], of_children, vectors)
    loss = case.constraint * (gaps * has_child).sum(1).mean()
    for level in range(len(sizes)):
        own = level_of == level
        u_hat = stand_in[:, own].sum(1) + b_dec[level]
        loss = loss + (u - u_hat).square().sum(1).mean() + weight[level] * on[:, own].sum(1).mean()
        dead = own & is_dead
        if training._config.ghost and dead.any():
            r = (u - u_hat).detach()
            ghost_h = (u - b_dec[level].detach()) @ sae.encoder[dead].T + sae.b_enc[dead]
            out = ghost_h.exp() @ sae.decoder[dead]
            out = out * (r.norm(dim=1) / (2 * out.norm(dim=1) + 1e-6)).detach()[:, None]
            error = (out - r).square().sum(1)
            loss = loss + (error * (r.square().sum(1) / (error + 1e-6)).detach()).mean()
    return loss


GRADIENTS = {
    "narrow": Case(normalize="layer_norm", bandwidth=0.05, perturbation=0.4, constraint=0.3),
    "wide": Case(normalize=0.8, bandwidth=1.5, perturbation=1, constraint=0.2),
    "projected": Case(bandwidth=0.5, perturbation=0.5, constraint=2, compare="projected"),
    "no ghosts": Case(ghost=False, bandwidth=0.5, perturbation=0, constraint=2),
    "one level": Case(bandwidth=0.8, perturbation=0, constraint=0),
}


def stirred(name: str) -> LevelsTraining:
    """An SAE with a forest, arbitrary biases and thresholds, some dead features and weights that matter."""
    case = GRADIENTS[name]
    training = make_training(case, (13,), (3,)) if name == "one level" else make_training(case)
    sae = training.sae
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in (sae.b_dec, sae.b_enc):
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        sae.threshold.copy_(0.3 * torch.rand(sae.d_sae, generator=generator))
        sae.threshold[::4] += 9
        training.steps_since_fired[::4] = DEAD_STEPS
        training.sparsity.weight.fill_(0.7)
        if isinstance(sae, HSAE):
            sae.parent.copy_(random_parent())
    return training


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_equal_those_of_dense_formulas(name: str) -> None:
    case, training = GRADIENTS[name], stirred(name)
    sae = training.sae
    x = batches(1, batch=32)[0]
    step = training(x, x)
    step.loss.backward()
    found = {n: p.grad for n, p in sae.named_parameters()}
    sae.zero_grad()
    drawn = replaced(training) if isinstance(sae, HSAE) else torch.zeros(sae.d_sae, dtype=torch.bool)
    dead = training.dead_after(step.fired)
    expected = dense_loss(training, x, drawn, dead, case)
    expected.backward()
    assert bool(dead.any())
    assert bool(drawn.any()) == (case.perturbation > 0)
    same(step.loss, expected.detach().numpy())
    assert set(found) == {"encoder", "decoder", "b_enc", "b_dec", "threshold"}
    for parameter, weight in sae.named_parameters():
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0
        same(found[parameter], weight.grad.numpy(), parameter)


@pytest.mark.parametrize("name", GRADIENTS)
def test_what_is_far_below_its_threshold_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step looks only at features that are no more than half the bandwidth below: here at all of them."""
    x = batches(1, batch=32)[0]
    one, whole = stirred(name), stirred(name)
    within, widths = whole.sae.within_reach, []

    def everything(u: torch.Tensor, level: int, reach: float, precision: torch.dtype) -> Any:
        rows, ids, h = within(u, level, 1e3, precision)
        every, chosen = len(u) * whole.sae.config.layer_sizes[level], within(u, level, reach, precision)[1]
        widths.append((len(ids), every, len(chosen)))
        return rows, ids, h

    monkeypatch.setattr(whole.sae, "within_reach", everything)
    steps = [training(x, x) for training in (one, whole)]
    assert all(used == n for used, n, _ in widths)
    assert any(chosen < n for _, n, chosen in widths), "some must have been left out"
    for step in steps:
        step.loss.backward()
    same(steps[0].loss, steps[1].loss.detach().numpy())
    for a, b in zip(one.sae.parameters(), whole.sae.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        same(a.grad, b.grad.numpy())


# ---- perturbation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_the_draw_of_the_perturbation(share: float) -> None:
    config = HSAEConfig((40, 80), (2, 2), normalize_activations="none", perturbation=share)
    sae = HSAE(config, D)
    run = RunLength(STEPS, BATCH)
    draws_of = hierarchy_of(train_levels(sae, run, 0.01, seed=4)).draw
    assert not draws_of(sae, 0).any(), "nothing has children"
    sae.parent[40:] = torch.arange(80) % 30  # 30 with children, 10 without
    draws = []
    for step in range(200):
        drawn = draws_of(sae, step)
        assert torch.equal(drawn, draws_of(sae, step))
        draws.append(drawn)
    drawn = torch.stack(draws)
    assert drawn.shape == (200, 121)
    assert not drawn[:, 30:].any(), "childless features, the last level and the root stay"
    deviation = (share * (1 - share) / (200 * 30)) ** 0.5
    assert float(drawn[:, :30].double().mean()) == pytest.approx(share, abs=4 * deviation)
    if 0 < share < 1:
        assert len({tuple(row.tolist()) for row in drawn}) > 100, "anew in every step"
        other = hierarchy_of(train_levels(sae, run, 0.01, seed=5))
        assert not torch.equal(other.draw(sae, 0), drawn[0])
        drawn_alone = torch.rand(120, generator=seeded(4, "perturbation", 0)) < share
        assert torch.equal(drawn[0, :30], drawn_alone[:30])


# ---- choosing parents -------------------------------------------------------------------------------------


@pytest.mark.parametrize("forbidden", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("max_children", [None, 1, 2, 4])
@pytest.mark.parametrize("unassigned", [0.0, 0.2, 0.5, 1.0])
def test_parents_equal_a_brute_force(unassigned: float, max_children: int | None, forbidden: float) -> None:
    rng = np.random.default_rng(0)
    for n_above, n_below, digits in [(3, 5, 8), (4, 9, 1), (5, 13, 0), (1, 4, 1), (6, 7, 1), (2, 10, 8)]:
        similarity = rng.uniform(-1, 1, (n_above, n_below)).round(digits)  # few digits: many ties
        similarity[rng.random(similarity.shape) < forbidden] = -np.inf
        found = choose_parents(torch.tensor(similarity), unassigned, max_children).tolist()
        assert found == brute_force(similarity.tolist(), unassigned, max_children)
        assert found == assign(similarity, unassigned, max_children).tolist()
        assert found.count(ROOT) >= int(unassigned * n_below)
        assert all(similarity[a, b] > -np.inf for b, a in enumerate(found) if a != ROOT)
        if max_children is not None:
            assert max(found.count(a) for a in range(n_above)) <= max_children


def test_parents_by_hand() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.8, 0.2], [0.3, 0.1, 0.6, 0.7, 0.4]])
    assert choose_parents(similarity, 0.0).tolist() == [0, 0, 1, 0, 1], "a tie goes to the lower parent"
    assert choose_parents(similarity, 0.2).tolist() == [0, -1, 1, 0, 1]
    assert choose_parents(similarity, 0.39).tolist() == [0, -1, 1, 0, 1], "a share is rounded down"
    assert choose_parents(similarity, 0.4).tolist() == [0, -1, 1, 0, -1]
    assert choose_parents(similarity, 1.0).tolist() == [-1] * 5
    # Child 3 comes before child 2, but after child 0, which has filled parent 0.
    assert choose_parents(similarity, 0.0, 1).tolist() == [0, -1, -1, 1, -1], "too little room"
    assert choose_parents(similarity, 0.0, 2).tolist() == [0, -1, 1, 0, 1]
    # The three without room are the least similar: two of them are the 40%.
    assert choose_parents(similarity, 0.4, 1).tolist() == [0, -1, -1, 1, -1]
    assert choose_parents(similarity, 0.8, 1).tolist() == [0, -1, -1, -1, -1]
    equal = torch.zeros(2, 5)
    assert choose_parents(equal, 0.4).tolist() == [-1, -1, 0, 0, 0], "of equals the lower are left out"
    assert choose_parents(equal, 0.0, 2).tolist() == [0, 0, 1, 1, -1]


# ---- extremes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crowd", [0, 1, 2])
def test_crowded_families_are_summed_to_the_same(crowd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = batches(1, batch=32)[0]
    by_pairs, summed = stirred("wide"), stirred("wide")
    steps = [by_pairs(x, x)]
    monkeypatch.setattr("saeforest.kernels.links._CROWD", crowd)
    steps.append(summed(x, x))
    for step in steps:
        step.loss.backward()
    assert steps[0].terms["links"][0]
    same(steps[1].loss, steps[0].loss.detach().numpy())
    for a, b in zip(summed.sae.parameters(), by_pairs.sae.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        same(a.grad, b.grad.numpy())


def test_ghosts_of_huge_activations_do_not_overflow() -> None:
    """exp(h) is infinite in float32 from h = 89 on; an attention sink reaches hundreds."""
    training = make_training(Case(normalize="none"), (13,), (3,), dtype=torch.float32)
    sae = training.sae
    training.steps_since_fired.fill_(100)
    with torch.no_grad():
        sae.threshold.fill_(1e6)
    x = batches(1, torch.float32)[0]
    x[0] *= 1e4
    step = training(x, x)
    step.loss.backward()
    assert step.terms["ghost"][0]
    assert bool(torch.isfinite(step.loss))
    assert sae.encoder.grad is not None
    assert bool(torch.isfinite(sae.encoder.grad).all())
