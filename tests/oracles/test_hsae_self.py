"""The HSAE oracle checked against hand-worked vectors and float64 finite differences."""

import math
from typing import Any

import numpy as np
import pytest

from .hsae import HSAEOptions, HSAEOracle, heaviside_by_theta, jumprelu, jumprelu_by_theta, kernel
from .hsae_links import assign

SIZES = [3, 4, 6]
PARENT = [-1, -1, -1, 0, 0, 2, -1, 3, 4, 4, 5, -1, 6]  # feature 1 has no children
NAMES = ["E", "D", "b_enc", "theta", "B"]


def example(seed: int, sizes: list[int] = SIZES, n: int = 5, d: int = 4, **options: Any):
    """An HSAE with arbitrary weights and some tokens, z with replaced features in every level."""
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    oracle = HSAEOracle(
        E=rng.normal(size=(total, d)),
        D=rng.normal(size=(total, d)),  # not unit: the gradients must hold for any
        b_enc=0.3 * rng.normal(size=total),
        theta=0.4 * rng.random(total),
        B=0.3 * rng.normal(size=(len(sizes), d)),
        sizes=sizes,
        lam=0.1 + rng.random(len(sizes)),
        options=HSAEOptions(**options),
        parent=PARENT if sizes == SIZES else None,
    )
    z = (rng.random(total) < 0.5).astype(np.float64)
    return oracle, rng.normal(size=(n, d)), z


def tiny(options: HSAEOptions | None = None, **changes: Any) -> HSAEOracle:
    """d = 2: two features in level 0, two in level 1, children of the first; everything simple."""
    weights: dict[str, Any] = {
        "E": [[1, 0], [0, 1], [1, 0], [0, 1]],
        "D": [[1, 0], [0, 1], [1, 0], [0, 1]],
        "b_enc": [0, 0, 0, 0],
        "theta": [0.5, 0.5, 0.5, 0.5],
        "B": [[0, 0], [0, 0]],
        "sizes": [2, 2],
        "lam": [0.0, 0.0],
        "parent": [-1, -1, 0, 0],
    }
    return HSAEOracle(**{**weights, **changes}, options=options)


# ---- activation function ----------------------------------------------------------------------------------


def test_vector_15():
    assert jumprelu(0.55, 0.5) == 0.55
    assert heaviside_by_theta(0.55, 0.5, 0.2) == pytest.approx(-5)
    assert jumprelu_by_theta(0.55, 0.5, 0.2) == pytest.approx(-2.5)
    assert heaviside_by_theta(0.65, 0.5, 0.2) == 0
    assert jumprelu_by_theta(0.65, 0.5, 0.2) == 0


def test_kernel_edges():
    assert [kernel(v) for v in (-0.6, -0.5, -0.4, 0.0, 0.4, 0.5)] == [0, 0, 1, 1, 1, 0]
    assert jumprelu(0.5, 0.5) == 0.0  # strictly above
    # below the threshold the kernel contributes too
    assert heaviside_by_theta(0.45, 0.5, 0.2) == pytest.approx(-5)


def test_vector_15_in_the_model():
    # one feature: h = x. Reconstruction x = 0.55 exactly, so only the sparsity gives a gradient: -5 lambda
    oracle = HSAEOracle([[1, 0]], [[1, 0]], [0], [0.5], [[0, 0]], [1], 3.0, HSAEOptions(bandwidth=0.2))
    result = oracle.losses_and_gradients(oracle.forward([[0.55, 0.0]]))
    assert result["recon"].tolist() == [0.0]
    assert result["l0"].tolist() == [1.0]
    assert result["sparsity"].tolist() == [3.0]
    assert result["grad_theta"] == pytest.approx([-15.0])
    for name in ("E", "D", "b_enc", "B"):
        assert np.all(result[f"grad_{name}"] == 0.0), name

    # x = 0.45: inactive, error 0.45^2, dL/df = 2 (0 - 0.45) = -0.9; df/dtheta = -2.5 -> 2.25, less 15
    result = oracle.losses_and_gradients(oracle.forward([[0.45, 0.0]]))
    assert result["recon"] == pytest.approx([0.2025])
    assert result["l0"].tolist() == [0.0]
    assert result["grad_theta"] == pytest.approx([2.25 - 15.0])
    assert result["grad_E"].tolist() == [[0.0, 0.0]]
    assert result["grad_B"] == pytest.approx(np.array([[-0.9, 0.0]]))  # only through the output

    # x = 0.65: outside the kernel
    assert oracle.losses_and_gradients(oracle.forward([[0.65, 0.0]]))["grad_theta"].tolist() == [0.0]


