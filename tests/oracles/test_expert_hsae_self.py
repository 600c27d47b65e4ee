"""The H-SAE oracle checked against a hand-worked case and finite differences."""

from typing import Any

import numpy as np
import pytest

from .expert_hsae import NAMES, ExpertOptions, ExpertOracle

P, A, S, D, K = 4, 3, 2, 5, 2


def build(seed: int, **settings: Any) -> tuple[ExpertOracle, np.ndarray]:
    """Four parents of three children in width five, and six tokens."""
    rng = np.random.default_rng(seed)
    shapes = {
        "E": (P, D), "D": (P, D), "down": (P, S, D), "up": (P, S, D), "a_in": (P, A, S), "a_out": (P, A, S),
        "b_dec": (D,), "b_enc": (P + P * A,),
    }  # fmt: skip
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    weights["b_enc"] *= 0.1
    return ExpertOracle(K, dict(weights), ExpertOptions(**settings)), 2.0 * rng.normal(size=(6, D)) + 0.5


def loss(oracle: ExpertOracle, x: np.ndarray) -> float:
    return oracle.losses_and_gradients(oracle.forward(x))["loss"]


@pytest.mark.parametrize("normalize", ["token", "none", 0.4])
@pytest.mark.parametrize(("aux_bias", "aux_rescale"), [(True, False), (False, True)])
def test_gradients(normalize: str | float, aux_bias: bool, aux_rescale: bool) -> None:
    compared = 0
    seed = aux_bias + 2 * (normalize == "token")
    oracle, x = build(
        seed, normalize=normalize, top_level=0.3, orthogonality=0.05, aux_coef=0.2, k_aux=1,
        aux_bias=aux_bias, aux_rescale=aux_rescale, aux_detach=False, dead_steps=1,
    )  # fmt: skip
    oracle.steps_since_fired[[0, 2, P + 1]] = 1
    ours = oracle.losses_and_gradients(oracle.forward(x))
    assert ours["aux"] > 0
    for name in NAMES:
        weight, gradient = oracle.w[name].reshape(-1), ours[f"grad_{name}"].reshape(-1)
        for i in range(len(weight)):
            before, found = weight[i], []
            for step in (1e-6, -1e-6):
                weight[i] = before + step
                found.append(loss(oracle, x))
            weight[i] = before
            assert gradient[i] == pytest.approx((found[0] - found[1]) / 2e-6, rel=1e-5, abs=1e-8), name
            compared += gradient[i] != 0
    assert compared > 100


def test_by_hand() -> None:
    """x = (3, 1): parent 0 reads 3, parent 1 reads 1. The subspace of parent 0 is the second axis, where its children
    read 2 and -1 times 1; each writes along that axis with a sign of its own."""
    weights = {
        "E": np.eye(2), "D": np.eye(2), "down": [[[0, 1.0]], [[1.0, 0]]], "up": [[[0, 1.0]], [[1.0, 0]]],
        "a_in": [[[2.0], [-1.0]], [[0.5], [1.0]]], "a_out": [[[0.5], [-3.0]], [[1.0], [1.0]]],
        "b_dec": [0.0, 0.0], "b_enc": np.zeros(6),
    }  # fmt: skip
    options = ExpertOptions(normalize="none", top_level=0.5, l1=0.2, orthogonality=1.0, aux_coef=0.0)
    oracle = ExpertOracle(1, dict(weights), options)
    x = np.array([[3.0, 1.0]])
    forward = oracle.forward(x)
    assert forward.code.tolist() == [[3.0, 0.0, 2.0, 0.0, 0.0, 0.0]]
    assert forward.top.tolist() == [[3.0, 0.0]]
    assert forward.xhat.tolist() == [[3.0, 2.0]]
    found = oracle.losses_and_gradients(forward)
    variance = 2.0 + 1e-8  # of 3 and 1, unbiased
    assert found["recon"] == pytest.approx([0.5 / variance, 0.5 / variance])
    assert found["l1"] == 2.5
    assert found["orthogonality"] == 0.0
    assert found["loss"] == pytest.approx(0.75 / variance + 0.5)
