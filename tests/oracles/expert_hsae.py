"""Slow, obvious float64 reference for the training of an H-SAE whose parents are experts.

Written from the paper's mathematics (arXiv 2506.01197) and the readings that the class names, with gradients derived
by hand; nothing here is fast. Shapes: n tokens, d model width, P parents, A children of each, s dimensions of a
subspace. Features are numbered parents first, then the children of parent 0, of parent 1, and so on.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .allocation import BoolArray, FloatArray, IntArray
from .flat import batch_variance, token_statistics, unit_rows, update_counters, without_parallel_part
from .tree import AdamState, adam_step, largest

NAMES = ("E", "D", "down", "up", "a_in", "a_out", "b_dec", "b_enc")
UNIT = ("D", "up")


@dataclass
class ExpertOptions:
    """What an H-SAE is trained with besides its sizes."""

    normalize: str | float = "token"  # mean and deviation of each token; "none"; or a factor for all tokens
    std_eps: float = 1e-5
    threshold: float = 1e-3  # a feature is active where its value is above this
    var_eps: float = 1e-8
    encoder_bias: bool = True

    top_level: float = 0.1
    l1: float = 0.1
    orthogonality: float = 1e-3

    aux_coef: float = 1 / 32
    k_aux: int = 256
    aux_bias: bool = False  # the decoder bias is part of the reconstructed error
    aux_detach: bool = True  # no gradient through the target of the auxiliary loss and its variance
    aux_rescale: bool = True  # the reconstructed error is multiplied by the token's deviation

    dead_steps: int = 1953

    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 6.25e-10


@dataclass
class ExpertForward:
    """x [n,d]; mean, std [n]; u [n,d] encoder input; h [n,P] pre-activations of parents; code [n,F]; top, xhat [n,d]
    from the parents alone, and from all."""

    x: FloatArray
    mean: FloatArray
    std: FloatArray
    u: FloatArray
    h: FloatArray
    code: FloatArray
    top: FloatArray
    xhat: FloatArray


class ExpertOracle:
    """Parents, each with a dictionary in a subspace of its own, and their training, one step at a time."""

    def __init__(self, k: int, weights: dict[str, ArrayLike], options: ExpertOptions) -> None:
        """weights: E, D [P,d] rows of parents; down, up [P,s,d] the projections; a_in, a_out [P,A,s] the dictionaries
        in the subspaces; b_dec [d]; b_enc [P + P A]."""
        self.w: dict[str, FloatArray] = {name: np.array(weights[name], dtype=np.float64) for name in NAMES}
        self.k, self.options = k, options
        self.n_parents, self.d = self.w["E"].shape
        self.n_children, self.s = self.w["a_in"].shape[1:]
        self.n_features = self.n_parents * (1 + self.n_children)
        self.steps_since_fired: IntArray = np.zeros(self.n_features, dtype=np.int64)
        self.n_steps = 0
        self.adam = {
            name: AdamState(np.zeros_like(value), np.zeros_like(value)) for name, value in self.w.items()
        }

    def dead(self) -> BoolArray:
        """[F]: has not fired for so many steps that it counts as dead."""
        return self.steps_since_fired >= self.options.dead_steps

    def feature(self, p: int, c: int) -> int:
        """The number of child c of parent p."""
        return self.n_parents + p * self.n_children + c

    def encoder_row(self, p: int, c: int) -> FloatArray:
        """[d]: what a child reads."""
        return sum((self.w["a_in"][p, c, j] * self.w["down"][p, j] for j in range(self.s)), np.zeros(self.d))

    def decoder_row(self, p: int, c: int) -> tuple[FloatArray, float]:
        """[d]: what a child writes, of norm 1; and the norm that it was divided by."""
        q = sum((self.w["a_out"][p, c, j] * self.w["up"][p, j] for j in range(self.s)), np.zeros(self.d))
        norm = float(np.sqrt((q**2).sum()))
        return q / norm, norm

    # ---- forward ------------------------------------------------------------------------------------------

    def best_child(self, u: FloatArray, p: int) -> tuple[int, float]:
        """The child of p with the largest positive pre-activation, and that; (-1, 0) where none is positive."""
        best, most = -1, 0.0
        for c in range(self.n_children):
            h = float(self.encoder_row(p, c) @ u + self.w["b_enc"][self.feature(p, c)])
            if h > most:
                best, most = c, h
        return best, most

    def forward(self, x: ArrayLike) -> ExpertForward:
        """Code and reconstructions of the tokens x [n,d]; changes nothing."""
        raw = np.array(x, dtype=np.float64)
        n = raw.shape[0]
        mean, std = token_statistics(raw, self.options.normalize, self.options.std_eps)
        u, h = np.zeros((n, self.d)), np.zeros((n, self.n_parents))
        code = np.zeros((n, self.n_features))
        top, xhat = np.zeros_like(raw), np.zeros_like(raw)
        for t in range(n):
            u[t] = (raw[t] - mean[t]) / std[t] - self.w["b_dec"]
            for p in range(self.n_parents):
                h[t, p] = self.w["E"][p] @ u[t] + self.w["b_enc"][p]
            z = self.w["b_dec"].copy()
            for p in largest(h[t], self.k):
                code[t, p] = max(h[t, p], 0.0)
                z += code[t, p] * self.w["D"][p]
            top[t] = std[t] * z + mean[t]
            for p in range(self.n_parents):
                if code[t, p] > self.options.threshold:
                    c, value = self.best_child(u[t], p)
                    if c >= 0:
                        code[t, self.feature(p, c)] = value
                        z += value * self.decoder_row(p, c)[0]
            xhat[t] = std[t] * z + mean[t]
        return ExpertForward(raw, mean, std, u, h, code, top, xhat)

    def aux_code(self, forward: ExpertForward) -> FloatArray:
        """[n,F]: the k_aux dead parents with the largest pre-activation, negatives to zero."""
        dead = self.dead()
        parents = [p for p in range(self.n_parents) if dead[p]]
        a = np.zeros_like(forward.code)
        for t in range(len(a)):
            for place in largest(np.array([forward.h[t, p] for p in parents]), self.options.k_aux):
                a[t, parents[place]] = max(forward.h[t, parents[place]], 0.0)
        return a

    # ---- losses and gradients -----------------------------------------------------------------------------

    def losses_and_gradients(self, forward: ExpertForward) -> dict[str, Any]:
        """Losses of a batch and the gradients of their weighted sum, with the counters as they are now.

        Returns loss, recon (from the parents alone, and from all), l1, orthogonality, aux (the last three without
        their weights), and grad_NAME of every weight.
        """
        o, x = self.options, forward.x
        n = x.shape[0]
        variance = batch_variance(x, o.var_eps)
        grads = {name: np.zeros_like(value) for name, value in self.w.items()}
        grad_values = np.zeros_like(forward.code)  # of the code
        grad_aux_values = np.zeros_like(forward.code)  # of the auxiliary code

        differences = (forward.top - x, forward.xhat - x)
        recon = [float((difference**2).mean() / variance) for difference in differences]
        grad_top = o.top_level * 2.0 * differences[0] / x.size / variance
        grad_xhat = 2.0 * differences[1] / x.size / variance

        l1 = float(forward.code.sum() / x.size)
        grad_values += o.l1 / x.size * (forward.code > 0.0)

        crossing = 0.0
        for i in range(self.n_parents):
            for j in range(self.n_parents):
                if i != j:
                    product = self.w["E"][i] @ self.w["D"][j]
                    crossing += product**2 / self.n_parents
                    grads["E"][i] += o.orthogonality * 2.0 * product * self.w["D"][j] / self.n_parents
                    grads["D"][j] += o.orthogonality * 2.0 * product * self.w["E"][i] / self.n_parents

        aux = 0.0
        a = self.aux_code(forward)
        scale = forward.std if o.aux_rescale else np.ones(n)
        e = x - forward.xhat
        e_hat = np.zeros_like(x)
        for t in range(n):
            e_hat[t] = scale[t] * (self.decoded(a[t]) + (self.w["b_dec"] if o.aux_bias else 0.0))
        e_centered = np.array([e[t] - e[t].mean() for t in range(n)])
        denominator = (e_centered**2).mean()
        if o.aux_coef > 0.0 and denominator > 0.0 and (self.dead()[: self.n_parents].any() or o.aux_bias):
            aux = float(((e_hat - e) ** 2).mean() / denominator)
            grad_e_hat = o.aux_coef * 2.0 * (e_hat - e) / x.size / denominator
            if not o.aux_detach:
                # e is in the numerator and in the denominator, and falls as the reconstruction rises
                grad_e = -grad_e_hat - o.aux_coef * aux / denominator * 2.0 * e_centered / x.size
                grad_xhat -= grad_e
            for t in range(n):
                through = scale[t] * grad_e_hat[t]
                if o.aux_bias:
                    grads["b_dec"] += through
                self.back_through_decoder(a[t], through, through, grads, grad_aux_values[t])

        for t in range(n):
            whole = forward.std[t] * grad_xhat[t]
            both = whole + forward.std[t] * grad_top[t]  # parents and bias are in both reconstructions
            grads["b_dec"] += both
            self.back_through_decoder(forward.code[t], both, whole, grads, grad_values[t])
            self.back_through_encoder(forward.u[t], forward.code[t], grad_values[t], grads)
            self.back_through_encoder(forward.u[t], a[t], grad_aux_values[t], grads)

        loss = recon[1] + o.top_level * recon[0] + o.l1 * l1 + o.orthogonality * crossing + o.aux_coef * aux
        if not o.encoder_bias:
            grads["b_enc"][:] = 0.0
        return {
            "loss": loss, "recon": recon, "l1": l1, "orthogonality": crossing, "aux": aux,
            **{f"grad_{name}": value for name, value in grads.items()},
        }  # fmt: skip

    def decoded(self, code: FloatArray) -> FloatArray:
        """[d]: what the features of a code [F] add up to, without bias."""
        z = np.zeros(self.d)
        for p in range(self.n_parents):
            z += code[p] * self.w["D"][p]
            for c in range(self.n_children):
                z += code[self.feature(p, c)] * self.decoder_row(p, c)[0]
        return z

    def back_through_decoder(
        self,
        code: FloatArray,
        of_parents: FloatArray,
        of_children: FloatArray,
        grads: dict[str, FloatArray],
        grad_values: FloatArray,
    ) -> None:
        """Adds to the gradients of weights and of the code [F], given those of the parents' and children's sums [d].

        A child writes q / |q| with q = sum_j a_j up_j: of q, g leaves (g - (g . q/|q|) q/|q|) / |q|.
        """
        for p in range(self.n_parents):
            grad_values[p] += self.w["D"][p] @ of_parents
            grads["D"][p] += code[p] * of_parents
            for c in range(self.n_children):
                i = self.feature(p, c)
                row, norm = self.decoder_row(p, c)
                grad_values[i] += row @ of_children
                g = code[i] * of_children
                of_q = (g - (g @ row) * row) / norm
                for j in range(self.s):
                    grads["a_out"][p, c, j] += of_q @ self.w["up"][p, j]
                    grads["up"][p, j] += self.w["a_out"][p, c, j] * of_q

    def back_through_encoder(
        self, u: FloatArray, code: FloatArray, grad_values: FloatArray, grads: dict[str, FloatArray]
    ) -> None:
        """Adds to the gradients of weights, given that of the code [F] of a token: what is zero has none."""
        for p in range(self.n_parents):
            if code[p] > 0.0:
                g = grad_values[p]
                grads["E"][p] += g * u
                grads["b_enc"][p] += g
                grads["b_dec"] -= g * self.w["E"][p]  # the encoder sees x minus the bias
            for c in range(self.n_children):
                i = self.feature(p, c)
                if code[i] > 0.0:
                    g = grad_values[i]
                    grads["b_enc"][i] += g
                    grads["b_dec"] -= g * self.encoder_row(p, c)
                    for j in range(self.s):
                        grads["a_in"][p, c, j] += g * (self.w["down"][p, j] @ u)
                        grads["down"][p, j] += g * self.w["a_in"][p, c, j] * u

    # ---- training -----------------------------------------------------------------------------------------

    def step(self, x: ArrayLike, lr: float) -> dict[str, Any]:
        """One training step on the raw tokens x [n,d]: the losses and gradients, and code [n,F] and xhat [n,d].

        Before Adam the rows of D and up are brought to unit norm, and lose the part of their gradients along them.
        """
        self.n_steps += 1
        forward = self.forward(x)
        update_counters(self.steps_since_fired, forward.code, self.options.threshold)
        result = self.losses_and_gradients(forward)
        o = self.options
        for name in NAMES:
            gradient = result[f"grad_{name}"]
            if name in UNIT:
                shape = self.w[name].shape
                rows = unit_rows(self.w[name].reshape(-1, self.d))
                gradient = without_parallel_part(gradient.reshape(-1, self.d), rows).reshape(shape)
                self.w[name] = rows.reshape(shape)
            constants = (self.n_steps, lr, o.beta1, o.beta2, o.adam_eps)
            self.w[name] = adam_step(self.w[name], gradient, self.adam[name], *constants)
        return {**result, "code": forward.code, "xhat": forward.xhat}
