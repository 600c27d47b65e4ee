"""The flat oracles checked against hand-worked cases, a second forward pass and finite differences."""

import itertools

import numpy as np
import pytest

from .flat import BatchTopKOracle, FlatOptions, FlatOracle, MatryoshkaOracle, TopKOracle

NAMES = ("E", "D", "b_dec", "b_enc")
GROUPS = [2, 1, 4]
MODELS = ["topk", "batchtopk"] + [
    f"{selection}-{weights}"
    for selection in ("token", "batch")
    for weights in ("sum", "mean", "mean_with_bias", "numbers")
]
AUX = [
    {"aux_bias": bias, "aux_detach": detach, "aux_rescale": rescale}
    for bias, detach, rescale in itertools.product([False, True], repeat=3)
]


def build(model: str, seed: int, **settings) -> tuple[FlatOracle, np.ndarray]:
    """Seven features, three of them dead, in width four, and five tokens."""
    rng = np.random.default_rng(seed)
    n_features, d, n = 7, 4, 5
    D = rng.normal(size=(n_features, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    E = D + 0.3 * rng.normal(size=(n_features, d))
    b_dec = 0.2 * rng.normal(size=d)
    options = FlatOptions(**{"aux_coef": 0.5, "k_aux": 2, "dead_steps": 6, **settings})
    b_enc = 0.3 * rng.normal(size=n_features) if options.encoder_bias else None
    if model == "topk":
        oracle = TopKOracle(E, D, b_dec, 2, options, b_enc)
    elif model == "batchtopk":
        oracle = BatchTopKOracle(E, D, b_dec, 2, options, b_enc)
    else:
        selection, name = model.split("-")
        weights = [0.5, 2.0, 0.75] if name == "numbers" else name
        oracle = MatryoshkaOracle(E, D, b_dec, 2, GROUPS, weights, selection, options, b_enc)
    oracle.steps_since_fired[:] = [3, 8, 0, 6, 5, 9, 1]
    return oracle, 3.0 * rng.normal(size=(n, d)) + 1.0


def fast_loss(oracle: FlatOracle, model: str, x: np.ndarray, residual: np.ndarray | None = None):
    """The same loss whole batches at a time, and the residual; ``residual`` replaces that of the aux loss."""
    options = oracle.options
    mean, std = np.zeros((len(x), 1)), np.ones((len(x), 1))
    if options.normalize == "token":
        mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True) + options.std_eps
    elif not isinstance(options.normalize, str):
        std = std / options.normalize
    h = ((x - mean) / std - oracle.b_dec) @ oracle.E.T + oracle.b_enc
    per_batch = model.startswith("batch")
    scores = h.reshape(1, -1) if per_batch else h
    n_kept = 2 * len(x) if per_batch else 2
    cut = -np.sort(-scores, axis=1)[:, n_kept - 1 : n_kept]
    code = (np.maximum(scores, 0.0) * (scores >= cut)).reshape(h.shape)
    variance = x.var(ddof=1) + options.var_eps

    def decoded(prefix: int) -> np.ndarray:
        return std * (code[:, :prefix] @ oracle.D[:prefix] + oracle.b_dec) + mean

    ends = {"sum": (1.0, [2, 3, 7]), "mean": (1 / 3, [2, 3, 7]), "mean_with_bias": (0.25, [0, 2, 3, 7])}
    name = model.split("-")[-1]
    if name in ends:
        terms = [(ends[name][0], prefix) for prefix in ends[name][1]]
    elif name == "numbers":
        terms = [(0.5, 2), (2.0, 3), (0.75, 7)]
    else:
        terms = [(1.0, 7)]
    loss = sum(weight * ((decoded(prefix) - x) ** 2).mean() / variance for weight, prefix in terms)

    e = x - decoded(7)
    target = e if residual is None else residual
    dead = oracle.steps_since_fired >= options.dead_steps
    if dead.any() or options.aux_bias:
        a = np.zeros_like(h)
        if dead.any():
            candidates = np.where(dead, h, -np.inf)
            kept = min(options.k_aux, int(dead.sum()))
            cut = -np.sort(-candidates, axis=1)[:, kept - 1 : kept]
            a = np.maximum(candidates, 0.0) * (candidates >= cut)
        e_hat = a @ oracle.D + (oracle.b_dec if options.aux_bias else 0.0)
        if options.aux_rescale:
            e_hat = e_hat * std
        spread = target - target.mean(1, keepdims=True)
        loss = loss + options.aux_coef * ((e_hat - target) ** 2).mean() / (spread**2).mean()
    return float(loss), e


def slopes(oracle: FlatOracle, model: str, x: np.ndarray, name: str) -> np.ndarray:
    """Central difference of the loss in every element of a parameter."""
    _, e = fast_loss(oracle, model, x)
    residual = e if oracle.options.aux_detach else None
    value = getattr(oracle, name)
    result = np.zeros_like(value)
    for place in np.ndindex(value.shape):
        kept = value[place]
        value[place] = kept + 1e-6
        above, _ = fast_loss(oracle, model, x, residual)
        value[place] = kept - 1e-6
        below, _ = fast_loss(oracle, model, x, residual)
        value[place] = kept
        result[place] = (above - below) / 2e-6
    return result


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("normalize", ["token", "none", 0.4])
@pytest.mark.parametrize("encoder_bias", [False, True])
@pytest.mark.parametrize("aux", AUX, ids=lambda aux: "".join("ny"[value] for value in aux.values()))
def test_gradients(model, normalize, encoder_bias, aux):
    oracle, x = build(model, 0, normalize=normalize, encoder_bias=encoder_bias, **aux)
    forward = oracle.forward(x, training=True)
    assert oracle.aux_code(forward).any()
    ours = oracle.losses_and_gradients(forward)
    loss, _ = fast_loss(oracle, model, x)
    assert ours["loss"] == pytest.approx(loss, rel=1e-12)
    for name in NAMES:
        if name == "b_enc" and not encoder_bias:
            assert not ours["grad_b_enc"].any()
            continue
        expected = slopes(oracle, model, x, name)
        np.testing.assert_allclose(ours[f"grad_{name}"], expected, rtol=1e-6, atol=2e-8)
        assert expected.any()


@pytest.mark.parametrize("model", ["topk", "batchtopk", "token-mean_with_bias", "batch-numbers"])
@pytest.mark.parametrize("aux_bias", [False, True])
@pytest.mark.parametrize(("dead_steps", "k_aux"), [(100, 2), (6, 3), (6, 9), (0, 1), (0, 9)])
@pytest.mark.parametrize("seed", [1, 2])
def test_gradients_with_other_numbers_of_dead_features(model, aux_bias, dead_steps, k_aux, seed):
    settings = {"aux_bias": aux_bias, "dead_steps": dead_steps, "k_aux": k_aux, "encoder_bias": True}
    oracle, x = build(model, seed, **settings)
    ours = oracle.losses_and_gradients(oracle.forward(x, training=True))
    assert ours["loss"] == pytest.approx(fast_loss(oracle, model, x)[0], rel=1e-12)
    for name in NAMES:
        expected = slopes(oracle, model, x, name)
        np.testing.assert_allclose(ours[f"grad_{name}"], expected, rtol=1e-6, atol=2e-8)
    assert (ours["aux"] == 0.0) == (dead_steps == 100 and not aux_bias)


def test_topk_by_hand():
    # h = x E^T = [3, -1, 2] and [-1, -2, -3]; one token keeps 3 and 2, the other nothing
    E = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    D = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
    oracle = TopKOracle(E, D, [0.0, 0.0], 2, FlatOptions(normalize="none", aux_bias=False))
    x = [[3.0, -1.0], [-1.0, -2.0]]
    assert oracle.steps_since_fired.tolist() == [0, 0, 0]
    assert oracle.encode(x).tolist() == [[3.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(oracle.reconstruct(x), [[4.2, 1.6], [0.0, 0.0]])
    # squares 1.44, 6.76, 1, 4: mean 3.3; x has mean -0.25 and variance 14.75 / 3
    result = oracle.step(x, 0.0)
    assert result["loss"] == pytest.approx(3.3 / (14.75 / 3 + 1e-8), rel=1e-14)
    assert result["aux"] == 0.0
    assert oracle.steps_since_fired.tolist() == [1, 1, 1]
    oracle.encode(x)
    oracle.step(x, 0.0)
    assert oracle.steps_since_fired.tolist() == [1, 2, 1]


def test_normalisation_by_hand():
    # token (1, 3): mean 2, unbiased deviation sqrt(2); with the factor 0.5 the encoder sees (0.5, 1.5)
    x = np.array([[1.0, 3.0]])
    token = TopKOracle(np.eye(2), np.eye(2), [0.0, 0.0], 1, FlatOptions(std_eps=0.0))
    np.testing.assert_allclose(token.encode(x), [[0.0, np.sqrt(0.5)]])
    np.testing.assert_allclose(token.reconstruct(x), [[2.0, 3.0]])
    factor = TopKOracle(np.eye(2), np.eye(2), [0.1, 0.2], 1, FlatOptions(normalize=0.5))
    np.testing.assert_allclose(factor.encode(x), [[0.0, 1.3]])
    np.testing.assert_allclose(factor.reconstruct(x), [[0.2, 3.0]])
    none = TopKOracle(np.eye(2), np.eye(2), [0.1, 0.2], 1, FlatOptions(normalize="none"))
    np.testing.assert_allclose(none.reconstruct(x), [[0.1, 3.0]])


def test_auxiliary_loss_by_hand():
    # feature 0 takes 2 of (2, 1), feature 1 is dead with pre-activation 0.5: e = (0, 1), e_hat = (0, 0.5)
    options = FlatOptions(normalize="none", dead_steps=2, k_aux=1, aux_coef=3.0, aux_bias=False)
    oracle = TopKOracle([[1.0, 0.0], [0.0, 0.5]], np.eye(2), [0.0, 0.0], 1, options)
    oracle.steps_since_fired[:] = [7, 1]
    result = oracle.step([[2.0, 1.0]], 0.0)
    assert oracle.steps_since_fired.tolist() == [1, 2]  # counted before the loss: dead in this very step
    # mean (e_hat - e)^2 = 0.125; e about its mean is (-0.5, 0.5): 0.25
    assert result["aux"] == pytest.approx(0.5, rel=1e-14)
    assert result["loss"] == pytest.approx(0.5 / (0.5 + 1e-8) + 1.5, rel=1e-14)

    exact = TopKOracle(np.eye(2), np.eye(2), [0.0, 0.0], 2, FlatOptions(normalize="none"))
    assert exact.step([[2.0, 1.0]], 0.0)["aux"] == 0.0  # the residual is nothing


def test_batchtopk_selects_over_the_batch():
    options = FlatOptions(normalize="none", threshold_start=3, threshold_momentum=0.75)
    oracle = BatchTopKOracle(np.eye(3), np.eye(3), np.zeros(3), 1, options)
    x = np.array([[5.0, 4.0, 1.0], [3.0, -1.0, 2.0]])
    expected = [[5.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
    for _ in range(2):
        assert oracle.step(x, 0.0)["code"].tolist() == expected
        assert oracle.theta is None
    assert oracle.encode(x).tolist() == [[5.0, 4.0, 1.0], [3.0, 0.0, 2.0]]
    oracle.step(x, 0.0)
    assert oracle.theta == 4.0
    assert oracle.encode(x).tolist() == [[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]  # strictly above
    oracle.step(x / 4, 0.0)
    assert oracle.theta == 0.75 * 4.0 + 0.25 * 1.0
    assert oracle.encode(x).tolist() == [[5.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(oracle.reconstruct(x), [[5.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    only = np.array([[-1.0, -2.0, -3.0], [-4.0, 0.5, -6.0]])  # one positive for two places
    assert oracle.step(only, 0.0)["code"].tolist() == [[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]]
    assert oracle.theta == 0.75 * 3.25 + 0.25 * 0.5
    oracle.step(-np.abs(only), 0.0)
    assert oracle.theta == 0.75 * 3.25 + 0.25 * 0.5  # nothing positive, nothing learnt


def test_matryoshka_by_hand():
    x = np.array([[1.0, 2.0, 3.0]])
    settings = {"normalize": "none", "aux_coef": 0.0, "var_eps": 0.0}  # variance 1
    sizes = [1, 1, 1]
    terms = [14 / 3, 10 / 3, 1 / 3]  # features 1 and 2 are chosen: of 1 + 4 + 9 nothing, 4, then 13 explained

    def result(weights, selection="token"):
        oracle = MatryoshkaOracle(
            np.eye(3), np.eye(3), np.zeros(3), 2, sizes, weights, selection, FlatOptions(**settings)
        )
        return oracle.step(x, 0.0)

    for selection in ("token", "batch"):
        total = result("sum", selection)
        np.testing.assert_allclose(total["recon"], terms)
        assert total["loss"] == pytest.approx(25 / 3)
        assert total["code"].tolist() == [[0.0, 2.0, 3.0]]
    assert result("mean")["loss"] == pytest.approx(25 / 9)
    assert result("mean_with_bias")["loss"] == pytest.approx((25 + 14) / 12)
    assert result([1.0, 0.0, 10.0])["loss"] == pytest.approx(24 / 3)


def test_matryoshka_with_one_group_is_its_base():
    oracle, x = build("topk", 4, encoder_bias=True)
    arguments = (oracle.E, oracle.D, oracle.b_dec, 2)
    pairs = [
        (TopKOracle(*arguments, oracle.options, oracle.b_enc), "token"),
        (BatchTopKOracle(*arguments, oracle.options, oracle.b_enc), "batch"),
    ]
    for base, selection in pairs:
        other = MatryoshkaOracle(*arguments, [7], "mean", selection, oracle.options, oracle.b_enc)
        for _ in range(3):
            assert base.step(x, 1e-2)["loss"] == other.step(x, 1e-2)["loss"]
        for name in NAMES:
            assert getattr(base, name).tolist() == getattr(other, name).tolist()


@pytest.mark.parametrize("encoder_bias", [False, True])
def test_step(encoder_bias):
    oracle, x = build("batch-sum", 2, encoder_bias=encoder_bias)
    oracle.D *= 1.01
    unit = oracle.D / np.linalg.norm(oracle.D, axis=1, keepdims=True)
    before = {name: getattr(oracle, name).copy() for name in NAMES}
    result = oracle.step(x, 1e-3)
    expected = result["grad_D"] - (result["grad_D"] * unit).sum(1, keepdims=True) * unit
    np.testing.assert_allclose(oracle.adam["D"].mean, 0.1 * expected, rtol=1e-9, atol=1e-15)
    # the first Adam step is lr g / (|g| + eps)
    np.testing.assert_allclose(oracle.D, unit - 1e-3 * expected / (np.abs(expected) + 6.25e-10), rtol=1e-12)
    for name in ("E", "b_dec", "b_enc"):
        gradient = result[f"grad_{name}"]
        first = before[name] - 1e-3 * gradient / (np.abs(gradient) + 6.25e-10)
        np.testing.assert_allclose(getattr(oracle, name), first, rtol=1e-12)
    assert bool(oracle.b_enc.any()) == encoder_bias


@pytest.mark.parametrize("model", MODELS)
def test_training_lowers_the_loss(model):
    oracle, _ = build(model, 3, dead_steps=3, encoder_bias=True, threshold_start=1)
    x = np.random.default_rng(5).normal(size=(12, 4))
    losses = [oracle.step(x, 5e-3)["loss"] for _ in range(40)]
    assert losses[-1] < 0.9 * losses[0]
    assert (oracle.theta is not None) == model.startswith("batch")


def test_refusals():
    eye, zero = np.eye(2), np.zeros(2)
    with pytest.raises(ValueError, match="without encoder_bias"):
        TopKOracle(eye, eye, zero, 1, b_enc=[1.0, 0.0])
    with pytest.raises(ValueError, match="add up"):
        MatryoshkaOracle(eye, eye, zero, 1, [1, 2])
    with pytest.raises(ValueError, match="weights"):
        MatryoshkaOracle(eye, eye, zero, 1, [1, 1], "median")
    with pytest.raises(ValueError, match="one weight"):
        MatryoshkaOracle(eye, eye, zero, 1, [1, 1], [1.0])
    with pytest.raises(ValueError, match="normalize"):
        TopKOracle(eye, eye, zero, 1, FlatOptions(normalize="both")).encode([[1.0, 2.0]])
