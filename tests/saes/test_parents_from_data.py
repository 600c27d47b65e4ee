"""Parents from data, edges that are earned, dead features that start anew, and the ablations of a Tree SAE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from oracles.parents import Tokens, direction, encoder_norm, excess_of, new_parent
from oracles.tree import TreeOptions, TreeOracle
from saeforest import InputError, SparseCode
from saeforest.optim import OptimConfig
from saeforest.saes import AllocationConfig, RunLength, Setup, TreeAuxConfig, TreeConfig, TreeSAE
from saeforest.saes import parents_from_data as module
from saeforest.saes.allocator import Allocator
from saeforest.saes.parents_from_data import Evidence, FromDataConfig, Seen, as_often, choose, judge
from saeforest.saes.start_anew import Residuals, start_anew
from saeforest.saes.training import Step
from saeforest.saes.tree_training import TreeStep, TreeTraining

SIZES, K, D = (6, 8, 10), (2, 2, 2), 12
CPU = torch.device("cpu")


def batch(n: int, seed: int) -> torch.Tensor:
    """Non-negative sums of five directions, and noise."""
    data = torch.Generator().manual_seed(seed)
    directions = torch.randn(5, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x = torch.randn(n, 5, generator=data, dtype=torch.float64).relu() @ directions
    return x + 0.1 * torch.randn(n, D, generator=data, dtype=torch.float64)


def start(n_steps: int = 30, n: int = 16, **settings: Any) -> TreeTraining:
    """A training in float64; settings are those of the allocation, and others of the configuration."""
    own = {"gate", "layer_weights", "aux", "selection", "budget"}
    of_tree = {key: settings.pop(key) for key in own & settings.keys()}
    allocation = AllocationConfig(**{"first": 4, "cap": 8, "dead_after_tokens": 3 * n, **settings})
    config = TreeConfig(SIZES, K, "none", allocation=allocation, **of_tree)
    sae = TreeSAE(config, D, seed=1).to(torch.float64)
    return TreeTraining(sae, Setup(RunLength(n_steps, n), OptimConfig(lr=0.02, batch_size=n), torch.float64))


def random_code(n: int, first: int, end: int, slots: int, seed: int) -> SparseCode:
    """A code with some empty slots, and each feature at most once in a token."""
    data = torch.Generator().manual_seed(seed)
    # Features of small id are more frequent, so that rates differ.
    weights = torch.linspace(3, 0.5, end - first).expand(n, -1)
    ids = first + torch.multinomial(weights, slots, generator=data)
    values = torch.rand(n, slots, generator=data) * (torch.rand(n, slots, generator=data) < 0.8)
    return SparseCode(values, torch.where(values > 0, ids, 0))


def sets(code: SparseCode) -> list[set[int]]:
    return [set(ids[values > 0].tolist()) for values, ids in zip(code.values, code.ids, strict=True)]


@pytest.mark.parametrize("part_entries", [20, 1 << 22], ids=["in parts", "at once"])
@pytest.mark.parametrize(
    ("config", "first"),
    [
        (FromDataConfig(hysteresis=0, min_count=3), 0),
        (FromDataConfig(earned=0.0371, hysteresis=0.0123, min_count=7), 0),
        (FromDataConfig(earned=0.0371, hysteresis=0.0123, min_count=3), 4),
        (FromDataConfig(score="log_lift", hysteresis=0.1234, min_count=3), 0),
        (FromDataConfig(score="log_lift", earned=0.0371, hysteresis=0, min_count=4), 0),
        (FromDataConfig(earned=0.0171, hysteresis=0.0123, min_count=3, shuffles=3), 0),
        (FromDataConfig(score="log_lift", earned=0.0171, hysteresis=0, min_count=4, shuffles=1), 4),
    ],
    ids=str,
)
def test_parents_equal_the_oracle(
    config: FromDataConfig, first: int, part_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9 children under 10 candidates; of 5 steps of 40 tokens the window holds the last 3."""
    monkeypatch.setattr(module, "_PART_ENTRIES", part_entries)
    candidates, children, layers = range(first, 10), range(10, 19), torch.tensor([0] * 4 + [1] * 6)[first:]
    evidence = Evidence(replace(config, sample=40, window=120), 19, 2, CPU)
    tokens: list[tuple[set[int], set[int]]] = []
    for number in range(1, 6):
        n = 40 if number < 5 else 17  # a step may have fewer tokens
        active = random_code(n, 0, 10, 3, seed=number)
        own = random_code(n, 10, 19, 4, seed=100 + number)
        # Half of the time, child c is on where candidate c - 10 is.
        own.ids[:, 0] = torch.where(torch.arange(n) % 2 == 0, active.ids[:, 0] % 9 + 10, own.ids[:, 0])
        own.values[:, 1:] *= own.ids[:, 1:] != own.ids[:, :1]
        evidence.add(Seen(own, active), number)
        if number > 2:
            tokens += zip(sets(own), sets(active), strict=True)
    parent = torch.tensor([-1] * 10 + [-1, 3, 5, 7, -1, 0, 9, 4, 2])
    found = judge(config, evidence, parent, children, candidates, layers)
    settings = {
        key: getattr(config, key) for key in ("score", "earned", "hysteresis", "min_count", "shuffles")
    }
    expected = [new_parent(tokens, c, int(parent[c]), candidates, **settings) for c in children]
    assert found.parent.tolist() == expected
    assert expected != parent[10:].tolist()
    assert len({p for p in expected if p >= 0}) > (0 if config.shuffles else 2)
    other = as_often(torch.tensor([rate(tokens, p) for p in candidates]), layers) + first
    for c, p, known, excess, null in zip(children, *found, strict=True):
        assert bool(known) == (sum(c in own for own, _ in tokens) >= config.min_count)
        if p >= first:
            assert float(excess) == pytest.approx(excess_of(tokens, c, int(p)), abs=1e-6)
            assert float(null) == pytest.approx(excess_of(tokens, c, int(other[p - first])), abs=1e-6)


