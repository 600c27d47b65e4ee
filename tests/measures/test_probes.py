"""Probes: against float64 arithmetic, finite differences, scikit-learn and the LDA directions, and by definition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from oracles import probes as oracle
from saeforest.errors import InputError
from saeforest.measures import probes as probes_module
from saeforest.measures.probes import PAPER_PROBES, ProbeConfig, Probes, loss_gradient
from saeforest.sparse_code import SparseCode
from saeforest.structure.directions import Directions, Moments
from saeforest.structure.pairs import PairStatistics

N, D, FEATURES = 300, 6, 8
NEVER, ALWAYS = 6, 7
SHORT = ProbeConfig(epochs=4, batch_size=64, lr=3e-2, lr_end=1e-3)


def world(seed: int = 0, n: int = N, d: int = D) -> tuple[Tensor, Tensor]:
    """Activations with six overlapping concepts of different frequencies; one never fires, one always does."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(n, FEATURES, generator=generator) < torch.linspace(0.6, 0.03, FEATURES)
    y[:, NEVER], y[:, ALWAYS] = False, True
    concept = torch.randn(FEATURES, d, generator=generator)
    return y.float() @ concept + torch.randn(n, d, generator=generator), y


def statistics(y: Tensor) -> PairStatistics:
    found = PairStatistics(y.shape[1])
    found.add(SparseCode(y.float(), torch.arange(y.shape[1]).expand(y.shape)))
    return found


def probes(x: Tensor, y: Tensor, config: ProbeConfig = SHORT, **changes: Any) -> Probes:
    return Probes(x, statistics(y), replace(config, **changes))


def close(a: Tensor, b: Tensor, gap: float) -> None:
    assert float((1 - (a * b).sum(1)).max()) < gap


# ---- the gradient and the recipe


@pytest.mark.parametrize("bias", [0.0, 25.0, -25.0])
def test_gradient_is_that_of_the_oracle_and_of_finite_differences(bias: float) -> None:
    x, y = world()
    theta = torch.randn(FEATURES - 2, D + 1, generator=torch.Generator().manual_seed(3))
    theta[0, -1] += bias  # logits at which a careless sigmoid of a positive is rounded to 0 or 1
    on, pos_weight = y[:, : FEATURES - 2], torch.linspace(0.5, 40, FEATURES - 2)
    row, column = on.nonzero().T
    found = loss_gradient(theta, x, row, column, pos_weight)
    exact = [part.double().numpy() for part in (theta, x, on, pos_weight)]
    np.testing.assert_allclose(found, oracle.gradient(*exact), rtol=2e-5, atol=2e-6)
    for c, row in enumerate(exact[0]):
        numeric = oracle.numeric_gradient(row, exact[1], exact[2][:, c], float(exact[3][c]))
        np.testing.assert_allclose(found[c], numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [256, 2])
@pytest.mark.parametrize(("reduction", "joint", "decay"), [("sum", 1, 0.5), ("mean_all", 4, 1e-3)])
def test_training_equals_the_oracle(
    monkeypatch: pytest.MonkeyPatch, chunk: int, reduction: Any, joint: int, decay: float
) -> None:
    """The same batches; an L2 that matters; features in any order; the last batch is smaller."""
    monkeypatch.setattr(probes_module, "_CHUNK", chunk)
    x, y = world()
    features = torch.tensor([4, 0, 5, 2])
    config = replace(SHORT, reduction=reduction, seed=9, weight_decay=1e-3)
    assert decay == config.weight_decay * (PAPER_PROBES if reduction == "sum" else 1)
    generator = torch.Generator().manual_seed(9)
    order = [torch.randperm(N, generator=generator).numpy() for _ in range(4)]
    batches = [[part[i : i + 64] for i in range(0, N, 64)] for part in order]
    bound = D**-0.5
    start = np.stack([np.random.default_rng([9, f]).uniform(-bound, bound, D + 1) for f in features.tolist()])
    wanted = oracle.train(
        start, x.double().numpy(), y[:, features].double().numpy(), batches, 3e-2, 1e-3, decay, joint
    )
    trained = probes(x, y, config)
    found = trained.directions(features)
    unit = wanted[:, :-1] / np.linalg.norm(wanted[:, :-1], axis=1, keepdims=True)
    np.testing.assert_allclose(found, unit, atol=2e-5)
    moved = start[:, :-1] / np.linalg.norm(start[:, :-1], axis=1, keepdims=True)
    assert np.abs(unit - moved).max() > 0.1

    quality = trained.quality(features)
    for i, f in enumerate(features.tolist()):
        label, n_fired = y[:, f].double().numpy(), int(y[:, f].sum())
        score = x.double().numpy() @ wanted[i, :-1]
        assert quality.auroc[i].item() == pytest.approx(oracle.auroc(score, label), abs=1e-3)
        assert quality.loss is not None
        rho = (N - n_fired) / n_fired
        assert quality.loss[i].item() == pytest.approx(
            oracle.loss(wanted[i], x.double().numpy(), label, rho), rel=1e-4
        )
        assert quality.n[i] == n_fired


