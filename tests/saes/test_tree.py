from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from oracles.tree import TreeOptions, TreeOracle
from sae_cases import floats
from saeforest import InputError, SparseCode
from saeforest.optim import OptimConfig, learning_rate
from saeforest.saes import AllocationConfig, RunLength, Setup, TreeAuxConfig, TreeConfig, TreeSAE
from saeforest.saes.tree_training import TreeTraining

SIZES, K, D, LR = (6, 8, 10), (2, 2, 2), 12, 0.02


@dataclass
class Case:
    """One set of switches, for the SAE and for the oracle."""

    aux: TreeAuxConfig
    capacity: str = "per_batch"
    growth: str = "double"
    min_root_share: float = 0.0
    normalize: str | float = "layer_norm"
    eligibility: str = "window"
    eligible_batches: float = 3
    count: str = "all"
    project: bool = True


CASES = {
    "reference": Case(TreeAuxConfig(layers=(0,), coefficient=1 / 32, k=3)),
    "all layers, detached": Case(
        TreeAuxConfig(layers=(0, 1, 2), coefficient=0.1, k=3, detach=True, bias=False, rescale=True)
    ),
    "per instance, additive": Case(
        TreeAuxConfig(layers=(1, 2), coefficient=0.2, k=2, bias=False), capacity="per_instance", growth="add"
    ),
    "root share, raw input": Case(
        TreeAuxConfig(layers=(0, 1, 2), coefficient=0.1, k=2, rescale=True),
        min_root_share=0.3,
        normalize="none",
    ),
    "eligible by rate": Case(
        TreeAuxConfig(layers=(0,), coefficient=1 / 32, k=3), eligibility="rate", eligible_batches=0.5
    ),
    "living children count": Case(TreeAuxConfig(layers=(0,), coefficient=1 / 32, k=3), count="living"),
    "living children, root share": Case(
        TreeAuxConfig(layers=(0, 1, 2), coefficient=0.1, k=2, detach=True),
        min_root_share=0.3,
        capacity="per_instance",
        count="living",
        eligibility="rate",
        eligible_batches=0.3,
    ),
    "a weight for each layer, scaled input": Case(
        TreeAuxConfig(layers=(0, 1, 2), coefficient=(0.3, 0.0, 0.05), k=3, rescale=True), normalize=1.7
    ),
    "weights of some layers": Case(TreeAuxConfig(layers=(2, 1), coefficient=(0.3, 0.05), k=2, detach=True)),
    "all layers by default": Case(
        TreeAuxConfig(layers=None, coefficient=(0.3, 0.1, 0.05), k=2), normalize=0.2
    ),
    "no projection": Case(TreeAuxConfig(layers=(0,), coefficient=1 / 32, k=3), project=False),
}


def aux_weights(aux: TreeAuxConfig) -> dict[int, float]:
    layers = range(len(SIZES)) if aux.layers is None else aux.layers
    weights = aux.coefficient if isinstance(aux.coefficient, tuple) else [aux.coefficient] * len(layers)
    return {layer: weight for layer, weight in zip(layers, weights, strict=True) if weight}


def make_training(case: Case, batch: int, n_steps: int) -> TreeTraining:
    """In float64."""
    config = TreeConfig(
        layer_sizes=SIZES,
        k_per_layer=K,
        normalize_activations=case.normalize,  # pyright: ignore[reportArgumentType]
        aux=case.aux,
        allocation=AllocationConfig(
            first=4,
            growth=case.growth,  # pyright: ignore[reportArgumentType]
            cap=8,
            root_reset_at=0.8,
            capacity=case.capacity,  # pyright: ignore[reportArgumentType]
            dead_after_tokens=3 * batch,
            eligibility=case.eligibility,  # pyright: ignore[reportArgumentType]
            eligible_within_tokens=int(case.eligible_batches * batch),
            count=case.count,  # pyright: ignore[reportArgumentType]
            min_root_share=case.min_root_share,
        ),
    )
    return training(config, batch, n_steps, project=case.project)


def training(config: TreeConfig, batch: int, n_steps: int, *, project: bool = True) -> TreeTraining:
    optim = OptimConfig(lr=LR, batch_size=batch, project_gradient=project)
    sae = TreeSAE(config, D, seed=1).to(torch.float64)
    return TreeTraining(sae, Setup(RunLength(n_steps, batch), optim, torch.float64))