def rate(tokens: Tokens, p: int) -> float:
    return sum(p in active for _, active in tokens) / len(tokens)


def test_a_choice_by_hand() -> None:
    """docs/spec/test-vectors.md#parents-from-data."""
    shared, rates = torch.tensor([[90.0, 80.0, 40.0]]), torch.tensor([0.5, 0.3, 0.01])
    on, layers = torch.tensor([100]), torch.zeros(3, dtype=torch.int64)

    def parent(now: int, **settings: Any) -> int:
        config = FromDataConfig(**{"hysteresis": 0.0, **settings})
        return int(choose(config, on, shared, rates, torch.tensor([now]), layers).parent)

    # The excess is 0.4, 0.5 and 0.39; the lifts are 1.8, 2.67 and 40.
    assert parent(-1) == 1
    assert parent(-1, score="log_lift") == 2
    assert parent(-1, score="log_lift", earned=0.395) == 1
    assert parent(0, hysteresis=0.09) == 1
    assert parent(0, hysteresis=0.11) == 0
    assert parent(0, hysteresis=0.11, earned=0.45) == -1
    assert parent(0, hysteresis=0.04, earned=0.45) == 1
    assert parent(0, earned=0.6) == -1
    assert parent(0, min_count=101) == 0


def test_by_chance_no_edge_is_earned() -> None:
    """Detectors that are independent of the candidates: a fixed threshold of 0 gives nearly all of them parents, one
    above what chance gives few. Children that follow a candidate keep it."""
    earned = {}
    for shuffles in (0, 4):
        config = FromDataConfig(hysteresis=0, sample=2000, window=2000, min_count=3, shuffles=shuffles)
        evidence = Evidence(config, 60, 6, CPU)
        active, own = random_code(2000, 0, 20, 4, seed=1), random_code(2000, 20, 60, 4, seed=2)
        follows = torch.where(active.values[:, :1] > 0, active.ids[:, :1], 0) + 20
        follows_values = active.values[:, :1] * (follows < 25)
        keep = own.values * (own.ids >= 25)
        own = SparseCode(torch.cat([keep, follows_values], 1), torch.cat([own.ids, follows], 1))
        evidence.add(Seen(own, active), 1)
        layers = torch.zeros(20, dtype=torch.int64)
        found = judge(config, evidence, torch.full((60,), -1), range(20, 60), range(20), layers)
        assert bool(found.known.all())
        assert found.parent[:5].tolist() == list(range(5))
        earned[shuffles] = float((found.parent[5:] >= 0).double().mean())
    assert earned[0] == 1
    assert earned[4] < 0.4  # the largest of 5 excesses of one kind is the unshifted one in 1 of 5 cases


def test_the_reset_lets_only_those_start_anew_that_it_moves() -> None:
    allocator = Allocator(AllocationConfig(first=0, root_reset_at=0.5), (2, 3), RunLength(10, 4), CPU)
    parent, dead = torch.tensor([-1, -1, 0, -1, 1]), torch.tensor([True, False, True, True, False])
    code = SparseCode(torch.zeros(4, 1), torch.zeros(4, 1, dtype=torch.int64))
    nothing = torch.zeros(5, dtype=torch.int64)
    step = Step(torch.tensor(1.0), {}, code, torch.zeros(4, 2), nothing, 4)
    assert allocator.after_step(step, 4, parent, nothing, dead).dead.tolist() == []
    assert allocator.after_step(step, 5, parent, nothing, dead).dead.tolist() == [2]
    assert parent.tolist() == [-1, -1, -1, -1, 1]


