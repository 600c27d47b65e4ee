"""Slow, obvious float64 reference for the training of TopK, BatchTopK and Matryoshka sparse autoencoders.

Written from docs/spec/baselines.md alone, with gradients derived by hand; nothing here is fast.
Shapes: n tokens, d model width, F features, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .allocation import BoolArray, FloatArray, IntArray
from .tree import AdamState, adam_step, largest


@dataclass
class FlatOptions:
    """What a flat SAE is trained with besides its sizes and its selection."""

    normalize: str | float = (
        "token"  # mean and deviation of each token; "norm" of each; "none"; or a factor for all
    )
    std_eps: float = 1e-5
    threshold: float = 1e-3  # a feature fires where its value is above this
    var_eps: float = 1e-8
    encoder_bias: bool = False

    aux_coef: float = 1 / 32
    k_aux: int = 256
    aux_bias: bool = True  # the decoder bias is part of the reconstructed error
    aux_detach: bool = False  # no gradient through the target of the auxiliary loss and its variance
    aux_rescale: bool = False  # the reconstructed error is multiplied by the token's deviation

    dead_steps: int = 1953

    threshold_start: int = 1000  # first training step, from 1, whose batch moves the inference threshold
    threshold_momentum: float = 0.999

    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 6.25e-10


def token_statistics(x: FloatArray, how: str | float, std_eps: float) -> tuple[FloatArray, FloatArray]:
    """Mean [n] and deviation [n] that the tokens x [n,d] are normalized with: (x - mean) / std."""
    n, d = x.shape
    mean = np.zeros(n)
    std = np.ones(n)
    if how == "token":
        for t in range(n):
            mean[t] = x[t].mean()
            std[t] = np.sqrt(((x[t] - mean[t]) ** 2).sum() / (d - 1)) + std_eps
    elif how == "norm":
        for t in range(n):
            std[t] = np.sqrt((x[t] ** 2).sum() / d)
    elif isinstance(how, str):
        if how != "none":
            raise ValueError("normalize must be 'token', 'norm', 'none' or a number")
    else:
        std[:] = 1.0 / how
    return mean, std


def batch_variance(x: FloatArray, var_eps: float) -> float:
    """Unbiased variance of all the elements of x, and a little more."""
    return float(((x - x.mean()) ** 2).sum() / (x.size - 1) + var_eps)


def unit_rows(D: FloatArray) -> FloatArray:
    """The rows of D [F,d], each divided by its norm."""
    return np.array([row / np.sqrt((row**2).sum()) for row in D])


def without_parallel_part(gradient: FloatArray, D: FloatArray) -> FloatArray:
    """Each row of the gradient [F,d] without its part along the unit row of D [F,d]."""
    return np.array([g - (g @ row) * row for g, row in zip(gradient, D, strict=True)])


def update_counters(steps_since_fired: IntArray, code: FloatArray, threshold: float) -> None:
    """One more step since each feature fired, in place; 1 for those that fire in this batch. code [n,F]."""
    for i in range(len(steps_since_fired)):
        steps_since_fired[i] += 1
        if np.any(code[:, i] > threshold):
            steps_since_fired[i] = 1


@dataclass
class FlatForward:
    """Everything the losses need of one batch.

    x [n,d]; mean, std [n]; u [n,d] encoder input, the bias already subtracted; h [n,F] pre-activations;
    code [n,F]; xhat: one [n,d] per reconstruction in the loss.
    """

    x: FloatArray
    mean: FloatArray
    std: FloatArray
    u: FloatArray
    h: FloatArray
    code: FloatArray
    xhat: list[FloatArray]


class FlatOracle:
    """A dictionary without hierarchy and its training, one step at a time; the three models share it.

    ``selection`` is "token" (the k largest of each token) or "batch" (the k n largest of the batch in training,
    a threshold afterwards). ``prefixes`` are the numbers of leading features of each reconstruction in the loss
    (0: the decoder bias alone), ``weights`` their weights; ``full`` is the place of the full reconstruction.
    """

    def __init__(
        self,
        E: ArrayLike,
        D: ArrayLike,
        b_dec: ArrayLike,
        k: int,
        selection: str,
        prefixes: Sequence[int],
        weights: Sequence[float],
        options: FlatOptions | None = None,
        b_enc: ArrayLike | None = None,
    ) -> None:
        """E [F,d] encoder rows, D [F,d] decoder rows, b_dec [d], b_enc [F] (zero where not given)."""
        self.E: FloatArray = np.array(E, dtype=np.float64)
        self.D: FloatArray = np.array(D, dtype=np.float64)
        self.b_dec: FloatArray = np.array(b_dec, dtype=np.float64)
        self.n_features, self.d = self.E.shape
        self.b_enc: FloatArray = np.zeros(self.n_features)
        if b_enc is not None:
            self.b_enc = np.array(b_enc, dtype=np.float64)
        self.k = int(k)
        self.selection = selection
        self.prefixes = [int(prefix) for prefix in prefixes]
        self.weights: FloatArray = np.array(weights, dtype=np.float64)
        self.options = options if options is not None else FlatOptions()
        self._check()
        self.full = self.prefixes.index(self.n_features)

        self.steps_since_fired: IntArray = np.zeros(self.n_features, dtype=np.int64)
        self.theta: float | None = None  # the inference threshold of the selection "batch"
        self.n_steps = 0
        self.adam = {
            name: AdamState(np.zeros_like(value), np.zeros_like(value))
            for name, value in (("E", self.E), ("D", self.D), ("b_dec", self.b_dec), ("b_enc", self.b_enc))
        }

    def _check(self) -> None:
        if self.D.shape != (self.n_features, self.d) or self.b_dec.shape != (self.d,):
            raise ValueError("encoder and decoder must be [F, d], the decoder bias [d]")
        if self.b_enc.shape != (self.n_features,):
            raise ValueError("the encoder bias must be [F]")
        if self.b_enc.any() and not self.options.encoder_bias:
            raise ValueError("an encoder bias without encoder_bias")
        if self.selection not in ("token", "batch"):
            raise ValueError("selection must be 'token' or 'batch'")
        if self.n_features not in self.prefixes or len(self.weights) != len(self.prefixes):
            raise ValueError("one weight per reconstruction, and a full one among them")

    def dead(self) -> BoolArray:
        """[F]: has not fired for so many steps that it counts as dead."""
        return self.steps_since_fired >= self.options.dead_steps

    # ---- forward ------------------------------------------------------------------------------------------

    def select(self, h: FloatArray, training: bool) -> FloatArray:
        """Code [n,F] of the pre-activations h [n,F]."""
        n = h.shape[0]
        code = np.zeros_like(h)
        if self.selection == "token":
            for t in range(n):
                for i in largest(h[t], self.k):
                    code[t, i] = max(h[t, i], 0.0)
        elif training:
            places = [(t, i) for t in range(n) for i in range(self.n_features)]
            values = np.array([max(h[place], 0.0) for place in places])
            for which in largest(values, self.k * n):
                code[places[which]] = values[which]
        else:
            theta = self.theta if self.theta is not None else 0.0
            for t in range(n):
                for i in range(self.n_features):
                    if h[t, i] > theta:
                        code[t, i] = h[t, i]
        return code

    def forward(self, x: ArrayLike, training: bool) -> FlatForward:
        """Code and reconstructions of the tokens x [n,d]; changes nothing."""
        raw = np.array(x, dtype=np.float64)
        n = raw.shape[0]
        mean, std = token_statistics(raw, self.options.normalize, self.options.std_eps)
        u = np.zeros((n, self.d))
        h = np.zeros((n, self.n_features))
        for t in range(n):
            u[t] = (raw[t] - mean[t]) / std[t] - self.b_dec
            for i in range(self.n_features):
                h[t, i] = self.E[i] @ u[t] + self.b_enc[i]
        code = self.select(h, training)

        xhat: list[FloatArray] = []
        for prefix in self.prefixes:
            total = np.zeros((n, self.d))
            for t in range(n):
                standard = self.b_dec.copy()
                for i in range(prefix):
                    standard += code[t, i] * self.D[i]
                total[t] = std[t] * standard + mean[t]
            xhat.append(total)
        return FlatForward(raw, mean, std, u, h, code, xhat)

    def encode(self, x: ArrayLike) -> FloatArray:
        """Code [n,F] of the tokens x [n,d] after training."""
        return self.forward(x, training=False).code

    def reconstruct(self, x: ArrayLike) -> FloatArray:
        """Full reconstruction [n,d] of the tokens x [n,d] after training."""
        return self.forward(x, training=False).xhat[self.full]

    def aux_code(self, forward: FlatForward) -> FloatArray:
        """[n,F]: per token the k_aux dead features with the largest pre-activation, negatives to zero."""
        n = forward.x.shape[0]
        dead = self.dead()
        dead_features = [i for i in range(self.n_features) if dead[i]]
        a = np.zeros((n, self.n_features))
        for t in range(n):
            scores = np.array([forward.h[t, i] for i in dead_features])
            for place in largest(scores, self.options.k_aux):
                a[t, dead_features[place]] = max(scores[place], 0.0)
        return a

    # ---- losses and gradients -----------------------------------------------------------------------------

    def losses_and_gradients(self, forward: FlatForward) -> dict[str, Any]:
        """Losses of a batch and their gradients, with the counters as they are now; changes nothing.

        Returns loss (total), recon (one per reconstruction, without weights), aux (without coefficient), and
        grad_E [F,d], grad_D [F,d], grad_b_dec [d], grad_b_enc [F] of the total (zero if not trained).
        """
        options = self.options
        x = forward.x
        n = x.shape[0]
        variance = batch_variance(x, options.var_eps)

        grad_xhat = [np.zeros_like(x) for _ in self.prefixes]  # of the total
        grad_h = np.zeros((n, self.n_features))
        grad_D = np.zeros_like(self.D)
        grad_b_dec = np.zeros_like(self.b_dec)

        recon = np.zeros(len(self.prefixes))
        for g in range(len(self.prefixes)):
            difference = forward.xhat[g] - x
            recon[g] = (difference**2).mean() / variance
            grad_xhat[g] += self.weights[g] * 2.0 * difference / x.size / variance

        aux = 0.0
        a = self.aux_code(forward)
        scale = forward.std if options.aux_rescale else np.ones(n)
        e = x - forward.xhat[self.full]
        e_hat = np.zeros_like(x)
        for t in range(n):
            for i in range(self.n_features):
                e_hat[t] += a[t, i] * self.D[i]
            if options.aux_bias:
                e_hat[t] += self.b_dec
            e_hat[t] *= scale[t]
        e_centered = np.array([e[t] - e[t].mean() for t in range(n)])
        numerator = ((e_hat - e) ** 2).mean()
        denominator = (e_centered**2).mean()
        if denominator > 0.0 and (self.dead().any() or options.aux_bias):
            aux = float(numerator / denominator)
            grad_e_hat = options.aux_coef * 2.0 * (e_hat - e) / x.size / denominator
            if not options.aux_detach:
                # e is in the numerator and in the denominator, and falls as the reconstruction rises
                grad_e = -grad_e_hat - options.aux_coef * aux / denominator * 2.0 * e_centered / x.size
                grad_xhat[self.full] -= grad_e
            for t in range(n):
                through = scale[t] * grad_e_hat[t]
                if options.aux_bias:
                    grad_b_dec += through
                for i in range(self.n_features):
                    grad_D[i] += a[t, i] * through
                    if a[t, i] > 0.0:
                        grad_h[t, i] += self.D[i] @ through

        for t in range(n):
            for g, prefix in enumerate(self.prefixes):
                through = forward.std[t] * grad_xhat[g][t]
                grad_b_dec += through
                for i in range(prefix):
                    grad_D[i] += forward.code[t, i] * through
                    if forward.code[t, i] > 0.0:
                        grad_h[t, i] += self.D[i] @ through

        grad_E = np.zeros_like(self.E)
        grad_b_enc = np.zeros_like(self.b_enc)
        for t in range(n):
            for i in range(self.n_features):
                grad_E[i] += grad_h[t, i] * forward.u[t]
                grad_b_dec -= grad_h[t, i] * self.E[i]  # the encoder sees x minus the bias
                if options.encoder_bias:
                    grad_b_enc[i] += grad_h[t, i]

        loss = options.aux_coef * aux
        for g in range(len(self.prefixes)):
            loss += float(self.weights[g] * recon[g])
        return {
            "loss": loss,
            "recon": recon,
            "aux": aux,
            "grad_E": grad_E,
            "grad_D": grad_D,
            "grad_b_dec": grad_b_dec,
            "grad_b_enc": grad_b_enc,
        }

    # ---- training -----------------------------------------------------------------------------------------

    def update_threshold(self, code: FloatArray, step: int) -> None:
        """The smallest positive value of the training code [n,F] moves the inference threshold."""
        positive = [float(value) for value in code.ravel() if value > 0.0]
        if self.selection != "batch" or step < self.options.threshold_start or not positive:
            return
        if self.theta is None:
            self.theta = min(positive)
        else:
            momentum = self.options.threshold_momentum
            self.theta = momentum * self.theta + (1 - momentum) * min(positive)

    def update_parameters(self, gradients: dict[str, Any], lr: float, step: int) -> None:
        """Decoder rows to unit norm, the part of their gradient along them removed, then Adam."""
        self.D = unit_rows(self.D)
        projected = without_parallel_part(gradients["grad_D"], self.D)
        constants = (step, lr, self.options.beta1, self.options.beta2, self.options.adam_eps)
        self.E = adam_step(self.E, gradients["grad_E"], self.adam["E"], *constants)
        self.D = adam_step(self.D, projected, self.adam["D"], *constants)
        self.b_dec = adam_step(self.b_dec, gradients["grad_b_dec"], self.adam["b_dec"], *constants)
        if self.options.encoder_bias:
            self.b_enc = adam_step(self.b_enc, gradients["grad_b_enc"], self.adam["b_enc"], *constants)

    def step(self, x: ArrayLike, lr: float) -> dict[str, Any]:
        """One training step on the raw tokens x [n,d].

        Returns loss, recon, aux, code [n,F], xhat (list of [n,d], as the prefixes), and grad_E, grad_D,
        grad_b_dec, grad_b_enc (of the loss, before the decoder's projection).
        """
        self.n_steps += 1
        forward = self.forward(x, training=True)
        update_counters(self.steps_since_fired, forward.code, self.options.threshold)
        result = self.losses_and_gradients(forward)
        self.update_threshold(forward.code, self.n_steps)
        self.update_parameters(result, lr, self.n_steps)
        return {**result, "code": forward.code, "xhat": forward.xhat}


class TopKOracle(FlatOracle):
    """The k largest pre-activations of each token."""

    def __init__(
        self,
        E: ArrayLike,
        D: ArrayLike,
        b_dec: ArrayLike,
        k: int,
        options: FlatOptions | None = None,
        b_enc: ArrayLike | None = None,
    ) -> None:
        n_features = len(np.asarray(E))
        super().__init__(E, D, b_dec, k, "token", [n_features], [1.0], options, b_enc)


class BatchTopKOracle(FlatOracle):
    """The k n largest pre-activations of a batch of n tokens; after training, those above a threshold."""

    def __init__(
        self,
        E: ArrayLike,
        D: ArrayLike,
        b_dec: ArrayLike,
        k: int,
        options: FlatOptions | None = None,
        b_enc: ArrayLike | None = None,
    ) -> None:
        n_features = len(np.asarray(E))
        super().__init__(E, D, b_dec, k, "batch", [n_features], [1.0], options, b_enc)


class MatryoshkaOracle(FlatOracle):
    """One selection from the whole dictionary; every prefix of the groups has to reconstruct the token.

    ``weights`` is "sum", "mean", "mean_with_bias" (the bias alone is then the last reconstruction) or a list
    of one number per group.
    """

    def __init__(
        self,
        E: ArrayLike,
        D: ArrayLike,
        b_dec: ArrayLike,
        k: int,
        group_sizes: Sequence[int],
        weights: str | Sequence[float] = "sum",
        selection: str = "token",
        options: FlatOptions | None = None,
        b_enc: ArrayLike | None = None,
    ) -> None:
        n_groups = len(group_sizes)
        if sum(group_sizes) != len(np.asarray(E)):
            raise ValueError("the groups must add up to the number of features")
        prefixes = [sum(group_sizes[: g + 1]) for g in range(n_groups)]
        if weights == "sum":
            numbers = [1.0] * n_groups
        elif weights == "mean":
            numbers = [1.0 / n_groups] * n_groups
        elif weights == "mean_with_bias":
            prefixes = [*prefixes, 0]
            numbers = [1.0 / (n_groups + 1)] * (n_groups + 1)
        elif isinstance(weights, str):
            raise ValueError("weights must be 'sum', 'mean', 'mean_with_bias' or numbers")
        else:
            numbers = [float(weight) for weight in weights]
        super().__init__(E, D, b_dec, k, selection, prefixes, numbers, options, b_enc)
