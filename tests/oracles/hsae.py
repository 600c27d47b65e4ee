"""Slow, obvious float64 reference for the training of an HSAE, with gradients derived by hand.

Written from docs/spec/hsae.md alone, to test the implementation against; nothing here is fast.
Shapes: n tokens, d model width, F features, L levels. Features are numbered 0 .. F-1 through the levels.
A JumpReLU SAE is the case of one level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .allocation import ROOT, BoolArray, FloatArray, IntArray
from .hsae_links import assign, constraint, cosines, stand_in, through_stand_in
from .tree import AdamState, adam_step

GHOST_EPS = 1e-6


@dataclass
class HSAEOptions:
    """What an HSAE is trained with besides its sizes and the learning rate."""

    normalize: float | str = "none"  # a number s (u = s x), "none" (s = 1) or "token"
    std_eps: float = 1e-5

    theta_rate: float = 1.0  # the thresholds' learning rate, as a multiple of the others'
    bandwidth: float = 0.05  # width of the rectangle kernel of the pseudo-derivatives
    rho: float = 0.01  # weight of the constraint between parents and children
    projected: bool = (
        False  # constraint and perturbation take the part of the children along their parent only
    )
    ghost: bool = False
    dead_steps: int = 9766

    target: float | Sequence[float] = 50.0  # active features per token, for every level or by level
    eta: float = 1e-3
    momentum: float = 0.999  # of the moving average of L0
    gain: float = 1e-3  # lambda is multiplied by exp(+-gain)
    lam_min: float = 1e-8
    lam_max: float = 1e2

    updates: str = "alternate"  # "alternate", "fixed", "after" or "none"
    period: int = 5000
    similarity: str = "encoder"  # "encoder", "decoder", "coactivation" or "conditional"
    coactivation_momentum: float = 0.999
    unassigned: float = 0.2  # share of the features of a level that get no parent
    max_children: int | None = None
    max_cosine: float | None = None  # of the decoder rows of parent and child

    beta1: float = 0.0
    beta2: float = 0.995
    adam_eps: float = 1e-8


# ---- the activation function ------------------------------------------------------------------------------


def kernel(v: float) -> float:
    """The rectangle kernel: 1 where |v| < 1/2."""
    return 1.0 if abs(v) < 0.5 else 0.0


def jumprelu(h: float, theta: float) -> float:
    """h where it is above the threshold, otherwise 0."""
    return h if h > theta else 0.0


def jumprelu_by_theta(h: float, theta: float, eps: float) -> float:
    """Pseudo-derivative of ``jumprelu`` by the threshold."""
    return -(theta / eps) * kernel((h - theta) / eps)


def heaviside_by_theta(h: float, theta: float, eps: float) -> float:
    """Pseudo-derivative of 1[h > theta] by the threshold."""
    return -(1.0 / eps) * kernel((h - theta) / eps)


# ---- the model --------------------------------------------------------------------------------------------


@dataclass
class HSAEForward:
    """What the losses need of one batch.

    mean, std [n]: u = (x - mean) / std, for a scale s mean 0 and std 1/s; u [n,d]; h [n,F] pre-activations;
    active [n,F]; f [n,F] values.
    """

    mean: FloatArray
    std: FloatArray
    u: FloatArray
    h: FloatArray
    active: BoolArray
    f: FloatArray


class HSAEOracle:
    """An HSAE and its training, one step at a time."""

    def __init__(
        self,
        E: ArrayLike,
        D: ArrayLike,
        b_enc: ArrayLike,
        theta: ArrayLike,
        B: ArrayLike,
        sizes: Sequence[int],
        lam: ArrayLike,
        options: HSAEOptions | None = None,
        parent: ArrayLike | None = None,
    ) -> None:
        """E, D [F,d]; b_enc, theta [F]; B [L,d]; sizes and lam [L] (or one lam); parent [F], default all -1."""
        self.options = options if options is not None else HSAEOptions()
        self.sizes = [int(size) for size in sizes]
        self.n_levels = len(self.sizes)
        self.n_features = sum(self.sizes)
        self.starts = [sum(self.sizes[:level]) for level in range(self.n_levels)]

        self.E: FloatArray = np.array(E, dtype=np.float64)
        self.D: FloatArray = np.array(D, dtype=np.float64)
        self.b_enc: FloatArray = np.array(b_enc, dtype=np.float64)
        self.theta: FloatArray = np.array(theta, dtype=np.float64)
        self.B: FloatArray = np.array(B, dtype=np.float64)
        self.d = self.B.shape[1]
        self.lam: FloatArray = np.array(np.broadcast_to(np.asarray(lam, np.float64), (self.n_levels,)))
        if parent is None:
            self.parent: IntArray = np.full(self.n_features, ROOT, dtype=np.int64)
        else:
            self.parent = np.array(parent, dtype=np.int64)
        self._check()

        self.n_steps = 0
        self.steps_since_fired: IntArray = np.zeros(self.n_features, dtype=np.int64)
        self.l0_ema: FloatArray | None = None  # [L]; none before the first step
        # moving averages: joint frequency [n_l, n_l+1] of each pair of levels, frequency [F]
        self.joint: list[FloatArray] = [
            np.zeros((self.sizes[level], self.sizes[level + 1])) for level in range(self.n_levels - 1)
        ]
        self.frequency: FloatArray = np.zeros(self.n_features)
        self.adam = {
            name: AdamState(np.zeros_like(value), np.zeros_like(value))
            for name, value in self.parameters().items()
        }

    def parameters(self) -> dict[str, FloatArray]:
        """The trained arrays by name; the arrays themselves."""
        return {"E": self.E, "D": self.D, "b_enc": self.b_enc, "theta": self.theta, "B": self.B}

    def _check(self) -> None:
        if self.E.shape != (self.n_features, self.d) or self.D.shape != (self.n_features, self.d):
            raise ValueError("encoder and decoder must be [F, d]")
        if self.b_enc.shape != (self.n_features,) or self.theta.shape != (self.n_features,):
            raise ValueError("encoder biases and thresholds must be [F]")
        if self.B.shape != (self.n_levels, self.d):
            raise ValueError("decoder biases must be [L, d]")
        if np.any(self.theta < 0.0):
            raise ValueError("thresholds must not be negative")
        if self.parent.shape != (self.n_features,):
            raise ValueError("one parent per feature")
        for level in range(self.n_levels):
            for j in self.features_of(level):
                if self.parent[j] == ROOT:
                    continue
                if level == 0 or self.parent[j] not in self.features_of(level - 1):
                    raise ValueError(f"the parent of feature {j} is not in the level above")
        if isinstance(self.options.normalize, str) and self.options.normalize not in ("token", "none"):
            raise ValueError("normalize must be a number, 'token' or 'none'")
        if self.options.updates not in ("alternate", "fixed", "after", "none"):
            raise ValueError("updates must be 'alternate', 'fixed', 'after' or 'none'")
        if self.options.similarity not in ("encoder", "decoder", "coactivation", "conditional"):
            raise ValueError("similarity must be 'encoder', 'decoder', 'coactivation' or 'conditional'")

    def features_of(self, level: int) -> range:
        """The features of a level."""
        return range(self.starts[level], self.starts[level] + self.sizes[level])

    def children_of(self, i: int) -> list[int]:
        """The children of feature i, in ascending order."""
        return [j for j in range(self.n_features) if self.parent[j] == i]

    def dead(self) -> BoolArray:
        """[F]: has not fired for so many steps that it counts as dead."""
        return self.steps_since_fired >= self.options.dead_steps

    # ---- forward ------------------------------------------------------------------------------------------

    def forward(self, x: ArrayLike) -> HSAEForward:
        """Values of all features on the raw tokens x [n,d]; changes nothing."""
        raw = np.array(x, dtype=np.float64)
        n = raw.shape[0]
        mean = np.zeros(n)
        std = np.ones(n)
        if self.options.normalize == "token":
            for t in range(n):
                mean[t] = raw[t].mean()
                std[t] = math.sqrt(((raw[t] - mean[t]) ** 2).sum() / (self.d - 1)) + self.options.std_eps
        elif self.options.normalize != "none":
            std[:] = 1.0 / float(self.options.normalize)

        u = np.zeros((n, self.d))
        h = np.zeros((n, self.n_features))
        active = np.zeros((n, self.n_features), dtype=np.bool_)
        f = np.zeros((n, self.n_features))
        for t in range(n):
            u[t] = (raw[t] - mean[t]) / std[t]
            for level in range(self.n_levels):
                for i in self.features_of(level):
                    h[t, i] = self.E[i] @ (u[t] - self.B[level]) + self.b_enc[i]
                    active[t, i] = h[t, i] > self.theta[i]
                    f[t, i] = jumprelu(h[t, i], self.theta[i])
        return HSAEForward(mean, std, u, h, active, f)

    def replaced(self, z: ArrayLike | None) -> BoolArray:
        """[F]: which features give way to their children, from the mask z [F] (1 replaces)."""
        mask = np.zeros(self.n_features) if z is None else np.array(z, dtype=np.float64)
        if mask.shape != (self.n_features,):
            raise ValueError("the perturbation mask must be [F]")
        if not np.all((mask == 0.0) | (mask == 1.0)):
            raise ValueError("the perturbation mask holds 0 and 1 only")
        result = np.zeros(self.n_features, dtype=np.bool_)
        for i in range(self.n_features):
            result[i] = mask[i] == 1.0 and len(self.children_of(i)) > 0  # so never in the last level
        return result

    def reconstruction(self, f: FloatArray, level: int, replaced: BoolArray) -> FloatArray:
        """[n,d]: the level's reconstruction of u from the values f [n,F]."""
        u_hat = np.zeros((len(f), self.d))
        for t in range(len(f)):
            u_hat[t] = self.B[level]
            for i in self.features_of(level):
                if replaced[i]:
                    u_hat[t] += stand_in(f[t], self.D, i, self.children_of(i), self.options.projected)
                else:
                    u_hat[t] += f[t, i] * self.D[i]
        return u_hat

    def encode(self, x: ArrayLike) -> FloatArray:
        """[n,F]: values of all features on the raw tokens x [n,d]."""
        return self.forward(x).f

    def reconstruct(self, x: ArrayLike, level: int) -> FloatArray:
        """[n,d]: the level's reconstruction, without perturbation, in the space of the raw tokens x [n,d]."""
        forward = self.forward(x)
        u_hat = self.reconstruction(forward.f, level, self.replaced(None))
        return u_hat * forward.std[:, None] + forward.mean[:, None]

    def update_counters(self, f: FloatArray) -> None:
        """One more step since each feature fired; 1 for those that fire in this batch. f [n,F]."""
        for i in range(self.n_features):
            self.steps_since_fired[i] += 1
            if np.any(f[:, i] > 0.0):
                self.steps_since_fired[i] = 1

    # ---- losses and gradients -----------------------------------------------------------------------------

    def losses_and_gradients(self, forward: HSAEForward, z: ArrayLike | None = None) -> dict[str, Any]:
        """Losses of a batch and their gradients, with the counters and lambdas as they are; changes nothing.

        Returns loss (total), by level [L] recon, l0, sparsity (lambda * l0), constraint (without rho, by the
        parents' level) and ghost, u_hat (L arrays [n,d], perturbed), replaced [F], and the gradients of the
        total grad_E, grad_D, grad_b_enc, grad_theta, grad_B.
        """
        options = self.options
        u, h, f = forward.u, forward.h, forward.f
        n = len(u)
        replaced = self.replaced(z)
        dead = self.dead()

        recon = np.zeros(self.n_levels)
        l0 = np.zeros(self.n_levels)
        constraints = np.zeros(self.n_levels)
        ghost = np.zeros(self.n_levels)
        u_hats: list[FloatArray] = []
        grad_E = np.zeros_like(self.E)
        grad_D = np.zeros_like(self.D)
        grad_b_enc = np.zeros_like(self.b_enc)
        grad_theta = np.zeros_like(self.theta)
        grad_B = np.zeros_like(self.B)
        grad_f = np.zeros((n, self.n_features))

        for level in range(self.n_levels):
            u_hat = self.reconstruction(f, level, replaced)
            u_hats.append(u_hat)
            for t in range(n):
                difference = u_hat[t] - u[t]
                recon[level] += (difference**2).sum() / n
                grad_u_hat = 2.0 * difference / n
                grad_B[level] += grad_u_hat
                for i in self.features_of(level):
                    if replaced[i]:
                        children = self.children_of(i)
                        parts = through_stand_in(f[t], self.D, i, children, options.projected, grad_u_hat)
                        grad_D += parts.D
                        grad_f[t] += parts.f
                    else:
                        grad_D[i] += f[t, i] * grad_u_hat
                        grad_f[t, i] += self.D[i] @ grad_u_hat

        for level in range(self.n_levels - 1):
            for i in self.features_of(level):
                children = self.children_of(i)
                if not children:
                    continue
                for t in range(n):
                    squared, parts = constraint(f[t], self.D, i, children, options.projected)
                    constraints[level] += squared / n
                    grad_D += options.rho * parts.D / n
                    grad_f[t] += options.rho * parts.f / n

        # through the JumpReLU into encoder, biases and thresholds; the sparsity reaches the thresholds only
        for level in range(self.n_levels):
            l0[level] = int(forward.active[:, list(self.features_of(level))].sum()) / n
            for t in range(n):
                for i in self.features_of(level):
                    by_theta = (h[t, i], self.theta[i], options.bandwidth)
                    grad_h = grad_f[t, i] if forward.active[t, i] else 0.0
                    grad_E[i] += grad_h * (u[t] - self.B[level])
                    grad_b_enc[i] += grad_h
                    grad_B[level] -= grad_h * self.E[i]  # the encoder sees u minus the bias
                    grad_theta[i] += grad_f[t, i] * jumprelu_by_theta(*by_theta)
                    grad_theta[i] += self.lam[level] / n * heaviside_by_theta(*by_theta)

        if options.ghost:
            for level in range(self.n_levels):
                dead_features = [i for i in self.features_of(level) if dead[i]]
                if not dead_features:
                    continue
                for t in range(n):
                    r = u[t] - u_hats[level][t]
                    main = (r**2).sum()
                    out = np.zeros(self.d)
                    for i in dead_features:
                        out += math.exp(h[t, i]) * self.D[i]
                    factor = math.sqrt(main) / (2.0 * math.sqrt((out**2).sum()) + GHOST_EPS)
                    ghost_mse = ((out * factor - r) ** 2).sum()
                    rescale = main / (ghost_mse + GHOST_EPS)
                    ghost[level] += rescale * ghost_mse / n
                    # r, factor and rescale are constants here
                    grad_out = rescale * 2.0 * (out * factor - r) * factor / n
                    for i in dead_features:
                        grad_D[i] += math.exp(h[t, i]) * grad_out
                        grad_h = math.exp(h[t, i]) * (self.D[i] @ grad_out)
                        grad_E[i] += grad_h * (u[t] - self.B[level])
                        grad_b_enc[i] += grad_h

        sparsity = self.lam * l0
        loss = float(recon.sum() + sparsity.sum() + options.rho * constraints.sum() + ghost.sum())
        return {
            "loss": loss,
            "recon": recon,
            "l0": l0,
            "sparsity": sparsity,
            "constraint": constraints,
            "ghost": ghost,
            "u_hat": u_hats,
            "replaced": replaced,
            "grad_E": grad_E,
            "grad_D": grad_D,
            "grad_b_enc": grad_b_enc,
            "grad_theta": grad_theta,
            "grad_B": grad_B,
        }

    # ---- training -----------------------------------------------------------------------------------------

    def update_parameters(self, gradients: dict[str, FloatArray], lr: float, step: int) -> None:
        """Decoder rows to unit norm, the part of their gradient along them removed, Adam, thresholds >= 0.

        gradients: of E, D, b_enc, theta and B, by these names.
        """
        projected = gradients["D"].copy()
        for i in range(self.n_features):
            self.D[i] /= math.sqrt((self.D[i] ** 2).sum())
            projected[i] -= (gradients["D"][i] @ self.D[i]) * self.D[i]
        constants = (self.options.beta1, self.options.beta2, self.options.adam_eps)
        for name, value in self.parameters().items():
            gradient = projected if name == "D" else gradients[name]
            rate = lr * (self.options.theta_rate if name == "theta" else 1)
            value[...] = adam_step(value, gradient, self.adam[name], step, rate, *constants)
        for i in range(self.n_features):
            self.theta[i] = max(self.theta[i], 0.0)

    def control(self, l0: FloatArray) -> None:
        """Move every level's lambda after a step in which l0 [L] features were active per token."""
        options = self.options
        targets = np.broadcast_to(np.asarray(options.target, np.float64), (self.n_levels,))
        if self.l0_ema is None:
            self.l0_ema = l0.copy()
            return
        for level in range(self.n_levels):
            before = self.l0_ema[level]
            after = options.momentum * before + (1.0 - options.momentum) * l0[level]
            self.l0_ema[level] = after
            wanted = -options.eta * (after - targets[level])
            if after - before < wanted:
                self.lam[level] *= math.exp(-options.gain)
            else:
                self.lam[level] *= math.exp(options.gain)
            self.lam[level] = min(max(self.lam[level], options.lam_min), options.lam_max)

    def count_coactivations(self, active: BoolArray) -> None:
        """Let the activity of a batch, active [n,F], into the moving averages."""
        n = len(active)
        m = self.options.coactivation_momentum
        for level in range(self.n_levels - 1):
            for a, i in enumerate(self.features_of(level)):
                for b, j in enumerate(self.features_of(level + 1)):
                    both = int((active[:, i] & active[:, j]).sum())
                    self.joint[level][a, b] = m * self.joint[level][a, b] + (1.0 - m) * (both / n)
        for i in range(self.n_features):
            self.frequency[i] = m * self.frequency[i] + (1.0 - m) * (int(active[:, i].sum()) / n)

    def similarity(self, level: int) -> FloatArray:
        """[n_l, n_l+1]: similarity of the features of a level to those of the next."""
        upper, lower = self.features_of(level), self.features_of(level + 1)
        if self.options.similarity == "encoder":
            return cosines(self.E[list(upper)], self.E[list(lower)])
        if self.options.similarity == "decoder":
            return cosines(self.D[list(upper)], self.D[list(lower)])
        if self.options.similarity == "coactivation":
            return self.joint[level].copy()
        result = np.zeros_like(self.joint[level])
        for b, j in enumerate(lower):
            if self.frequency[j] > 0.0:
                result[:, b] = self.joint[level][:, b] / self.frequency[j]
        return result

    def update_hierarchy(self) -> None:
        """Give every feature of every level but the first a parent, or none, from the similarities."""
        for level in range(self.n_levels - 1):
            similarity = self.similarity(level)
            if self.options.max_cosine is not None:
                upper, lower = self.features_of(level), self.features_of(level + 1)
                copies = cosines(self.D[list(upper)], self.D[list(lower)]) > self.options.max_cosine
                similarity[copies] = -np.inf
            local = assign(similarity, self.options.unassigned, self.options.max_children)
            for b, j in enumerate(self.features_of(level + 1)):
                self.parent[j] = ROOT if local[b] == ROOT else self.starts[level] + local[b]

    def hierarchy_due(self, step: int) -> bool:
        """Whether the hierarchy is updated after this step, counted from 1."""
        if self.options.updates == "alternate":
            return step % self.options.period == 0
        return self.options.updates == "fixed" and step == self.options.period

    def step(self, x: ArrayLike, lr: float, z: ArrayLike | None = None) -> dict[str, Any]:
        """One training step on the raw tokens x [n,d] with the perturbation mask z [F] (none: no perturbation).

        Returns what ``losses_and_gradients`` does (gradients before the decoder's projection), and lam [L],
        the lambdas of this step (before its update), f [n,F], active [n,F], dead [F], and updated: whether
        the hierarchy was.
        """
        self.n_steps += 1
        forward = self.forward(x)
        self.update_counters(forward.f)
        lam = self.lam.copy()
        result = self.losses_and_gradients(forward, z)
        gradients = {name: result[f"grad_{name}"] for name in self.parameters()}
        self.update_parameters(gradients, lr, self.n_steps)
        self.control(result["l0"])
        self.count_coactivations(forward.active)
        updated = self.hierarchy_due(self.n_steps)
        if updated:
            self.update_hierarchy()
        extra = {
            "lam": lam,
            "f": forward.f,
            "active": forward.active,
            "dead": self.dead(),
            "updated": updated,
        }
        return {**result, **extra}

    def finish(self) -> None:
        """The end of training: with updates "after" this is where the hierarchy is made."""
        if self.options.updates == "after":
            self.update_hierarchy()
