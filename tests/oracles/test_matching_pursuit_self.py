"""The matching pursuit oracle checked against hand-worked cases, identities and finite differences."""

import numpy as np
import pytest

from .matching_pursuit import MatchingPursuitOptions, MatchingPursuitOracle

RAW = MatchingPursuitOptions(normalize="none")


def build(seed: int, k: int, bias: bool = False, **settings) -> tuple[MatchingPursuitOracle, np.ndarray]:
    """Nine unit features in width four, and six tokens."""
    rng = np.random.default_rng(seed)
    D = rng.normal(size=(9, 4))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    b_dec = 0.3 * rng.normal(size=4) if bias else None
    oracle = MatchingPursuitOracle(D, k, MatchingPursuitOptions(**settings), b_dec)
    return oracle, 3.0 * rng.normal(size=(6, 4)) + 1.0


def fast_loss(oracle: MatchingPursuitOracle, x: np.ndarray) -> float:
    """The same loss, all tokens at once, with products kept in place of residuals."""
    options = oracle.options
    mean, std = np.zeros((len(x), 1)), np.ones((len(x), 1))
    if options.normalize == "token":
        mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True) + options.std_eps
    elif not isinstance(options.normalize, str):
        std = std / options.normalize
    target = (x - mean) / std - oracle.b_dec
    gram = oracle.D @ oracle.D.T
    z = np.zeros((len(x), len(gram)))
    going = np.ones(len(x), dtype=bool)
    rows = np.arange(len(x))
    for _ in range(oracle.k):
        products = target @ oracle.D.T - z @ gram
        j = products.argmax(1)
        a = np.maximum(products[rows, j], 0.0) * going
        new = z[rows, j] == 0.0
        z[rows, j] += a
        left = np.linalg.norm(target - z @ oracle.D, axis=1)
        going &= (a > 0.0) & new & (left >= options.tol)
    xhat = std * (z @ oracle.D + oracle.b_dec) + mean
    return float(((xhat - x) ** 2).mean() / (x.var(ddof=1) + options.var_eps))