# ---- losses -----------------------------------------------------------------------------------------------


def test_perturbation_by_hand():
    oracle = tiny(HSAEOptions(rho=0.5))
    x = [[2.0, 1.0]]
    plain = oracle.losses_and_gradients(oracle.forward(x))
    assert plain["recon"].tolist() == [0.0, 0.0]
    # constraint: 2 e0 - (2 e0 + 1 e1) = -e1
    assert plain["constraint"].tolist() == [1.0, 0.0]
    assert plain["loss"] == 0.5
    # feature 0 gives way to its children; feature 1 has none and stays, and so do those of the last level
    result = oracle.losses_and_gradients(oracle.forward(x), z=[1, 1, 1, 1])
    assert result["replaced"].tolist() == [True, False, False, False]
    assert result["u_hat"][0].tolist() == [[2.0, 2.0]]  # e1 from feature 1 and from the child
    assert result["recon"].tolist() == [1.0, 0.0]
    assert result["constraint"].tolist() == [1.0, 0.0]  # as without the perturbation
    assert result["l0"].tolist() == [2.0, 2.0]
    # child 3 (f = 1): 2 * 1 * e1 from the level above, and from the constraint 0.5 * 2 * e1
    assert result["grad_D"][3].tolist() == [0.0, 3.0]
    assert result["grad_D"][0].tolist() == [0.0, -2.0]  # replaced: the constraint only, 0.5 * 2 * 2 * -e1
    assert result["grad_D"][1].tolist() == [0.0, 2.0]
    assert result["grad_B"][0].tolist() == [0.0, 2.0 - 2.0]  # output 2; encoder of feature 1: -2
    assert result["grad_B"][1].tolist() == [0.0, -3.0]  # no output error; encoder of feature 3: -(2 + 1)


def test_projection_by_hand():
    """docs/spec/test-vectors.md#projected: of child 3, at (0.6, 0.8), only 0.6 lies along the parent."""
    decoder = [[1, 0], [0, 1], [1, 0], [0.6, 0.8]]
    x = [[2.0, 1.0]]  # the parent has 2, its children 2 and 1
    for projected, gap in ((False, [-0.6, -0.8]), (True, [-0.6, 0.0])):
        oracle = tiny(HSAEOptions(rho=0.5, projected=projected), D=decoder)
        plain = oracle.losses_and_gradients(oracle.forward(x))
        assert plain["constraint"][0] == pytest.approx(gap[0] ** 2 + gap[1] ** 2)
        result = oracle.losses_and_gradients(oracle.forward(x), z=[1, 0, 0, 0])
        aside = 0.0 if projected else 0.8
        assert result["u_hat"][0][0] == pytest.approx([2.6, 1.0 + aside])


def test_copies_are_not_assigned():
    oracle = tiny(HSAEOptions(unassigned=0, max_cosine=0.9, similarity="decoder"))
    oracle.D = np.array([[1.0, 0], [0.6, 0.8], [0.95, (1 - 0.95**2) ** 0.5], [0.0, 1.0]])
    oracle.update_hierarchy()
    assert oracle.parent.tolist() == [-1, -1, 1, 1]  # feature 2 is too near to 0
    oracle.options.max_cosine = 0.7
    oracle.update_hierarchy()
    assert oracle.parent.tolist() == [-1, -1, -1, 0]  # and now 2 is too near to both, and 3 to 1


