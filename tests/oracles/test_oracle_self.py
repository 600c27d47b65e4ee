"""The oracle checked against hand-worked vectors, brute force and float64 automatic differentiation."""

import numpy as np
import pytest
import torch

from .allocation import (
    ROOT,
    brute_force_best_payoff,
    greedy_allocation,
    min_payoff,
    reallocate_layer,
    schedule,
)
from .tree import AdamState, TreeOptions, TreeOracle, adam_step


@pytest.mark.parametrize(
    ("capacity", "n_children", "quota", "payoff"),
    [
        ([10, 6, 1], 5, [3, 2, 0], 3.0),
        ([10, 6, 1, 0], 8, [5, 3, 0, 0], 2.0),
        ([5, 5, 5], 4, [2, 1, 1], 2.5),
        ([100, 1, 1], 10, [10, 0, 0], 10.0),
    ],
)
def test_greedy_vectors(capacity, n_children, quota, payoff):
    result = greedy_allocation(capacity, [True] * len(capacity), n_children)
    assert result.tolist() == quota
    assert min_payoff(capacity, result) == payoff


def test_greedy_without_capacity_spreads_evenly():
    assert greedy_allocation([0, 0, 0], [True, False, True], 5).tolist() == [3, 0, 2]
    assert greedy_allocation([0, 9, 0], [True, False, True], 5).tolist() == [3, 0, 2]


def test_greedy_with_root_minimum():
    assert greedy_allocation([10, 6, 1], [True] * 3, 5, min_root=2).tolist() == [2, 1, 2]
    assert greedy_allocation([1, 1, 10], [True] * 3, 5, min_root=2).tolist() == [0, 0, 5]
    assert greedy_allocation([1, 1, 10], [True] * 3, 2, min_root=7).tolist() == [0, 0, 2]


@pytest.mark.parametrize("min_root", [0, 2])
def test_greedy_is_optimal(min_root):
    rng = np.random.default_rng(0)
    for _ in range(20):
        capacity = rng.exponential(size=4)
        eligible = np.array([*(rng.random(3) < 0.7), True])
        quota = greedy_allocation(capacity, eligible, 6, min_root)
        assert quota.sum() == 6
        best = brute_force_best_payoff(capacity, eligible, 6, min_root)
        assert min_payoff(capacity, quota) == pytest.approx(best, rel=1e-14)


def test_schedule_vectors():
    assert schedule(3000, "double", 10_000, 50_000) == [3000, 9000, 19000, 29000, 39000, 49000]
    added = schedule(3000, "add", 10_000, 50_000)
    assert (added[0], added[1], added[-1], len(added)) == (3000, 6002, 48240, 16)


def test_reallocation_of_one_layer():
    # layer 0: features 0-2; layer 1: features 3-10; feature 6 alive, the rest of layer 1 dead but 10
    parent = np.array([-1, -1, -1, 0, 0, -1, 0, -1, 1, -1, 0])
    dead = np.array([True, False, False, True, True, True, False, True, True, True, False])
    new_parent, moves = reallocate_layer(parent, 3, 8, [1, 2, 4, 1], dead)
    assert moves == [(3, 0, 1), (4, 0, 2), (5, -1, 2), (7, -1, 2)]  # the fourth slot of 2 has no mover
    assert new_parent.tolist() == [-1, -1, -1, 1, 2, 2, 0, 2, 1, -1, 0]
    assert parent[3] == 0