def test_converged_directions_are_those_of_scikit_learn() -> None:
    x, y = world(n=1000)
    config = ProbeConfig(epochs=500, batch_size=1000, lr=0.1, lr_end=1e-3, weight_decay=1e-10)
    features = torch.arange(6)
    found = probes(x, y, config).directions(features)
    for i in features.tolist():
        model = LogisticRegression(C=1e6, class_weight="balanced", tol=1e-8, max_iter=1000)
        w = model.fit(x.numpy(), y[:, i].numpy()).coef_[0]
        assert oracle.cosine(found[i].double().numpy(), w.astype(np.float64)) > 1 - 1e-6
    assert float((found @ found.T).triu(1).abs().max()) < 0.9


# ---- what a probe depends on, and on what it does not


def test_a_probe_does_not_depend_on_its_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_module, "_CHUNK", 4)
    x, y = world()
    together = probes(x, y).directions(torch.arange(6))
    alone = torch.cat([probes(x, y).directions(torch.tensor([i])) for i in range(6)])
    one_by_one = probes(x, y)
    later = torch.cat([one_by_one.directions(torch.tensor([i])) for i in (5, 4, 3, 2, 1, 0)]).flip(0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    assert torch.equal(later, alone)
    mean_all = probes(x, y, reduction="mean_all", weight_decay=0.01)
    apart = torch.cat([replace_probes(mean_all).directions(torch.tensor([i])) for i in range(6)])
    assert float((mean_all.directions(torch.arange(6)) - apart).abs().max()) > 1e-3


def replace_probes(like: Probes) -> Probes:
    return Probes(like.x, like.pairs, like.config)


def test_joint_mean_of_500_probes_is_the_sum_but_for_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight decay of "sum" is that of the joint mean of PAPER_PROBES probes."""
    monkeypatch.setattr(probes_module, "PAPER_PROBES", 6)
    x, y = world()
    features = torch.arange(6)
    added = probes(x, y, weight_decay=0.05).directions(features)
    averaged = probes(x, y, weight_decay=0.05, reduction="mean_all").directions(features)
    torch.testing.assert_close(added, averaged, atol=1e-4, rtol=0)
    assert float((added - probes(x, y).directions(features)).abs().max()) > 1e-2


def test_two_runs_agree_to_the_bit_and_another_seed_does_not() -> None:
    x, y = world()
    features = torch.arange(6)
    first = probes(x, y).directions(features)
    assert torch.equal(first, probes(x, y).directions(features))
    assert not torch.allclose(first, probes(x, y, seed=1).directions(features), atol=1e-3)


def test_directions_are_kept_and_any_features_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = world()
    trained = probes(x, y)
    first = trained.directions(torch.tensor([3, 1, 3]))
    assert first.shape == (3, D)
    assert torch.equal(first[0], first[2])
    torch.testing.assert_close(first.norm(dim=1), torch.ones(3))
    calls: list[list[int]] = []
    train = Probes._train

    def counted(self: Probes, features: Tensor) -> Tensor:
        calls.append(features.tolist())
        return train(self, features)

    monkeypatch.setattr(Probes, "_train", counted)
    assert torch.equal(trained.directions(torch.tensor([1, 0, 3, 2, 0]))[[0, 2]], first[[1, 0]])
    assert calls == [[0, 2]]
    assert trained.directions(torch.zeros(0, dtype=torch.int64)).shape == (0, D)
    assert trained.quality(torch.zeros(0, dtype=torch.int64)).auroc.shape == (0,)


@pytest.mark.parametrize("method", ["logistic", "lda", "mean_difference"])
def test_any_dtype_of_the_activations(method: Any) -> None:
    x, y = world()
    x, features = x.bfloat16(), torch.arange(6)
    half = probes(x, y, method=method).directions(features)
    assert half.dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        close(probes(x.to(dtype), y, method=method).directions(features), half, 1e-6)


def test_bfloat16_products_change_little() -> None:
    x, y = world()
    features = torch.arange(6)
    exact = probes(x, y).directions(features)
    rounded = probes(x, y, precision="bfloat16").directions(features)
    close(rounded, exact, 0.01)
    assert not torch.equal(rounded, exact)


# ---- the two that need no training


@pytest.mark.parametrize("rows", [7, 1 << 14])
def test_lda_is_that_of_directions(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(probes_module, "_ROWS", rows)
    x, y = world()
    moments = Moments(FEATURES, D, x.device)
    moments.add(x, torch.arange(FEATURES).expand(y.shape), y.float())
    features = torch.arange(6)
    computed = probes(x, y, method="lda")
    wanted = Directions(moments, y.sum(0), min_count=1).of(features)
    torch.testing.assert_close(computed.directions(features[3:]), wanted[3:])
    torch.testing.assert_close(computed.directions(features), wanted)
    assert computed.quality(features).loss is None


@pytest.mark.parametrize("rows", [7, 1 << 14])
def test_mean_difference(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(probes_module, "_ROWS", rows)
    x, y = world()
    found = probes(x, y, method="mean_difference").directions(torch.arange(6))
    for i in range(6):
        wanted = x[y[:, i]].double().mean(0) - x[~y[:, i]].double().mean(0)
        np.testing.assert_allclose(found[i], wanted / wanted.norm(), atol=1e-6)


# ---- quality of a sample, and what has no direction


def test_quality_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more activations than are sampled, close to the exact numbers, and the same each time."""
    x, y = world(n=4000)
    trained = probes(x, y)
    exact = trained.quality(torch.arange(6))
    monkeypatch.setattr(probes_module, "QUALITY_SAMPLE", 1000)
    monkeypatch.setattr(probes_module, "_CHUNK", 4)
    sampled = trained.quality(torch.arange(6))
    again = trained.quality(torch.arange(6))
    assert exact.loss is not None
    assert sampled.loss is not None
    assert again.loss is not None
    assert torch.equal(sampled.auroc, again.auroc)
    assert torch.equal(sampled.loss, again.loss)
    assert 0 < float((sampled.auroc - exact.auroc).abs().max()) < 0.03
    torch.testing.assert_close(sampled.loss, exact.loss, atol=0, rtol=0.2)


def test_quality_where_the_sample_holds_nothing_but_firings(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = world()
    y[:, 0] = True
    y[17, 0] = False
    trained = probes(x, y)
    exact = trained.quality(torch.tensor([0]))
    monkeypatch.setattr(probes_module, "QUALITY_SAMPLE", 2)
    sampled = trained.quality(torch.tensor([0]))
    assert sampled.auroc.tolist() == pytest.approx(exact.auroc.tolist())
    assert exact.loss is not None
    assert sampled.loss is not None
    assert sampled.loss.tolist() == pytest.approx(exact.loss.tolist())


def test_ties_count_half() -> None:
    """All activations alike: no probe can tell anything."""
    y = torch.arange(10)[:, None] % 2 == 0
    for method in ("logistic", "mean_difference"):
        blind = probes(torch.ones(10, 3), y, method=method)
        assert blind.quality(torch.tensor([0])).auroc.tolist() == [0.5]


@pytest.mark.parametrize("method", ["logistic", "lda", "mean_difference"])
def test_features_that_have_no_direction(method: Any) -> None:
    x, y = world()
    found = probes(x, y, method=method)
    asked = torch.tensor([0, NEVER, ALWAYS, 5, -1, FEATURES])
    assert found.defined(asked).tolist() == [True, False, False, True, False, False]
    for feature in (NEVER, ALWAYS, -1, FEATURES):
        with pytest.raises(ValueError, match=f"^feature {feature} fires on none or all of the activations"):
            found.directions(torch.tensor([0, feature]))
        with pytest.raises(ValueError, match=f"^feature {feature} fires"):
            found.quality(torch.tensor([feature]))


def test_no_activation_at_all() -> None:
    found = Probes(torch.zeros(0, D), PairStatistics(3), ProbeConfig())
    assert found.defined(torch.arange(3)).tolist() == [False] * 3


def test_firings_of_other_activations_are_refused() -> None:
    x, y = world()
    with pytest.raises(ValueError, match=r"^299 activations, but firings on 300$"):
        Probes(x[1:], statistics(y), ProbeConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "probe.epochs = 0: expected 1 or more"),
        ({"batch_size": 0}, "probe.batch_size = 0: expected 1 or more"),
        ({"lr": 0.0}, "probe.lr = 0.0: expected more than 0"),
        ({"lr": float("nan")}, "probe.lr = nan: expected more than 0"),
        ({"lr_end": 0.1}, "probe.lr_end = 0.1: expected more than 0, and lr or less"),
        ({"weight_decay": -1.0}, "probe.weight_decay = -1.0: expected 0 or more"),
        ({"seed": -1}, r"probe.seed = -1: expected 0 to 2\*\*63 - 1"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        ProbeConfig(**changes)