def make_oracle(sae: TreeSAE, case: Case, batch: int, n_steps: int) -> TreeOracle:
    options = TreeOptions(
        normalize="token" if case.normalize == "layer_norm" else case.normalize,
        aux_coefs=aux_weights(case.aux),
        k_aux=case.aux.k,
        aux_bias=case.aux.bias,
        aux_detach=case.aux.detach,
        aux_rescale=case.aux.rescale,
        dead_steps=3,
        eligibility=case.eligibility,
        eligible_steps=3,
        eligible_tokens=int(case.eligible_batches * batch),
        capacity_rule=case.capacity,
        count=case.count,
        project=case.project,
        min_root={i: int(np.ceil(case.min_root_share * size)) for i, size in enumerate(SIZES)},
        realloc_first=4,
        realloc_growth=case.growth,
        realloc_cap=8,
        root_reset_step=int(0.8 * n_steps),
    )
    encoder, decoder, b_dec = (w.detach().numpy().copy() for w in (sae.encoder, sae.decoder, sae.b_dec))
    return TreeOracle(encoder, decoder, b_dec, sae.parent.numpy().copy(), list(SIZES), list(K), options)


def batches(batch: int, n_steps: int) -> Iterator[torch.Tensor]:
    """Non-negative sums of five directions, and noise."""
    data = torch.Generator().manual_seed(5)
    directions = torch.randn(5, D, generator=data, dtype=torch.float64)
    for _ in range(n_steps):
        x = torch.randn(batch, 5, generator=data, dtype=torch.float64).relu() @ directions
        yield x + 0.1 * torch.randn(batch, D, generator=data, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_training_equals_the_oracle(name: str) -> None:
    """30 steps in float64 in which features die, the auxiliary loss acts, children move and the root reset comes."""
    case, batch, n_steps = CASES[name], 16, 30
    training = make_training(case, batch, n_steps)
    sae = training.sae
    oracle = make_oracle(sae, case, batch, n_steps)
    seen = {"dead": 0, "aux": 0.0, "reallocation": 0, "root_reset": 0}
    for step, x in enumerate(batches(batch, n_steps), 1):
        expected = oracle.step(x.numpy(), lr=LR)

        out = training(x, x)
        training.update(out.loss)
        assert sae.encoder.grad is not None
        assert sae.decoder.grad is not None
        np.testing.assert_allclose(sae.encoder.grad, expected["grad_E"], atol=1e-9)
        np.testing.assert_allclose(sae.decoder.grad, expected["grad_D"], atol=1e-9)
        events = training.after_step(out, step)

        loss = float(out.loss.detach())
        assert loss == pytest.approx(expected["loss"], rel=1e-9)
        assert floats(out.terms["reconstruction"]) == pytest.approx(expected["recon"], rel=1e-9)
        aux = [expected["aux"][layer] for layer in sorted(aux_weights(case.aux))]
        logged = [t for t in floats(out.terms["auxiliary"]) if t is not None]
        assert logged == pytest.approx(aux, rel=1e-9)
        np.testing.assert_allclose(out.code.dense(sae.d_sae), expected["code"], atol=1e-9)
        moves = [tuple(m) for event in events for m in event.moves]
        assert moves == sorted(expected["moved"])
        assert sae.parent.tolist() == oracle.parent.tolist()
        assert training.steps_since_fired.tolist() == oracle.steps_since_fired.tolist()
        for start, layer in ((6, 1), (14, 2)):
            assert (
                training.allocator.eligible(start, training.steps_since_fired).tolist()
                == oracle.eligible_parents(layer)[:-1].tolist()
            )
        for layer, capacity in oracle.capacity.items():
            np.testing.assert_allclose(
                training.allocator.capacity[layer, : len(capacity)], capacity, rtol=1e-9
            )
        seen["dead"] += int(training.dead.sum())
        seen["aux"] += sum(aux)
        for event in events:
            seen[event.log["event"]] += event.log["moved"]
    for name, weights in {"E": sae.encoder, "D": sae.decoder, "b_dec": sae.b_dec}.items():
        np.testing.assert_allclose(weights.detach(), getattr(oracle, name), atol=1e-9)
    assert seen["dead"] > 0, "the run must meet dead features"
    assert seen["aux"] > 0, "the run must meet the auxiliary loss"
    assert seen["reallocation"] > 0, "the run must move children"
    assert seen["root_reset"] > 0, "the run must reset dead children to the root"


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        ("eligible by rate", {"eligibility": "window"}),
        ("living children count", {"count": "all"}),
        ("living children, root share", {"count": "all"}),
        ("living children, root share", {"eligibility": "window"}),
    ],
)
def test_the_comparison_meets_its_switches(name: str, switch: dict[str, str]) -> None:
    """With the other reading, the same run would end with another forest."""
    case, batch, n_steps = CASES[name], 16, 30
    sae = make_training(case, batch, n_steps).sae
    oracles = [make_oracle(sae, c, batch, n_steps) for c in (case, replace(case, **switch))]
    moved: list[list[object]] = [[], []]
    for x in batches(batch, 20):
        for oracle, moves in zip(oracles, moved, strict=True):
            moves.append(oracle.step(x.numpy(), lr=0.02)["moved"])
    assert moved[0] != moved[1]