def test_encoding_gates_before_selecting():
    # specification, vector 17: pre-activations [1, -1] and [5, 2], parents [1, 0], one per layer
    E = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [5.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    options = TreeOptions(normalize="none")
    oracle = TreeOracle(E, np.eye(4)[:, :3] + 1, np.zeros(3), [-1, -1, 1, 0], [2, 2], [1, 1], options)
    assert oracle.forward([[1.0, 0.0, 0.0]]).code.tolist() == [[1.0, 0.0, 0.0, 2.0]]


def example(seed: int, **options) -> tuple[TreeOracle, np.ndarray]:
    """A tree of layers 4, 5 and 6 in width 5 with some dead features, and seven tokens."""
    rng = np.random.default_rng(seed)
    sizes, d = [4, 5, 6], 5
    n_features = sum(sizes)
    D = rng.normal(size=(n_features, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    E = D + 0.3 * rng.normal(size=(n_features, d))
    starts = [0, 4, 9]
    parent = np.concatenate(
        [rng.integers(-1, start, size) for start, size in zip(starts, sizes, strict=True)]
    )
    settings = {"aux_coefs": {0: 0.5, 2: 0.25}, "k_aux": 2, "dead_steps": 6, "eligible_steps": 3, **options}
    oracle = TreeOracle(E, D, 0.2 * rng.normal(size=d), parent, sizes, [2, 2, 2], TreeOptions(**settings))
    oracle.steps_since_fired[:] = np.arange(n_features) * 3 % 11
    return oracle, 3.0 * rng.normal(size=(7, d)) + 1.0


def torch_loss(oracle: TreeOracle, x: np.ndarray) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The same loss written with torch, whole batches at a time; the counters as the oracle has them."""
    options = oracle.options
    leaves = [torch.tensor(value, requires_grad=True) for value in (oracle.E, oracle.D, oracle.b_dec)]
    E, D, b_dec = leaves
    tokens = torch.tensor(x)
    mean, std = torch.zeros(len(x), 1).double(), torch.ones(len(x), 1).double()
    if options.normalize == "token":
        mean = tokens.mean(1, keepdim=True)
        std = tokens.std(1, keepdim=True) + options.std_eps
    h = ((tokens - mean) / std - b_dec) @ E.T
    parent = torch.tensor(oracle.parent)
    dead = torch.tensor(oracle.dead())
    code = torch.zeros_like(h)
    total = torch.zeros(()).double()
    for layer, (start, size) in enumerate(zip(oracle.starts, oracle.layer_sizes, strict=True)):
        part = slice(start, start + size)
        above = code.detach()[:, parent[part].clamp(min=0)] > options.threshold
        gated = h[:, part] * (above | (parent[part] == ROOT))
        top = gated.topk(oracle.k_per_layer[layer], dim=1)
        code = code.index_add(
            1,
            torch.arange(start, start + size),
            torch.zeros_like(gated).scatter(1, top.indices, top.values.relu()),
        )
        xhat = std * (code @ D + b_dec) + mean
        total = total + ((xhat - tokens) ** 2).mean() / (tokens.var() + options.var_eps)
        n_dead = int(dead[part].sum())
        if layer not in options.aux_coefs or (n_dead == 0 and not options.aux_bias):
            continue
        target = tokens - xhat
        if options.aux_detach:
            target = target.detach()
        best = gated[:, dead[part]].topk(min(options.k_aux, n_dead), dim=1)
        a = torch.zeros(len(x), n_dead).double().scatter(1, best.indices, best.values.relu())
        e_hat = a @ D[part][dead[part]] + (b_dec if options.aux_bias else 0.0)
        if options.aux_rescale:
            e_hat = e_hat * std
        centred = target - target.mean(1, keepdim=True)
        total = total + options.aux_coefs[layer] * ((e_hat - target) ** 2).mean() / (centred**2).mean()
    return total, leaves


@pytest.mark.parametrize("normalize", ["token", "none"])
@pytest.mark.parametrize("aux_detach", [False, True])
@pytest.mark.parametrize("aux_bias", [False, True])
@pytest.mark.parametrize("aux_rescale", [False, True])
@pytest.mark.parametrize("dead_steps", [6, 100])
def test_gradients(normalize, aux_detach, aux_bias, aux_rescale, dead_steps):
    used_aux = False
    for seed in range(3):
        oracle, x = example(
            seed,
            normalize=normalize,
            aux_detach=aux_detach,
            aux_bias=aux_bias,
            aux_rescale=aux_rescale,
            dead_steps=dead_steps,
        )
        forward = oracle.forward(x)
        ours = oracle.losses_and_gradients(forward)
        used_aux |= any(oracle.aux_code(forward, layer).any() for layer in oracle.options.aux_coefs)
        total, leaves = torch_loss(oracle, x)
        total.backward()
        assert ours["loss"] == pytest.approx(total.item(), rel=1e-12)
        for name, leaf in zip(("grad_E", "grad_D", "grad_b_dec"), leaves, strict=True):
            assert leaf.grad is not None
            np.testing.assert_allclose(ours[name], leaf.grad.numpy(), rtol=1e-9, atol=1e-12)
        if dead_steps == 100 and not aux_bias:
            assert ours["aux"].tolist() == [0.0, 0.0, 0.0]
        elif dead_steps == 100:
            assert ours["aux"][0] > 0.0
    assert used_aux == (dead_steps == 6)


def test_gradients_by_central_differences():
    oracle, x = example(5)
    ours = oracle.losses_and_gradients(oracle.forward(x))
    rng = np.random.default_rng(1)
    for name in ("E", "D", "b_dec"):
        value = getattr(oracle, name)
        direction = rng.normal(size=value.shape)
        losses = []
        for sign in (1, -1):
            setattr(oracle, name, value + sign * 1e-6 * direction)
            losses.append(oracle.losses_and_gradients(oracle.forward(x))["loss"])
        setattr(oracle, name, value)
        slope = (losses[0] - losses[1]) / 2e-6
        assert slope == pytest.approx(float((ours[f"grad_{name}"] * direction).sum()), rel=1e-6)


def test_adam_agrees_with_torch():
    rng = np.random.default_rng(0)
    value = rng.normal(size=(3, 2))
    leaf = torch.tensor(value, requires_grad=True)
    optimizer = torch.optim.Adam([leaf], lr=0.01, betas=(0.9, 0.999), eps=6.25e-10)
    state = AdamState(np.zeros((3, 2)), np.zeros((3, 2)))
    for step in range(1, 6):
        gradient = rng.normal(size=(3, 2))
        gradient[0] = 0.0
        lr = 0.01 * step
        optimizer.param_groups[0]["lr"] = lr
        leaf.grad = torch.tensor(gradient)
        optimizer.step()
        value = adam_step(value, gradient, state, step, lr, 0.9, 0.999, 6.25e-10)
        np.testing.assert_allclose(value, leaf.detach().numpy(), rtol=1e-12)


def test_decoder_is_projected_before_the_step():
    oracle, x = example(2)
    oracle.D *= 1.01
    unit = oracle.D / np.linalg.norm(oracle.D, axis=1, keepdims=True)
    result = oracle.step(x, 1e-3)
    expected = result["grad_D"] - (result["grad_D"] * unit).sum(1, keepdims=True) * unit
    np.testing.assert_allclose(oracle.adam["D"].mean, 0.1 * expected, rtol=1e-9, atol=1e-15)
    assert np.abs((oracle.adam["D"].mean * unit).sum(1)).max() < 1e-15
    np.testing.assert_allclose(oracle.D, unit, atol=1.1e-3)


def test_counters_come_before_the_auxiliary_loss():
    oracle, x = example(3, dead_steps=6, aux_bias=False, aux_coefs={0: 1.0})
    oracle.steps_since_fired[:] = 5
    tokens = x[:1]  # one token, two features per layer: two of layer 0 die in this very step
    fired = oracle.forward(tokens).code.max(0) > 1e-3
    assert not oracle.dead().any()
    result = oracle.step(tokens, 0.0)
    assert oracle.steps_since_fired.tolist() == [1 if f else 6 for f in fired]
    assert not fired[:4].all()
    assert result["aux"][0] > 0.0


@pytest.mark.parametrize("rule", ["per_batch", "per_instance"])
def test_capacity_rules(rule):
    oracle, x = example(4, capacity_rule=rule)
    result = oracle.step(x, 1e-3)
    counts = (result["code"][:, :9] > 1e-3).sum(0)
    if rule == "per_batch":
        expected = np.array([*(counts > 0), 1]) * result["loss"] / ((counts > 0).sum() + 1)
    else:
        expected = np.array([*counts, 7]) * result["loss"]
    np.testing.assert_allclose(oracle.capacity[2], expected, rtol=1e-14)
    assert oracle.capacity[1].shape == (5,)
    assert 0 not in oracle.capacity


@pytest.mark.parametrize("growth", ["double", "add"])
def test_training_run(growth):
    oracle, _ = example(
        6,
        realloc_first=3,
        realloc_growth=growth,
        realloc_cap=5,
        root_reset_step=18,
        dead_steps=2,
        eligible_steps=2,
    )
    rng = np.random.default_rng(7)
    events, moves, losses = [], [], []
    for step in range(1, 25):
        before = oracle.parent.copy()
        result = oracle.step(rng.normal(size=(2, 5)), 1e-3)
        losses.append(result["loss"])
        after = before.copy()
        for feature, old, new in result["moved"]:
            assert oracle.dead()[feature]
            assert before[feature] == old
            after[feature] = new
        assert after.tolist() == oracle.parent.tolist()
        moves += result["moved"]
        if result["event"] == "reallocation":
            events.append(step)
            assert not oracle.capacity[1].any()
            assert not oracle.capacity[2].any()
        elif step == 18:
            assert result["event"] == "root_reset"
            assert (oracle.parent[oracle.dead()] == ROOT).all()
        else:
            assert result["event"] == "none"
            assert not result["moved"]
    assert events == [step for step in schedule(3, growth, 5, 24) if step < 18]
    assert any(new != ROOT for _, _, new in moves)
    assert np.isfinite(losses).all()