def test_features_that_are_active_as_often() -> None:
    rates = torch.tensor([0.3, 0.1, 0.2, 0.9, 0.05, 0.06])
    assert as_often(rates, torch.tensor([0, 0, 0, 1, 2, 2])).tolist() == [2, 2, 0, 3, 5, 4]


def test_evidence_keeps_the_largest_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SPARE", 1)
    evidence = Evidence(FromDataConfig(sample=2, window=2), 9, 1, CPU)
    code = SparseCode(
        torch.tensor([[0.1, 0.3, 0.0, 0.2], [0.0, 0.0, 0.0, 0.5]]), torch.tensor([[4, 5, 0, 6]] * 2)
    )
    evidence.add(Seen(code, code), 1)
    assert [set(row) for row in evidence.own_ids[0].tolist()] == [{5, 6}, {6, 9}]


@pytest.mark.parametrize(("dead", "reset"), [("root", 27), ("stay", 27), ("stay", 15)])
def test_a_run_has_the_parents_of_the_oracle(dead: str, reset: int) -> None:
    """Every update of 30 steps, from the pre-activations and codes of the model's oracle: 10 tokens of each batch, of
    which the last 3 batches are in the window. A reset to the root may fall on the step of an update."""
    window: Any = {"sample": 10, "window": 30, "min_count": 3, "dead": dead, "dead_until": 0.7}
    data = FromDataConfig(earned=0.1234, hysteresis=0.0111, every=5, until=0.7, **window)
    training = start(rule="data", root_reset_at=reset / 30, from_data=data)
    sae, tokens, moved = training.sae, list[tuple[set[int], set[int]]](), 0
    options = TreeOptions(normalize="none", dead_steps=3)
    for number in range(1, 31):
        x = batch(16, number)
        e, d, b = (w.detach().numpy().copy() for w in (sae.encoder, sae.decoder, sae.b_dec))
        oracle = TreeOracle(e, d, b, sae.parent.numpy().copy(), list(SIZES), list(K), options)
        forward = oracle.forward(x.numpy())
        for t in range(10):
            own = set[int]()
            for first, size, k in ((6, 8, 2), (14, 10, 2)):
                best = np.argsort(-forward.h[t, first : first + size])[: 2 * k] + first
                own |= {int(i) for i in best if forward.h[t, i] > 1e-3}
            tokens.append((own, {int(i) for i in np.flatnonzero(forward.code[t] > 1e-3)}))
        old = sae.parent.tolist()
        events = training.step(x).events
        if number == reset:
            old = [-1 if training.dead[c] else old[c] for c in range(24)]
        expected = list(old)
        if number % 5 == 0 and number <= 21:
            latest = tokens[-30:]
            for c in range(6, 24):
                candidates = range(6 if c < 14 else 14)
                expected[c] = new_parent(
                    latest,
                    c,
                    old[c],
                    candidates,
                    score="excess",
                    earned=0.1234,
                    hysteresis=0.0111,
                    min_count=3,
                )
                known = sum(c in own for own, _ in latest) >= 3
                if dead == "root" and training.dead[c] and not known:
                    expected[c] = -1
            assert [event.log["with_parent"] for event in events if "with_parent" in event.log] == [
                sum(p >= 0 for p in expected[first:end]) / (end - first) for first, end in ((6, 14), (14, 24))
            ]
        assert sae.parent.tolist() == expected, number
        living = [c for c in range(24) if expected[c] != old[c] and not training.dead[c]]
        moved += len(living)
    assert moved > 3


def test_layer_weights() -> None:
    """The loss is the weighted sum; what is logged is each layer's own error."""
    whole, weighted = start(), start(layer_weights=(0.3, 0.0, 2.0))
    x = batch(16, 1)
    step = weighted(x, x)
    errors = whole(x, x).terms["reconstruction"]
    assert [float(e) for e in step.terms["reconstruction"] if e is not None] == [
        float(e) for e in errors if e is not None
    ]
    aux = step.terms["auxiliary"][0]
    assert errors[0] is not None
    assert errors[2] is not None
    assert aux is not None
    assert float(step.loss.detach()) == pytest.approx(
        float(0.3 * errors[0] + 2 * errors[2] + aux / 32), rel=1e-12
    )
    assert TreeConfig(SIZES, K, layer_weights=0.1).weights_of_layers() == (0.1, 0.1, 1.0)
    last = start(layer_weights=0.0, aux=TreeAuxConfig(coefficient=0.0))(x, x).loss
    assert float(last.detach()) == pytest.approx(float(errors[2]))