def test_the_rate_of_firing() -> None:
    """Over steps of different sizes: each token counts by how far back it is, whatever step it was in."""
    case = CASES["eligible by rate"]
    training = make_training(case, 16, 30)
    oracle = make_oracle(training.sae, case, 16, 30)
    data = torch.Generator().manual_seed(6)
    for batch in (16, 3, 40, 200, 7):
        x = torch.randn(batch, D, generator=data, dtype=torch.float64)
        training.after_step(training(x, x), 1)
        oracle.update_counters(oracle.forward(x.numpy()).code)
        rates = [oracle.firing_rate(i) for i in range(training.sae.d_sae)]
        allocator = training.allocator
        np.testing.assert_allclose(allocator.rate / allocator.rate_weight, rates, rtol=1e-12)
    assert len({round(rate, 6) for rate in rates}) > 5


def test_gate_comes_before_topk() -> None:
    """docs/spec/test-vectors.md#gate: TopK before the gate would choose child 0 and then silence it."""
    sae = TreeSAE(TreeConfig((2, 2), (1, 1), normalize_activations="none"), 4)
    with torch.no_grad():
        sae.encoder.copy_(torch.eye(4))
        sae.parent.copy_(torch.tensor([-1, -1, 1, 0]))
    code = sae.encode(torch.tensor([[1.0, -1.0, 5.0, 2.0]]))
    assert code.dense(4).tolist() == [[1.0, 0.0, 0.0, 2.0]]


def test_layer_falls_short_of_k_when_few_parents_are_active() -> None:
    sae = TreeSAE(TreeConfig((2, 2), (1, 2), normalize_activations="none"), 4)
    with torch.no_grad():
        sae.encoder.copy_(torch.eye(4))
        sae.parent.copy_(torch.tensor([-1, -1, 1, 1]))
    code = sae.encode(torch.tensor([[1.0, -1.0, 5.0, 2.0]]))
    assert code.dense(4).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert code.ids[~code.active()].unique().tolist() == [0]


def test_a_parent_at_the_threshold_is_not_active() -> None:
    config = TreeConfig((1, 1), (1, 1), normalize_activations="none", activation_threshold=0.5)
    sae = TreeSAE(config, 2)
    with torch.no_grad():
        sae.encoder.copy_(torch.eye(2))
        sae.parent.copy_(torch.tensor([-1, 0]))
    assert sae.encode(torch.tensor([[0.5, 1.0], [0.51, 1.0]])).dense(2)[:, 1].tolist() == [0.0, 1.0]


@pytest.fixture
def trained() -> tuple[TreeSAE, torch.Tensor]:
    x = torch.randn(64, D, generator=torch.Generator().manual_seed(0)) + 1
    return TreeSAE(TreeConfig(SIZES, K), D, seed=3), x


def test_children_fire_only_under_their_parents(trained: tuple[TreeSAE, torch.Tensor]) -> None:
    sae, x = trained
    active = sae.encode(x).dense(sae.d_sae) > sae.config.activation_threshold
    child = (sae.parent >= 0).nonzero().flatten()
    assert active[:, child].any()
    assert not (active[:, child] & ~active[:, sae.parent[child]]).any()


def test_only_training_changes_the_counters(trained: tuple[TreeSAE, torch.Tensor]) -> None:
    sae, x = trained
    training = TreeTraining(sae, Setup(RunLength(10, len(x))))
    sae(x)
    training(x, x)
    assert training.steps_since_fired.sum() == 0
    training.step(x)
    assert training.steps_since_fired.sum() > 0


def test_any_leading_shape(trained: tuple[TreeSAE, torch.Tensor]) -> None:
    sae, x = trained
    flat, cube = sae.encode(x), sae.encode(x.reshape(4, 16, D))
    assert isinstance(cube, SparseCode)
    assert cube.values.shape == (4, 16, sum(K))
    assert torch.equal(cube.reshape(64).values, flat.values)
    assert torch.equal(sae(x.reshape(4, 16, D)).reshape(64, D), sae(x))


