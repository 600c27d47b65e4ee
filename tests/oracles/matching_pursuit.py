"""Slow, obvious float64 reference for the training of a matching pursuit sparse autoencoder.

Written from docs/spec/baselines.md#matching-pursuit alone, with gradients derived by hand; nothing here is fast.
Shapes: n tokens, d model width, F features.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .allocation import BoolArray, FloatArray, IntArray
from .flat import batch_variance, token_statistics, unit_rows, update_counters, without_parallel_part
from .tree import AdamState, adam_step


@dataclass
class MatchingPursuitOptions:
    """What a matching pursuit SAE is trained with besides its sizes."""

    normalize: str | float = "token"  # mean and deviation of each token; "none"; or a factor for all tokens
    std_eps: float = 1e-5
    threshold: float = 1e-3  # a feature fires where its value is above this
    var_eps: float = 1e-8
    tol: float = 5e-3  # a token is finished when the norm of its normalized residual is below this
    dead_steps: int = 1953

    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 6.25e-10


@dataclass
class Pursuit:
    """How one token was coded: the feature, the coefficient > 0 and the residual [d] before each iteration.

    code [F]; residual [d] at the end; stop is "empty" (no positive product), "repeat", "tol" or "k".
    """

    features: list[int]
    coefficients: list[float]
    before: list[FloatArray]
    residual: FloatArray
    code: FloatArray
    stop: str


@dataclass
class PursuitForward:
    """x [n,d]; mean, std [n]; one pursuit per token; code [n,F]; xhat [n,d]."""

    x: FloatArray
    mean: FloatArray
    std: FloatArray
    pursuits: list[Pursuit]
    code: FloatArray
    xhat: FloatArray


class MatchingPursuitOracle:
    """One dictionary, of which each token takes the best feature, again and again, from what is left of it."""

    def __init__(
        self,
        D: ArrayLike,
        k: int,
        options: MatchingPursuitOptions | None = None,
        b_dec: ArrayLike | None = None,
    ) -> None:
        """D [F,d] dictionary rows; b_dec [d] a bias that is not trained, zero where not given."""
        self.D: FloatArray = np.array(D, dtype=np.float64)
        self.n_features, self.d = self.D.shape
        self.k = int(k)
        self.options = options if options is not None else MatchingPursuitOptions()
        self.b_dec: FloatArray = np.zeros(self.d)
        if b_dec is not None:
            self.b_dec = np.array(b_dec, dtype=np.float64)
        if self.b_dec.shape != (self.d,):
            raise ValueError("the bias must be [d]")
        self.steps_since_fired: IntArray = np.zeros(self.n_features, dtype=np.int64)
        self.n_steps = 0
        self.adam = {"D": AdamState(np.zeros_like(self.D), np.zeros_like(self.D))}

    def dead(self) -> BoolArray:
        """[F]: has not fired for so many steps that it counts as dead; only reported."""
        return self.steps_since_fired >= self.options.dead_steps

    # ---- forward ------------------------------------------------------------------------------------------

    def pursue(self, target: ArrayLike) -> Pursuit:
        """Code one normalized token [d], the bias already subtracted."""
        residual = np.array(target, dtype=np.float64)
        features: list[int] = []
        coefficients: list[float] = []
        before: list[FloatArray] = []
        code = np.zeros(self.n_features)
        stop = "k"
        for _ in range(self.k):
            products = np.array([residual @ self.D[i] for i in range(self.n_features)])
            j = int(np.argmax(products))  # the lowest of equals
            a = max(float(products[j]), 0.0)
            if a == 0.0:
                stop = "empty"
                break
            repeated = j in features
            features.append(j)
            coefficients.append(a)
            before.append(residual)
            code[j] += a
            residual = residual - a * self.D[j]
            if repeated:
                stop = "repeat"
                break
            if np.sqrt((residual**2).sum()) < self.options.tol:
                stop = "tol"
                break
        return Pursuit(features, coefficients, before, residual, code, stop)

    def forward(self, x: ArrayLike) -> PursuitForward:
        """Code and reconstruction of the tokens x [n,d]; changes nothing."""
        raw = np.array(x, dtype=np.float64)
        n = raw.shape[0]
        mean, std = token_statistics(raw, self.options.normalize, self.options.std_eps)
        pursuits: list[Pursuit] = []
        code = np.zeros((n, self.n_features))
        xhat = np.zeros((n, self.d))
        for t in range(n):
            pursuit = self.pursue((raw[t] - mean[t]) / std[t] - self.b_dec)
            pursuits.append(pursuit)
            code[t] = pursuit.code
            standard = self.b_dec.copy()
            for i in range(self.n_features):
                standard += code[t, i] * self.D[i]
            xhat[t] = std[t] * standard + mean[t]
        return PursuitForward(raw, mean, std, pursuits, code, xhat)

    def encode(self, x: ArrayLike) -> FloatArray:
        """Code [n,F] of the tokens x [n,d]."""
        return self.forward(x).code

    def reconstruct(self, x: ArrayLike) -> FloatArray:
        """Reconstruction [n,d] of the tokens x [n,d]."""
        return self.forward(x).xhat

    # ---- loss and gradient --------------------------------------------------------------------------------

    def losses_and_gradients(self, forward: PursuitForward) -> dict[str, Any]:
        """The loss of a batch, also as recon, and its gradient grad_D [F,d]; changes nothing.

        With y = sum_s a_s d_s (one term per iteration s), a_s = r_s . d_s and r_{s+1} = r_s - a_s d_s, and from
        the last iteration to the first, where G is the gradient of y and R that of r_{s+1}:
        of a_s: A = (G - R) . d_s;  of d_s: a_s (G - R) + A r_s;  of r_s: R + A d_s.
        """
        x = forward.x
        variance = batch_variance(x, self.options.var_eps)
        difference = forward.xhat - x
        recon = float((difference**2).mean() / variance)
        grad_xhat = 2.0 * difference / x.size / variance

        grad_D = np.zeros_like(self.D)
        for t in range(x.shape[0]):
            pursuit = forward.pursuits[t]
            G = forward.std[t] * grad_xhat[t]
            R = np.zeros(self.d)  # the last residual is in no loss
            for s in reversed(range(len(pursuit.features))):
                j = pursuit.features[s]
                a = pursuit.coefficients[s]
                A = (G - R) @ self.D[j]
                grad_D[j] += a * (G - R) + A * pursuit.before[s]
                R = R + A * self.D[j]
        return {"loss": recon, "recon": recon, "grad_D": grad_D}

    # ---- training -----------------------------------------------------------------------------------------

    def step(self, x: ArrayLike, lr: float) -> dict[str, Any]:
        """One training step on the raw tokens x [n,d].

        Returns loss, recon, code [n,F], xhat [n,d], pursuits and grad_D (before its projection).
        """
        self.n_steps += 1
        forward = self.forward(x)
        update_counters(self.steps_since_fired, forward.code, self.options.threshold)
        result = self.losses_and_gradients(forward)
        self.D = unit_rows(self.D)
        projected = without_parallel_part(result["grad_D"], self.D)
        options = self.options
        constants = (self.n_steps, lr, options.beta1, options.beta2, options.adam_eps)
        self.D = adam_step(self.D, projected, self.adam["D"], *constants)
        return {**result, "code": forward.code, "xhat": forward.xhat, "pursuits": forward.pursuits}