def test_without_a_gate() -> None:
    """Every feature hangs from the root, the code is each layer's top k, and nothing moves."""
    training = start(gate="none", rule="data", from_data=FromDataConfig(every=2))
    for number in range(1, 20):
        assert training.step(batch(16, number)).events == []
    assert training.sae.forest.edges.shape[1] == 0
    x = batch(16, 50)
    h = (x - training.sae.b_dec) @ training.sae.encoder.T
    code = training.sae.encode(x).dense(24)
    for first, end in ((0, 6), (6, 14), (14, 24)):
        best = h[:, first:end].relu().topk(2).values.sort().values
        torch.testing.assert_close(code[:, first:end].topk(2).values.sort().values, best)


@pytest.mark.parametrize(
    ("settings", "reallocations", "resets"),
    [
        ({"root_reset_at": 0.6}, [4, 12], [18]),
        ({"root_reset_at": 0.0}, [], []),
        ({"root_reset_at": 0.0, "until": 0.7}, [4, 12, 20], []),
        ({"root_reset_at": 0.6, "first": 0}, [], [18]),
        ({"root_reset_at": 0.9, "until": 0.5}, [4, 12], [27]),
        ({"root_reset_at": 0.3, "until": 1.0}, [4, 12, 20, 28], [9]),
    ],
    ids=str,
)
def test_reallocation_and_reset_apart(
    settings: dict[str, Any], reallocations: list[int], resets: list[int]
) -> None:
    training = start(**settings)
    seen: dict[str, list[int]] = {"reallocation": [], "root_reset": []}
    for number in range(1, 31):
        for event in training.step(batch(16, number)).events[:1]:
            seen[event.log["event"]].append(number)
    assert seen == {"reallocation": reallocations, "root_reset": resets}


def test_start_from_the_root() -> None:
    data = FromDataConfig(every=10, sample=16, min_count=2, hysteresis=0)
    training = start(rule="data", start="root", from_data=data)
    for number in range(1, 11):
        assert training.sae.forest.edges.shape[1] == 0
        training.step(batch(16, number))
    assert training.sae.forest.edges.shape[1] > 0


# Features that start anew


def test_start_anew_equals_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    training = start()
    for number in range(1, 4):
        training.step(batch(16, number))
    sae, optimizer = training.sae, training.optimizer
    sae.parent[[7, 8, 9, 20]] = torch.tensor([2, -1, 3, 2])
    active = torch.tensor([[2, -1], [0, 2], [1, -1], [2, 1], [0, -1]])  # feature 3 is never active
    residual, u = batch(5, 9), batch(5, 10)
    before = sae.encoder.detach().clone()
    squares = optimizer.state[sae.decoder]["exp_avg_sq"].clone()
    dead = torch.zeros(24, dtype=torch.bool)
    dead[[7, 8, 9, 10, 20]] = True
    monkeypatch.setattr("saeforest.saes.start_anew._ALIKE", 2)
    features = torch.tensor([7, 8, 9, 20])
    begun = start_anew(
        sae, optimizer, features, dead, Residuals(u, residual, active), torch.Generator().manual_seed(0)
    )

    assert begun.tolist() == [7, 8, 20], "no token of the batch has the parent of 9"
    norms = list[float]()
    for feature, tokens, together in ((7, [0, 1, 3], [7, 20]), (8, range(5), [8]), (20, [0, 1, 3], [7, 20])):
        tokens = list(tokens)
        possible = np.stack([direction(residual[tokens].numpy(), t, 2) for t in range(len(tokens))])
        row = sae.decoder[feature].detach().numpy()
        assert np.abs(possible - row).max(1).min() < 1e-12
        living = [i for i in (range(6, 14) if feature < 14 else range(14, 24)) if not dead[i]]
        rows = [sae.decoder[i].detach().numpy() for i in together]
        median = float(before[living].norm(dim=1).median())
        norm = encoder_norm(residual[tokens].numpy(), u[tokens].numpy(), row, rows, median)
        norms.append(norm / median)
        torch.testing.assert_close(sae.encoder[feature].detach(), norm * sae.decoder[feature].detach())
        for weight in (sae.encoder, sae.decoder):
            assert not optimizer.state[weight]["exp_avg"][feature].any()
        mean = optimizer.state[sae.decoder]["exp_avg_sq"][feature]
        torch.testing.assert_close(mean, squares[living].mean(0), rtol=1e-6, atol=0)
    assert any(0.05 < norm < 1 for norm in norms)
    others = [i for i in range(24) if i not in (7, 8, 20)]
    assert torch.equal(sae.encoder[others], before[others])
    assert optimizer.state[sae.encoder]["exp_avg"][others].any(1).sum() > 10