def test_ghost_by_hand():
    # only feature 3 is dead: it never reaches its threshold. x = (2, 0): level 1 reconstructs it exactly
    options = HSAEOptions(rho=0.0, ghost=True, dead_steps=1)
    oracle = tiny(options, E=[[1, 0], [0, 1], [0, 0], [0, 0]], parent=None)
    oracle.steps_since_fired[3] = 1
    result = oracle.losses_and_gradients(oracle.forward([[2.0, 0.0]]))
    # level 1: u_hat = 0, r = (2, 0); ghost = e^0 e1; factor 2 / 2 = 1; mse = 4 + 1 = 5, brought to 4
    assert result["recon"].tolist() == [0.0, 4.0]
    assert result["ghost"] == pytest.approx([0.0, 4.0], rel=1e-5)
    # d/d out = 4/5 * 2 * (-2, 1) = (-3.2, 1.6); by h: 1.6
    assert result["grad_D"][3] == pytest.approx(np.array([-3.2, 1.6]), rel=1e-5)
    assert result["grad_b_enc"][3] == pytest.approx(1.6, rel=1e-5)
    assert result["grad_E"][3] == pytest.approx(np.array([3.2, 0.0]), rel=1e-5)
    assert result["grad_B"][1].tolist() == [-4.0, 0.0]
    assert result["grad_theta"].tolist() == [0.0] * 4


def test_no_ghost_without_dead_features():
    oracle, x, z = example(0, ghost=True, dead_steps=5)
    other, _, _ = example(0, ghost=False, dead_steps=5)
    a = oracle.losses_and_gradients(oracle.forward(x), z)
    b = other.losses_and_gradients(other.forward(x), z)
    assert a["ghost"].tolist() == [0.0, 0.0, 0.0]
    for name in NAMES:
        assert np.array_equal(a[f"grad_{name}"], b[f"grad_{name}"])


def surrogate(oracle: HSAEOracle, x: np.ndarray, z: np.ndarray):
    """The total loss as a function of the weights near the oracle's, whose derivatives are the gradients.

    Constants are frozen: which features are active, what ghost gradients detach. The thresholds enter by
    straight lines with the slopes of the pseudo-derivatives. Written with matrices, unlike the oracle.
    """
    options = oracle.options
    F, levels = oracle.n_features, oracle.n_levels
    level_of = np.repeat(np.arange(levels), oracle.sizes)
    own = (level_of[None, :] == np.arange(levels)[:, None]).astype(np.float64)  # [L,F]
    child = np.zeros((F, F))  # [parent, child]
    for j, p in enumerate(oracle.parent):
        if p >= 0:
            child[p, j] = 1.0
    has = child.sum(axis=1) > 0
    z = z * has

    mean, std = np.zeros((len(x), 1)), np.ones((len(x), 1))
    if options.normalize == "token":
        mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True) + options.std_eps
    elif options.normalize != "none":
        std = std / float(options.normalize)
    u = (x - mean) / std
    theta0, B0 = oracle.theta.copy(), oracle.B.copy()
    h0 = np.einsum("nfd,fd->nf", u[:, None] - B0[level_of], oracle.E) + oracle.b_enc
    gate = (h0 > theta0).astype(np.float64)
    near = (np.abs((h0 - theta0) / options.bandwidth) < 0.5).astype(np.float64)

    def along(f, D):
        """[n,F]: what the children of each feature write along it, if it counts alone."""
        return f @ (child * (D @ D.T)).T

    def levels_of(f, D):
        """[n,L,d]: what the features write in their level's reconstruction, some replaced by their children."""
        if options.projected:
            return np.einsum("nf,lf,fd->nld", f * (1 - z) + along(f, D) * z, own, D)
        return np.einsum("nf,lf,fd->nld", f, own * (1 - z) + (own * z) @ child, D)

    recon0 = levels_of(h0 * gate, oracle.D) + B0
    r = u[:, None] - recon0  # [n,L,d]
    main = (r**2).sum(-1)
    ghosts = own * oracle.dead() * options.ghost
    frozen: dict[str, np.ndarray] = {}

    def loss(E, D, b_enc, theta, B) -> float:
        h = np.einsum("nfd,fd->nf", u[:, None] - B[level_of], E) + b_enc
        f = h * gate - theta0 / options.bandwidth * near * (theta - theta0)
        H = gate - near / options.bandwidth * (theta - theta0)
        u_hat = levels_of(f, D) + B
        total = ((u_hat - u[:, None]) ** 2).sum(-1).mean(0).sum()
        total += (oracle.lam * (H @ own.T).mean(0)).sum()
        v = f[:, :, None] * D
        gaps = (v - np.einsum("pc,ncd->npd", child, v)) * has[:, None]
        if options.projected:
            gaps = ((f - along(f, D)) * has)[:, :, None]
        total += options.rho * (gaps**2).sum((1, 2)).mean()
        h_ghost = np.einsum("nfd,fd->nf", u[:, None] - B0[level_of], E) + b_enc
        out = np.einsum("nf,lf,fd->nld", np.exp(h_ghost), ghosts, D)
        if not frozen:
            frozen["factor"] = np.sqrt(main) / (2 * np.linalg.norm(out, axis=-1) + 1e-6)
            mse = ((out * frozen["factor"][..., None] - r) ** 2).sum(-1)
            frozen["rescale"] = main / (mse + 1e-6) * ghosts.any(1)
        mse = ((out * frozen["factor"][..., None] - r) ** 2).sum(-1)
        total += (frozen["rescale"] * mse).mean(0).sum()
        return float(total)

    loss(oracle.E, oracle.D, oracle.b_enc, oracle.theta, oracle.B)
    return loss, h0 - theta0