@pytest.mark.parametrize("normalize", ["token", "none", 0.4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("k", "tol"), [(1, 5e-3), (2, 5e-3), (4, 5e-3), (12, 5e-3), (12, 0.5)])
@pytest.mark.parametrize("unit", [True, False])
def test_gradients(normalize, bias, k, tol, unit):
    stops = set()
    for seed in range(4):
        oracle, x = build(seed, k, bias, normalize=normalize, tol=tol)
        if not unit:  # after a step the rows are a little off
            oracle.D *= np.linspace(0.9, 1.1, 9)[:, None]
        forward = oracle.forward(x)
        stops |= {pursuit.stop for pursuit in forward.pursuits}
        ours = oracle.losses_and_gradients(forward)
        assert ours["loss"] == ours["recon"] == pytest.approx(fast_loss(oracle, x), rel=1e-12)
        expected = np.zeros_like(oracle.D)
        for place in np.ndindex(oracle.D.shape):
            kept = oracle.D[place]
            oracle.D[place] = kept + 1e-6
            above = fast_loss(oracle, x)
            oracle.D[place] = kept - 1e-6
            below = fast_loss(oracle, x)
            oracle.D[place] = kept
            expected[place] = (above - below) / 2e-6
        # at unit norm the gradient has a kink: a shorter row is taken again where nothing else is positive
        np.testing.assert_allclose(ours["grad_D"], expected, rtol=1e-6, atol=1e-6 if unit else 2e-8)
        assert expected.any()
    if k == 1:
        assert stops <= {"k", "tol"}
    if k == 12:
        assert "repeat" in stops
    if tol == 0.5 and k == 12:
        assert "tol" in stops


def test_gradient_of_one_iteration_by_hand():
    # x = (2, 0), d = (cos, sin): a = 2 cos, x_hat = a d, squares sum to 4 sin^2
    angle = 0.3
    D = np.array([[np.cos(angle), np.sin(angle)]])
    options = MatchingPursuitOptions(normalize="none", var_eps=0.0)  # x has variance 2
    oracle = MatchingPursuitOracle(D, 1, options)
    result = oracle.losses_and_gradients(oracle.forward([[2.0, 0.0]]))
    assert result["loss"] == pytest.approx(np.sin(angle) ** 2, rel=1e-14)
    along = np.array([-np.sin(angle), np.cos(angle)])
    assert result["grad_D"][0] @ along == pytest.approx(2 * np.sin(angle) * np.cos(angle), rel=1e-14)


def test_two_orthogonal_atoms():
    # specification, vector 16
    oracle = MatchingPursuitOracle(np.eye(2), 5, RAW)
    pursuit = oracle.pursue([3.0, 4.0])
    assert pursuit.features == [1, 0]
    assert pursuit.coefficients == [4.0, 3.0]
    assert pursuit.code.tolist() == [3.0, 4.0]
    assert pursuit.residual.tolist() == [0.0, 0.0]
    assert pursuit.stop == "tol"


def test_nothing_positive_is_left():
    # specification, vector 16: b takes 1.4, then b . r = 0 and a . r = -0.12
    oracle = MatchingPursuitOracle([[1.0, 0.0], [0.8, 0.6]], 5, RAW)
    pursuit = oracle.pursue([1.0, 1.0])
    assert pursuit.features[0] == 1
    np.testing.assert_allclose(pursuit.code, [0.0, 1.4], rtol=1e-14)
    np.testing.assert_allclose(pursuit.residual, [-0.12, 0.16], rtol=1e-14)
    # b . r may be a rounding error above zero, which the rule of the repeated feature ends
    assert pursuit.stop == "empty" or (pursuit.stop == "repeat" and pursuit.coefficients[1] < 1e-15)


def test_empty_from_the_start():
    oracle = MatchingPursuitOracle(np.eye(2), 5, RAW)
    pursuit = oracle.pursue([-1.0, -2.0])
    assert (pursuit.features, pursuit.stop) == ([], "empty")
    assert oracle.encode([[-1.0, -2.0]]).tolist() == [[0.0, 0.0]]
    assert oracle.reconstruct([[-1.0, -2.0]]).tolist() == [[0.0, 0.0]]
    result = oracle.step([[-1.0, -2.0]], 1e-2)
    assert not result["grad_D"].any()
    assert oracle.D.tolist() == np.eye(2).tolist()


def test_repeated_feature_is_added_before_the_stop():
    # (1, .5): the first takes 1, the second .4 and leaves (.24, .18), the first again .24
    oracle = MatchingPursuitOracle([[1.0, 0.0], [-0.6, 0.8]], 9, RAW)
    pursuit = oracle.pursue([1.0, 0.5])
    assert pursuit.features == [0, 1, 0]
    np.testing.assert_allclose(pursuit.coefficients, [1.0, 0.4, 0.24], rtol=1e-14)
    np.testing.assert_allclose(pursuit.code, [1.24, 0.4], rtol=1e-14)
    np.testing.assert_allclose(pursuit.residual, [0.0, 0.18], atol=1e-15)
    assert pursuit.stop == "repeat"
    oracle.k = 2
    assert oracle.pursue([1.0, 0.5]).stop == "k"


def test_tolerance_is_of_the_normalised_residual():
    # (3, 4) scaled by 0.1 leaves (.3, 0) after one iteration, less than 0.31
    options = MatchingPursuitOptions(normalize=0.1, tol=0.31)
    oracle = MatchingPursuitOracle(np.eye(2), 5, options)
    np.testing.assert_allclose(oracle.encode([[3.0, 4.0]]), [[0.0, 0.4]])
    np.testing.assert_allclose(oracle.reconstruct([[3.0, 4.0]]), [[0.0, 4.0]])
    options.tol = 0.29
    np.testing.assert_allclose(oracle.reconstruct([[3.0, 4.0]]), [[3.0, 4.0]])


def test_bias_is_taken_off_and_added_back():
    oracle = MatchingPursuitOracle(np.eye(2), 5, RAW, b_dec=[2.0, 5.0])
    assert oracle.encode([[3.0, 4.0]]).tolist() == [[1.0, 0.0]]
    assert oracle.reconstruct([[3.0, 4.0]]).tolist() == [[3.0, 5.0]]
    oracle.step([[3.0, 4.0]], 1e-2)
    assert oracle.b_dec.tolist() == [2.0, 5.0]


def test_identities():
    for seed in range(5):
        oracle, x = build(seed, 12, bias=True)
        forward = oracle.forward(x)
        for t, pursuit in enumerate(forward.pursuits):
            residuals = [*pursuit.before, pursuit.residual]
            for s, (j, a) in enumerate(zip(pursuit.features, pursuit.coefficients, strict=True)):
                energy, after = (residuals[s] ** 2).sum(), (residuals[s + 1] ** 2).sum()
                assert after == pytest.approx(energy - a**2, rel=1e-9, abs=1e-12)
                assert abs(residuals[s + 1] @ oracle.D[j]) < 1e-12
            assert sum(pursuit.coefficients) == pytest.approx(pursuit.code.sum(), rel=1e-14)
            # what is not reconstructed is the last residual
            missing = (x[t] - forward.xhat[t]) / forward.std[t]
            np.testing.assert_allclose(missing, pursuit.residual, atol=1e-13)
            assert len(set(pursuit.features[:-1])) == max(len(pursuit.features) - 1, 0)


def test_tokens_do_not_touch_each_other():
    oracle, x = build(7, 12)
    together = oracle.encode(x)
    for t in range(len(x)):
        assert together[t].tolist() == oracle.encode(x[t : t + 1])[0].tolist()


def test_step():
    oracle, x = build(3, 3, dead_steps=2)
    oracle.D *= 1.01
    unit = oracle.D / np.linalg.norm(oracle.D, axis=1, keepdims=True)
    result = oracle.step(x, 1e-3)
    expected = result["grad_D"] - (result["grad_D"] * unit).sum(1, keepdims=True) * unit
    np.testing.assert_allclose(oracle.adam["D"].mean, 0.1 * expected, rtol=1e-9, atol=1e-15)
    used = result["grad_D"].any(1)
    assert used.any()
    assert not used.all()
    first = unit - 1e-3 * expected / (np.abs(expected) + 6.25e-10)  # the first Adam step
    np.testing.assert_allclose(oracle.D, first, rtol=1e-12)
    assert oracle.steps_since_fired.tolist() == [1] * 9
    fired = (oracle.step(x, 1e-3)["code"] > 1e-3).any(0)
    assert not fired.all()
    assert oracle.dead().tolist() == (~fired).tolist()


def test_training_lowers_the_loss():
    oracle, _ = build(3, 2)
    x = np.random.default_rng(5).normal(size=(20, 4))
    losses = [oracle.step(x, 1e-2)["loss"] for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_refusals():
    with pytest.raises(ValueError, match="bias"):
        MatchingPursuitOracle(np.eye(2), 1, b_dec=[1.0])
