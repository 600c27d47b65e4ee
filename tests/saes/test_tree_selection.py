"""The options by which a Tree SAE selects features: closed top-k, budgets of a batch, residual encoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oracles.tree import TreeOptions
from oracles.tree_selection import SelectionOracle, best_closed_set, closed_scores, with_options
from sae_cases import floats
from saeforest import InputError
from saeforest.kernels import compiled, plain
from saeforest.optim import OptimConfig
from saeforest.saes import (
    AllocationConfig,
    RunLength,
    Setup,
    TreeAuxConfig,
    TreeConfig,
    TreeSAE,
    load_sae,
    save_sae,
)
from saeforest.saes.batch_topk import ThresholdConfig
from saeforest.saes.tree_training import TreeTraining

SIZES, K, D, LR, BATCH, STEPS = (6, 8, 10), (2, 2, 2), 12, 0.02, 16, 24
OPTIONS: dict[str, dict[str, Any]] = {
    "closed": {"selection": "closed", "beam": 10.0},
    "closed, a beam": {"selection": "closed", "beam": 1.0},
    "closed, of a batch": {"selection": "closed", "budget": "batch", "beam": 10.0},
    "closed, of a batch, a beam": {"selection": "closed", "budget": "batch", "beam": 1.0},
    "layers of a batch": {"budget": "batch"},
    "residual": {"reads": "residual"},
    "residual, of a batch": {"reads": "residual", "budget": "batch"},
}


def config(options: dict[str, Any]) -> TreeConfig:
    return TreeConfig(
        SIZES,
        K,
        aux=TreeAuxConfig(layers=(0, 1, 2), coefficient=0.1, k=3, rescale=True),
        allocation=AllocationConfig(
            first=4, cap=8, root_reset_at=0.8, dead_after_tokens=3 * BATCH, eligible_within_tokens=3 * BATCH
        ),
        threshold=ThresholdConfig(start=3, momentum=0.9),
        **options,
    )


def make_training(options: dict[str, Any]) -> TreeTraining:
    sae = TreeSAE(config(options), D, seed=1).double()
    return TreeTraining(
        sae, Setup(RunLength(STEPS, BATCH), OptimConfig(lr=LR, batch_size=BATCH), torch.float64)
    )


def make_oracle(sae: TreeSAE, options: dict[str, Any]) -> SelectionOracle:
    switches = TreeOptions(
        aux_coefs=dict.fromkeys(range(3), 0.1), k_aux=3, aux_rescale=True, dead_steps=3, eligible_steps=3,
        realloc_first=4, realloc_cap=8, root_reset_step=int(0.8 * STEPS),
    )  # fmt: skip
    encoder, decoder, b_dec = (w.detach().numpy().copy() for w in (sae.encoder, sae.decoder, sae.b_dec))
    oracle = SelectionOracle(
        encoder, decoder, b_dec, sae.parent.numpy().copy(), list(SIZES), list(K), switches
    )
    return with_options(oracle, **options)


def batches(n_steps: int) -> Iterator[torch.Tensor]:
    data = torch.Generator().manual_seed(5)
    directions = torch.randn(5, D, generator=data, dtype=torch.float64)
    for _ in range(n_steps):
        x = torch.randn(BATCH, 5, generator=data, dtype=torch.float64).relu() @ directions
        yield x + 0.1 * torch.randn(BATCH, D, generator=data, dtype=torch.float64)


@pytest.mark.parametrize("name", OPTIONS)
def test_training_equals_the_oracle(name: str) -> None:
    """Losses, gradients, codes, moves and thresholds, step for step, and then the code at inference."""
    options = OPTIONS[name]
    training = make_training(options)
    sae = training.sae
    oracle = make_oracle(sae, options)
    threshold: list[float] | None = None
    seen = {"dead": 0, "aux": 0.0, "moved": 0}
    for step, x in enumerate(batches(STEPS), 1):
        expected = oracle.step(x.numpy(), lr=LR)
        out = training(x, x)
        training.update(out.loss)
        events = training.after_step(out, step)

        np.testing.assert_allclose(out.code.dense(sae.d_sae), expected["code"], atol=1e-9)
        assert sae.encoder.grad is not None
        assert sae.decoder.grad is not None
        assert sae.b_dec.grad is not None
        np.testing.assert_allclose(sae.encoder.grad, expected["grad_E"], atol=1e-9)
        np.testing.assert_allclose(sae.decoder.grad, expected["grad_D"], atol=1e-9)
        np.testing.assert_allclose(sae.b_dec.grad, expected["grad_b_dec"], atol=1e-9)
        assert floats(out.terms["reconstruction"]) == pytest.approx(expected["recon"], rel=1e-9)
        assert floats(out.terms["auxiliary"]) == pytest.approx(expected["aux"], rel=1e-9)
        assert sorted(tuple(m) for event in events for m in event.moves) == sorted(expected["moved"])
        if sae.config.budget == "batch" and step >= 3:
            now = oracle.least
            old = threshold or [0.0] * len(now)
            threshold = [
                a if b == np.inf else b if step == 3 else 0.9 * a + 0.1 * b
                for a, b in zip(old, now, strict=True)
            ]
        seen["dead"] += int(training.dead.sum())
        seen["aux"] += sum(expected["aux"])
        seen["moved"] += len(expected["moved"])
    assert min(seen.values()) > 0, "the run must meet dead features, the auxiliary loss and moves"

    if threshold is not None:
        assert [float(t[0]) for t in sae.thresholds()] == pytest.approx(threshold, rel=1e-9)
        assert all(bool((t == t[0]).all()) for t in sae.thresholds())
    oracle.thresholds = threshold
    x = torch.cat(list(batches(3)))
    np.testing.assert_allclose(
        sae.encode(x).dense(sae.d_sae).detach(), oracle.forward(x.numpy()).code, atol=1e-9
    )


# -- closed under parents


def test_what_is_active_in_its_own_right() -> None:
    """Without the parents that were chosen for their children's sake: the same selection without the upward step."""
    options = OPTIONS["closed, of a batch"]
    training = make_training(options)
    for x in batches(12):
        training.step(x)
    sae, x = training.sae, torch.cat(list(batches(4)))
    oracle = with_options(
        make_oracle(sae, options), pull=False, thresholds=[float(t[0]) for t in sae.thresholds()]
    )
    alone, whole = sae.encode_alone(x).dense(sae.d_sae), sae.encode(x).dense(sae.d_sae)
    np.testing.assert_allclose(alone.detach(), oracle.forward(x.numpy()).code, atol=1e-9)
    assert not (alone > whole).any()
    assert int((whole > alone).sum()) > 20
    by_layer = make_training(OPTIONS["residual"]).sae
    assert torch.equal(by_layer.encode_alone(x).ids, by_layer.encode(x).ids)