@pytest.mark.parametrize("sizes", [SIZES, [5]])
@pytest.mark.parametrize("normalize", ["none", 1.7, "token"])
@pytest.mark.parametrize("ghost", [False, True])
@pytest.mark.parametrize(("bandwidth", "projected"), [(1e-9, False), (1.5, False), (1.5, True)])
def test_gradients(sizes, normalize, ghost, bandwidth, projected):
    options = {"normalize": normalize, "ghost": ghost, "bandwidth": bandwidth, "rho": 0.7, "dead_steps": 3}
    options["projected"] = projected
    oracle, x, z = example(3, sizes, **options)
    # some features of each level count as dead, the last levels partly
    oracle.steps_since_fired[::2] = 3
    oracle.steps_since_fired[: sizes[0]] = 0 if len(sizes) > 1 else 3  # and in the HSAE none of level 0
    loss, margin = surrogate(oracle, x, z)
    assert np.abs(margin).min() > 1e-4  # finite differences stay on one side of every threshold
    result = oracle.losses_and_gradients(oracle.forward(x), z)
    if len(sizes) > 1:
        assert 0 < result["replaced"].sum() < 7
        assert result["constraint"][:-1].min() > 0.0
    assert (result["ghost"] > 0).tolist() == [
        ghost and (level > 0 or len(sizes) == 1) for level in range(len(sizes))
    ]

    weights = {name: value.copy() for name, value in oracle.parameters().items()}
    assert result["loss"] == pytest.approx(loss(**weights), rel=1e-12)
    step = 1e-5
    for name, value in weights.items():
        expected = np.zeros_like(value)
        for place in np.ndindex(value.shape):
            middle = value[place]
            value[place] = middle + step
            above = loss(**weights)
            value[place] = middle - step
            expected[place] = (above - loss(**weights)) / (2 * step)
            value[place] = middle
        gradient = result[f"grad_{name}"]
        assert gradient == pytest.approx(expected, rel=1e-6, abs=1e-7), name
        if name == "theta":
            assert np.any(gradient != 0.0) == (bandwidth > 1)