def test_slices_give_the_same_code(
    trained: tuple[TreeSAE, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, x = trained
    whole = sae.encode(x)
    monkeypatch.setattr("saeforest.saes.tree._ROWS", 5)
    parts = sae.encode(x)
    assert torch.equal(whole.ids, parts.ids)
    torch.testing.assert_close(whole.values, parts.values)


def test_reconstruction_is_in_the_space_of_x(trained: tuple[TreeSAE, torch.Tensor]) -> None:
    """Standardization makes the SAE blind to a token's mean and scale: x_hat follows them."""
    sae, x = trained
    torch.testing.assert_close(sae(3 * x + 7), 3 * sae(x) + 7, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="width"):
        sae.encode(x[:, 1:])


def test_dataset_scale_and_none() -> None:
    x = torch.randn(8, D, generator=torch.Generator().manual_seed(0))
    scaled = TreeSAE(TreeConfig(SIZES, K, normalize_activations=2.0), D)
    plain = TreeSAE(TreeConfig(SIZES, K, normalize_activations="none"), D)
    torch.testing.assert_close(scaled(x), plain(2 * x) / 2)


def test_initial_forest() -> None:
    config = TreeConfig((100, 4000), (1, 1), allocation=AllocationConfig(min_root_share=0.25))
    forest = TreeSAE(config, D, seed=0).forest
    assert forest.parent[:1100].eq(-1).all(), "layer 0 and the root's share"
    counts = torch.bincount(forest.parent[1100:] + 1, minlength=101).double()
    # Uniform over 100 features and the root: 3,000 draws over 101 slots, chi-squared well under its 1e-6 quantile.
    assert ((counts - 3000 / 101) ** 2 / (3000 / 101)).sum() < 190


def test_paper_schedule() -> None:
    """10M tokens are 1,953 steps of 5,120, 50,000 tokens 9; the root reset comes at step 50,000 of 97,657."""
    from saeforest.presets import PRESETS

    config = PRESETS["tree-4layer"]
    assert isinstance(config.sae, TreeConfig)
    assert schedule(config.sae, RunLength(97_657, config.optim.batch_size)) == (
        1_953,
        9,
        50_000,
        [3_000, 9_000, 19_000, 29_000, 39_000, 49_000],
    )


def schedule(config: TreeConfig, run: RunLength) -> tuple[int, int, int, list[int]]:
    training = TreeTraining(TreeSAE(config, 8), Setup(run))
    allocator = training.allocator
    steps = sorted(allocator.reallocations)
    return training.dead_steps, allocator.eligible_steps, allocator.root_reset, steps


def test_schedule_scales_with_the_run() -> None:
    dead, _, reset, steps = schedule(TreeConfig(SIZES, K), RunLength(97_657, 5120))
    assert (dead, reset, steps) == (1_953, 50_000, [3_000, 9_000, 19_000, 29_000, 39_000, 49_000])
    dead, _, reset, steps = schedule(TreeConfig(SIZES, K), RunLength(1_000, 2048))
    assert (dead, reset, steps[0]) == (48, 512, 31)


def test_learning_rate() -> None:
    config = OptimConfig(lr=2.0, warmup=0.1, decay="linear", decay_from=0.8)
    rates = [learning_rate(config, step, 100) for step in (1, 10, 50, 80, 90, 100)]
    assert rates == pytest.approx([0.2, 2.0, 2.0, 2.0, 1.0, 0.0])
    cosine = OptimConfig(lr=2.0, decay="cosine", decay_from=0.0)
    assert learning_rate(cosine, 50, 100) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TreeConfig((4, 4), (2,)), "one k for each layer"),
        (lambda: TreeConfig((4, 4), (2, 5)), "expected 1 to 4"),
        (lambda: TreeConfig((4, 4), (2, 0)), "expected 1 to 4"),
        (lambda: TreeConfig((), ()), "at least one layer"),
        (lambda: TreeConfig((4,), (1,), aux=TreeAuxConfig(layers=(1,))), "names layer 1"),
        (lambda: TreeAuxConfig(k=0), "1 or more"),
        (lambda: AllocationConfig(root_reset_at=1.5), "fraction from 0 to 1"),
        (lambda: AllocationConfig(dead_after_tokens=0), "1 or more"),
    ],
)
def test_bad_configuration(build: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("parents", ["any", "previous"])
def test_which_layers_parents_come_from(parents: str) -> None:
    """Of the last layer's features: from the first moment and through all reallocations."""
    case = CASES["all layers, detached"]
    config = make_training(case, 16, 40).sae.config
    allocation = replace(config.allocation, parents=parents)  # pyright: ignore[reportArgumentType]
    run = training(replace(config, allocation=allocation), 16, 40)
    sae = run.sae
    generator = torch.Generator().manual_seed(0)
    start, moved, seen = SIZES[0] + SIZES[1], 0, set[int]()
    for step in range(1, 41):
        seen |= set(sae.parent[start:].tolist())
        x = torch.randn(16, D, generator=generator, dtype=torch.float64)
        out = run(x, x)
        run.update(out.loss)
        moved += sum(len(event.moves) for event in run.after_step(out, step))
    seen |= set(sae.parent[start:].tolist())
    assert moved > 0
    assert -1 in seen
    assert any(SIZES[0] <= p < start for p in seen)
    assert any(0 <= p < SIZES[0] for p in seen) == (parents == "any")