def test_large_errors_are_drawn_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """In proportion to their squares: 9 of 10 features begin at the token whose error is 3 times the other's. Once
    these have started, the larger error is left to nobody, and all others begin at the other token."""
    monkeypatch.setattr("saeforest.saes.start_anew._FEATURES", 1000)
    config = TreeConfig((2000,), (1,), "none")
    sae = TreeSAE(config, 2)
    optimizer = TreeTraining(sae, Setup(RunLength(1, 2))).optimizer
    residual = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    step = Residuals(residual, residual, torch.full((2, 1), -1))
    everyone = torch.arange(2000)
    start_anew(
        sae, optimizer, everyone, torch.ones(2000, dtype=torch.bool), step, torch.Generator().manual_seed(0)
    )
    first = sae.decoder[:1000, 0] > 0.5
    assert float(first.float().mean()) == pytest.approx(0.9, abs=4 * math.sqrt(0.9 * 0.1 / 1000))
    assert not (sae.decoder[1000:, 0] > 0.5).any()


@pytest.mark.parametrize(("rule", "dead"), [("capacity", "stay"), ("data", "root"), ("data", "capacity")])
def test_dead_features_start_anew_in_training(rule: str, dead: str) -> None:
    """Fewer are dead at the end than if they kept their weights."""
    data = FromDataConfig(every=4, sample=16, window=64, min_count=4, dead=dead)  # pyright: ignore[reportArgumentType]
    ended, begun = [], 0
    for reinitialize in (False, True):
        training = start(
            60,
            rule=rule,
            from_data=data,
            reinitialize=reinitialize,
            root_reset_at=0.0,
            until=0.8 if rule == "capacity" else None,
            count="living",
        )
        with torch.no_grad():
            training.sae.encoder[8:] = -training.sae.encoder[8:].abs() * 5  # nearly always negative
        for number in range(1, 41):
            for event in training.step(batch(16, number).abs()).events:
                begun += event.log.get("features", 0)
        training.sae.forest.path(23)  # a valid forest
        ended.append(int(training.dead.sum()))
    assert begun > 0
    assert ended[1] < ended[0]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: FromDataConfig(earned=1.5), "from_data.earned = 1.5: expected 0 to 1"),
        (lambda: FromDataConfig(until=-0.1), "from_data.until = -0.1: expected a fraction"),
        (lambda: FromDataConfig(dead_until=2), "from_data.dead_until = 2: expected a fraction"),
        (lambda: FromDataConfig(shuffles=-1), "from_data.shuffles = -1: expected 0 or more"),
        (lambda: FromDataConfig(every=0), "from_data.every = 0: expected 1 or more"),
        (lambda: FromDataConfig(hysteresis=-1), "from_data.hysteresis = -1: expected 0 or more"),
        (lambda: AllocationConfig(until=1.1), "allocation.until = 1.1: expected a fraction"),
        (lambda: TreeConfig(SIZES, K, layer_weights=-1), "layer_weights"),
        (lambda: TreeConfig(SIZES, K, layer_weights=(1, 1)), "one for each of the 3 layers"),
        (lambda: TreeConfig(SIZES, K, layer_weights=(0, 0, 0)), "not all 0"),
    ],
)
def test_settings_that_make_no_sense(build: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("budget", ["token", "batch"])
def test_what_is_seen_of_a_closed_selection(budget: str) -> None:
    """Detectors are on among the sum of all k of the whole tree; parents count only in their own right."""
    data = FromDataConfig(every=3, sample=10, window=30)
    training = start(rule="data", from_data=data, selection="closed", budget=budget)
    sae, x = training.sae, batch(200, 1)
    step = training(x, x)
    assert isinstance(step, TreeStep)
    assert step.seen is not None
    h = (x[:10] - sae.b_dec) @ sae.encoder.T
    on = h.detach().topk(6).indices
    expected = [{int(i) for i in row if i >= 6 and h[t, i] > 1e-3} for t, row in enumerate(on)]
    assert sets(step.seen.own) == expected
    if budget == "token":
        assert sets(step.seen.active) == sets(sae.encode_alone(x[:10]))
    assert sets(step.seen.active) != sets(step.code[:10]), "some parents are there for a child's sake"
    for row in sets(step.seen.active):
        assert {int(sae.parent[c]) for c in row} <= row | {-1}