def test_true_loss_finite_differences():
    """Without ghosts the oracle's own loss, nothing frozen, has these gradients (but by the thresholds)."""
    oracle, x, z = example(5, bandwidth=1e-9, rho=0.7)
    assert np.abs(oracle.forward(x).h - oracle.theta).min() > 1e-4
    result = oracle.losses_and_gradients(oracle.forward(x), z)
    step = 1e-5
    for name, value in oracle.parameters().items():
        if name == "theta":
            continue
        for place in np.ndindex(value.shape):
            middle = value[place]
            value[place] = middle + step
            above = oracle.losses_and_gradients(oracle.forward(x), z)["loss"]
            value[place] = middle - step
            below = oracle.losses_and_gradients(oracle.forward(x), z)["loss"]
            value[place] = middle
            difference = (above - below) / (2 * step)
            assert result[f"grad_{name}"][place] == pytest.approx(difference, rel=1e-6, abs=1e-7)


# ---- the step ---------------------------------------------------------------------------------------------


def test_one_step():
    oracle, x, z = example(7, bandwidth=1.5, ghost=True, dead_steps=1)
    before = {name: value.copy() for name, value in oracle.parameters().items()}
    arrays = oracle.parameters()
    result = oracle.step(x, 0.01, z)
    # dead_steps 1: counting comes first, so every feature is dead already in this step's ghost gradients
    assert np.all(result["dead"])
    assert result["ghost"].min() > 0.0
    for name, value in oracle.parameters().items():
        assert value is arrays[name]  # updated in place
        g = result[f"grad_{name}"]
        start = before[name]
        if name == "D":
            start = start / np.linalg.norm(start, axis=1, keepdims=True)
            g = g - (g * start).sum(1, keepdims=True) * start
        # first step of Adam without momentum: lr times sign, but for epsilon
        expected = start - 0.01 * g / (np.abs(g) + 1e-8)
        if name == "theta":
            expected = np.maximum(expected, 0.0)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-15), name


def test_second_step_of_adam():
    oracle, x, z = example(8, bandwidth=1.5)
    first = oracle.step(x, 0.01, z)["grad_E"]
    before = oracle.E.copy()
    second = oracle.step(x, 0.02, z)["grad_E"]
    square = 0.995 * 0.005 * first**2 + 0.005 * second**2
    expected = before - 0.02 * second / (np.sqrt(square / (1 - 0.995**2)) + 1e-8)
    encoder = oracle.E
    assert encoder == pytest.approx(expected, rel=1e-12)


def test_thresholds_stay_non_negative():
    # too small an output: the reconstruction lowers the thresholds, by far more than they have
    oracle = tiny(HSAEOptions(bandwidth=1.0), theta=[0.01] * 4, parent=None)
    oracle.step([[0.005, 0.005]], 0.5, None)
    assert oracle.theta.tolist() == [0.0] * 4


def test_counters():
    oracle = tiny()
    assert oracle.steps_since_fired.tolist() == [0, 0, 0, 0]
    oracle.update_counters(np.array([[1.0, 0, 0, 0], [0, 0, 2.0, 0]]))
    assert oracle.steps_since_fired.tolist() == [1, 1, 1, 1]
    oracle.update_counters(np.array([[1.0, 0, 0, 0], [0, 0, 2.0, 0]]))
    assert oracle.steps_since_fired.tolist() == [1, 2, 1, 2]


def test_encode_and_reconstruct():
    oracle = tiny(HSAEOptions(normalize=2.0), B=[[0.25, 0], [0, 0]])
    x = [[1.0, 0.2]]  # u = (2, 0.4); level 0 sees (1.75, 0.4)
    assert oracle.encode(x).tolist() == [[1.75, 0.0, 2.0, 0.0]]
    assert oracle.reconstruct(x, 0).tolist() == [[1.0, 0.0]]
    assert oracle.reconstruct(x, 1).tolist() == [[1.0, 0.0]]
    # per token: mean 1, deviation sqrt(2) + 1e-5
    oracle = tiny(HSAEOptions(normalize="token"))
    s = math.sqrt(2) + 1e-5
    assert oracle.encode([[2.0, 0.0]])[0] == pytest.approx([1 / s, 0, 1 / s, 0])
    assert oracle.reconstruct([[2.0, 0.0]], 1)[0] == pytest.approx([2.0, 1.0])