def test_a_detector_reads_what_its_layer_reads() -> None:
    options = OPTIONS["residual"]
    sae, x = make_training(options).sae, next(batches(1))
    oracle = make_oracle(sae, options)
    features = torch.tensor([20, 0, 7, 23, 13])
    h = oracle.forward(x.numpy()).h[:, features]
    np.testing.assert_allclose(sae.detect(x, features), h, atol=1e-9)


def random_forest(sizes: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    starts = np.cumsum([0, *sizes])
    layers = [
        torch.randint(-1, int(a), (n,), generator=generator) for a, n in zip(starts, sizes, strict=False)
    ]
    return torch.cat(layers)


@pytest.mark.parametrize("budget", ["token", "batch"])
def test_the_set_is_closed_and_has_its_size(budget: Any) -> None:
    x = torch.cat(list(batches(20)))
    sae = TreeSAE(replace(config({"selection": "closed", "budget": budget}), beam=10.0), D, seed=3).double()
    h, u = sae.pre_activations(torch.float64), sae.centered(sae.normalize(x)[0])
    code = sae.encode_batch(h, u).code.detach()
    below = code.active(1e-3) & (sae.parent[code.ids] >= 0)
    assert torch.equal(code.with_parent(sae.parent, 1e-3), below)
    assert int(below.sum()) > len(x)
    assert torch.equal(code.active(1e-3), code.active()), "what is selected is active"
    pre = np.where((own := (u @ sae.encoder.T).detach().numpy()) > 1e-3, own, 0)
    candidates = torch.tensor([len(closed_scores(row, sae.parent.numpy())) for row in pre])
    l0 = code.active().sum(1)
    if budget == "batch":
        assert int(l0.sum()) == min(sum(K) * len(x), int(candidates.sum()))
        assert len(l0.unique()) > 3
    else:
        assert torch.equal(l0, candidates.clamp(max=sum(K)))
        assert len(l0.unique()) > 1


def selected(h: np.ndarray, parent: torch.Tensor, sizes: tuple[int, ...], k: int) -> set[int]:
    """What the SAE selects where its encoder is the identity."""
    sae = TreeSAE(
        TreeConfig(
            sizes, (k, *[1] * (len(sizes) - 1)), normalize_activations="none", selection="closed", beam=99.0
        ),
        len(h),
    ).double()
    assert sum(sae.config.k_per_layer) == k + len(sizes) - 1
    with torch.no_grad():
        sae.encoder.copy_(torch.eye(len(h)))
        sae.parent.copy_(parent)
    code = sae.encode(torch.from_numpy(h)[None])
    return set(code.ids[code.active()].tolist())


def test_a_strong_child_brings_its_weak_parent() -> None:
    """By hand: 0 (h 1) has child 2 (h 5), 1 (h 2.5) has child 3 (h 2). Scores: 0 and 2 have 3, 1 has 2.5, 3 has 2."""
    h, parent = np.array([1.0, 2.5, 5.0, 2.0]), torch.tensor([-1, -1, 0, 1])
    assert closed_scores(h, parent.numpy()) == {0: 3.0, 1: 2.5, 2: 3.0, 3: 2.0}
    assert selected(h, parent, (2, 2), 1) == {0, 2}
    assert selected(h, parent, (2, 2), 2) == {0, 1, 2}
    # Without its child, feature 0 would come last.
    assert closed_scores(h, parent.numpy(), pull=False) == {0: 1.0, 1: 2.5, 2: 1.0, 3: 2.0}


def test_the_set_is_close_to_the_best_closed_one() -> None:
    """Against all closed sets of tiny trees: never above the best, equal to it where no child exceeds its parent."""
    generator, sizes, k = torch.Generator().manual_seed(0), (3, 3, 4), 3
    shares, greedy = [], []
    for case in range(60):
        parent = random_forest(sizes, generator)
        h = torch.rand(sum(sizes), generator=generator, dtype=torch.float64).numpy() * 2 - 0.4
        monotone = case % 3 == 0
        if monotone:
            for i, p in enumerate(parent.tolist()):
                h[i] = min(h[i], 0.9 * h[p]) if p >= 0 else h[i]
        chosen = selected(h, parent, sizes, k)
        assert all(parent[i] < 0 or int(parent[i]) in chosen for i in chosen)
        best = best_closed_set(np.maximum(h, 0), parent.numpy(), k + 2)
        found = sum(h[i] for i in chosen)
        assert found <= best + 1e-12
        if monotone:
            assert found == pytest.approx(best)
        elif best:
            shares.append(found / best)
            scores = closed_scores(np.maximum(h, 0), parent.numpy(), pull=False)
            first = sorted(scores, key=lambda i: (-scores[i], i))[: k + 2]
            greedy.append(sum(h[i] for i in first) / best)
    assert np.mean(np.array(shares) > 1 - 1e-9) > 0.6
    assert np.mean(shares) > 0.97
    assert np.mean(shares) > np.mean(greedy) + 0.01


@pytest.mark.parametrize("pull", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_agree_on_scores(dtype: torch.dtype, pull: bool) -> None:
    generator, sizes = torch.Generator().manual_seed(2), (5, 9, 12, 20)
    parent = random_forest(sizes, generator)
    h = torch.randn(40, sum(sizes), generator=generator, dtype=torch.float64).to(dtype)
    values = torch.zeros_like(h)
    for i, p in enumerate(parent.tolist()):  # candidates only
        values[:, i] = h[:, i].relu() * ((values[:, p] > 0) if p >= 0 else 1)
    order = torch.cat(
        [a + torch.randperm(n, generator=generator) for a, n in zip((0, 5, 14, 26), sizes, strict=True)]
    )
    values, ids = values[:, order], torch.where(values[:, order] > 0, order.expand(40, -1), 0)
    expected = torch.zeros_like(values, dtype=torch.float64)
    for t in range(40):
        dense = torch.zeros(sum(sizes), dtype=torch.float64)
        dense[order] = values[t].double()
        scores = closed_scores(dense.numpy(), parent.numpy(), pull=pull)
        expected[t] = torch.tensor([scores.get(int(i), 0.0) for i in order])
    found = [m.closed_scores(values, ids, parent, 3, pull=pull) for m in (plain, compiled)]
    assert torch.equal(*found)
    torch.testing.assert_close(found[0].double(), expected)


def test_without_kernels_the_code_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = TreeSAE(config({"selection": "closed"}), D, seed=3).double(), torch.cat(list(batches(4)))
    code = sae.encode(x).dense(sae.d_sae)
    monkeypatch.setenv("SAEFOREST_KERNELS", "plain")
    torch.testing.assert_close(sae.encode(x).dense(sae.d_sae), code)


def test_equal_scores_keep_the_set_closed() -> None:
    """Where a parent and its children have the same score at the end of the budget, the parent comes first, and then
    the stronger child."""
    parent = torch.tensor([-1, 0, 0, 0])
    h = np.array([1.0, 5.0, 7.0, 6.0])  # all have score 4
    assert selected(h, parent, (1, 3), 1) == {0, 2}
    everything = np.array([2.0, 2.0, 2.0, 2.0])
    assert selected(everything, parent, (1, 3), 1) == {0, 1}


# -- budgets of a batch, files, and what is refused


@pytest.mark.parametrize("name", [name for name in OPTIONS if "batch" in name])
def test_a_token_is_encoded_alone(name: str) -> None:
    training = make_training(OPTIONS[name])
    for x in batches(12):
        training.step(x)
    sae, x = training.finish(), torch.cat(list(batches(4)))
    whole = sae.encode(x).dense(sae.d_sae)
    assert 3 < float((whole > 0).double().sum(1).mean()) < 12
    alone = torch.cat([sae.encode(row[None]).dense(sae.d_sae) for row in x])
    torch.testing.assert_close(alone, whole)


@pytest.mark.parametrize("name", ["closed, of a batch", "layers of a batch", "closed"])
def test_an_untrained_sae_has_thresholds_of_its_first_batch(name: str) -> None:
    """As a null beside the trained one, it must not have every candidate active."""
    x, training = torch.cat(list(batches(10))), make_training(OPTIONS[name])
    sae = training.untrained(x, x)
    selected = int(training(x, x).code.active().sum())
    # A feature must exceed its threshold, the smallest value that the batch selected.
    assert 0 <= selected - int(sae.encode(x).active().sum()) <= len(K)


def test_a_crowded_token_gets_all_that_its_threshold_admits() -> None:
    sae = TreeSAE(TreeConfig((2, 60), (2, 1), normalize_activations="none", budget="batch"), 62).double()
    with torch.no_grad():
        sae.encoder.copy_(torch.eye(62))
        sae.parent[2:] = 0
        assert sae.threshold is not None
        sae.threshold[2:] = 0.5
    x = torch.linspace(0.01, 1, 62, dtype=torch.float64)[None]
    assert int(sae.encode(x).active().sum()) == 2 + int((x[:, 2:] > 0.5).sum())


@pytest.mark.parametrize("name", OPTIONS)
def test_it_comes_back_from_its_folder(name: str, tmp_path: Path) -> None:
    settings = replace(config(OPTIONS[name]), normalize_activations=0.7)
    training = TreeTraining(
        TreeSAE(settings, D, seed=1), Setup(RunLength(12, BATCH), OptimConfig(lr=LR, batch_size=BATCH))
    )
    for x in batches(12):
        training.step(x.float())
    x = torch.cat(list(batches(2))).float()
    with torch.no_grad():
        training.sae.decoder.copy_(F.normalize(training.sae.decoder))
        before = training.sae(x)
        sae = training.finish()  # which folds the factor into the weights and thresholds
        torch.testing.assert_close(sae(x), before)
    save_sae(sae, tmp_path / "sae")
    again = load_sae(tmp_path / "sae")
    assert again.tensors().keys() == sae.tensors().keys()
    with torch.no_grad():
        assert torch.equal(again(x), sae(x))
        assert torch.equal(again.encode(x).ids, sae.encode(x).ids)


@pytest.mark.parametrize("name", ["closed, of a batch, a beam", "residual, of a batch"])
def test_a_resumed_training_has_the_same_bits(name: str) -> None:
    straight, first, second = (make_training(OPTIONS[name]) for _ in range(3))
    xs = list(batches(10))
    for x in xs:
        straight.step(x)
    for x in xs[:6]:
        first.step(x)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    for x in xs[6:]:
        second.step(x)
    a, b = straight.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_bad_configuration() -> None:
    for options, words in (
        ({"reads": "residual", "selection": "closed"}, "sae.reads"),
        ({"beam": 0.5}, "sae.beam"),
    ):
        with pytest.raises(InputError, match=words) as error:
            config(options)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"sae\.reads"):
        TreeSAE(replace(config({"reads": "residual"}), normalize_target=1.0), D, d_out=D)