# ---- the controller ---------------------------------------------------------------------------------------


def test_controller():
    options = HSAEOptions(target=[1.0, 1.0], eta=0.1, momentum=0.5, gain=0.2)
    oracle = tiny(options, lam=[1.0, 1.0])
    oracle.control(np.array([3.0, 0.0]))
    assert oracle.lam.tolist() == [1.0, 1.0]  # no change to observe yet
    assert oracle.l0_ema is not None
    assert oracle.l0_ema.tolist() == [3.0, 0.0]
    # level 0: to 2, change -1, wanted -0.1: falling too fast, lambda down
    # level 1: to 1, change +1, wanted 0: lambda up
    oracle.control(np.array([1.0, 2.0]))
    assert oracle.l0_ema.tolist() == [2.0, 1.0]
    assert oracle.lam == pytest.approx([math.exp(-0.2), math.exp(0.2)])
    # level 0 stays at 2: change 0 is not below -0.1: up. Level 1 stays: 0 is not below 0: up
    oracle.control(np.array([2.0, 1.0]))
    assert oracle.lam == pytest.approx([1.0, math.exp(0.4)])
    # level 0 to 0.5, change -1.5, wanted +0.05: down
    oracle.control(np.array([-1.0, 1.0]))
    assert oracle.lam == pytest.approx([math.exp(-0.2), math.exp(0.6)])


def test_controller_limits_and_order():
    options = HSAEOptions(target=1000.0, momentum=0.5, gain=0.2, eta=0.1, updates="none")
    oracle = tiny(options, lam=[2e-8, 1e-8])
    results = [oracle.step([[2.0, 2.0]], 0.0) for _ in range(5)]
    assert results[0]["lam"].tolist() == [2e-8, 1e-8]
    assert results[1]["lam"].tolist() == [2e-8, 1e-8]  # nothing to observe in the first step
    assert results[2]["lam"] == pytest.approx([2e-8 * math.exp(-0.2), 1e-8])
    assert np.all(results[2]["sparsity"] == results[2]["lam"] * 2.0)
    options.target = 0.0
    oracle.lam[:] = 99.0
    oracle.step([[2.0, 2.0]], 0.0)
    assert oracle.lam.tolist() == [100.0, 100.0]


# ---- the hierarchy ----------------------------------------------------------------------------------------


def test_assign():
    similarity = np.array([[0.9, 0.2, 0.5, 0.1, 0.3], [0.8, 0.7, 0.5, 0.0, 0.1]])
    assert assign(similarity, 0.0).tolist() == [0, 1, 0, 0, 0]  # the third is a tie
    assert assign(similarity, 0.2).tolist() == [0, 1, 0, -1, 0]
    assert assign(similarity, 0.39).tolist() == [0, 1, 0, -1, 0]  # floor(1.95)
    assert assign(similarity, 0.4).tolist() == [0, 1, 0, -1, -1]
    assert assign(similarity, 1.0).tolist() == [-1] * 5
    assert assign(np.zeros((2, 4)), 0.5).tolist() == [-1, -1, 0, 0]  # ties: the lower child goes first
    assert assign(-np.ones((2, 2)), 0.0).tolist() == [0, 0]


def test_assign_with_most_children():
    similarity = np.array([[0.9, 0.8, 0.7, 0.1], [0.6, 0.2, 0.3, 0.0]])
    # 0.9 takes child 0, 0.8 child 1; then parent 0 is closed: 0.3 for child 2, 0.0 for child 3
    assert assign(similarity, 0.0, 2).tolist() == [0, 0, 1, 1]
    assert assign(similarity, 0.25, 2).tolist() == [0, 0, 1, -1]
    # the share goes by the accepted pair: child 2 has 0.7 to parent 0, but was accepted with 0.3
    assert assign(np.array([[0.9, 0.8, 0.7], [0.6, 0.2, 0.3]]), 0.34, 2).tolist() == [0, 0, -1]
    # one each: child 0 and then child 2; the others find no parent
    assert assign(similarity, 0.0, 1).tolist() == [0, -1, 1, -1]
    assert assign(similarity, 0.5, 1).tolist() == [0, -1, 1, -1]
    assert assign(similarity, 0.75, 1).tolist() == [0, -1, -1, -1]
    # ties: the lower child, then the lower parent
    assert assign(np.zeros((2, 4)), 0.0, 2).tolist() == [0, 0, 1, 1]
    assert assign(similarity, 0.25, 9).tolist() == assign(similarity, 0.25).tolist()


def test_similarities():
    oracle = tiny(
        HSAEOptions(unassigned=0.0, coactivation_momentum=0.5),
        E=[[2, 0], [0, 3], [1, 1], [0, -5]],
        D=[[1, 0], [0, 1], [0, 1], [1, 0]],
    )
    half = math.sqrt(0.5)
    assert oracle.similarity(0) == pytest.approx(np.array([[half, 0], [half, -1]]))
    oracle.options.similarity = "decoder"
    assert oracle.similarity(0).tolist() == [[0, 1], [1, 0]]
    oracle.update_hierarchy()
    assert oracle.parent.tolist() == [-1, -1, 1, 0]
    # two tokens: child 2 fires twice, once with 0; child 3 never
    oracle.count_coactivations(np.array([[1, 0, 1, 0], [0, 0, 1, 0]], dtype=np.bool_))
    oracle.options.similarity = "coactivation"
    assert oracle.similarity(0).tolist() == [[0.25, 0], [0, 0]]
    oracle.options.similarity = "conditional"
    assert oracle.similarity(0).tolist() == [[0.5, 0], [0, 0]]
    oracle.count_coactivations(np.array([[1, 0, 1, 0]], dtype=np.bool_))
    assert oracle.joint[0].tolist() == [[0.625, 0], [0, 0]]
    assert oracle.similarity(0).tolist() == [[0.625 / 0.75, 0], [0, 0]]


@pytest.mark.parametrize(
    ("updates", "steps"),
    [("alternate", [3, 6]), ("fixed", [3]), ("after", []), ("none", [])],
)
def test_when_the_hierarchy_is_updated(updates, steps):
    oracle, x, _ = example(9, updates=updates, period=3)
    oracle.parent[:] = -1
    due = [step for step in range(1, 8) if oracle.step(x, 0.1)["updated"]]
    assert due == steps
    assert np.any(oracle.parent >= 0) == bool(steps)
    before = oracle.parent.copy()
    oracle.finish()
    assert np.array_equal(before, oracle.parent) == (updates != "after")


def test_update_of_all_levels():
    oracle, x, _ = example(10, period=1, n=3)
    oracle.step(x, 0.1)  # the update sees the weights after the step
    rows = oracle.E / np.linalg.norm(oracle.E, axis=1, keepdims=True)
    cosine = rows @ rows.T
    assert oracle.parent[:3].tolist() == [-1] * 3
    for start, parents, n_free in ((3, range(3), 0), (7, range(3, 7), 1)):  # floor(0.8), floor(1.2)
        children = range(start, start + SIZES[1 if start == 3 else 2])
        free = [j for j in children if oracle.parent[j] == -1]
        assert len(free) == n_free
        best = {j: max(cosine[j, p] for p in parents) for j in children}
        for j in children:
            if j not in free:
                assert cosine[j, oracle.parent[j]] == pytest.approx(best[j])
                assert all(best[j] > best[k] for k in free)


# ---- training ---------------------------------------------------------------------------------------------


def test_it_learns():
    oracle, x, _ = example(11, n=20, period=20, target=2.0, gain=0.01, eta=0.01, momentum=0.9)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(60):
        z = (rng.random(sum(SIZES)) < 0.05).astype(np.float64)
        losses.append(oracle.step(x, 0.01, z)["recon"].sum())
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert np.all(oracle.theta >= 0.0)
