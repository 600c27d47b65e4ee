"""Slow, obvious float64 reference for the training of a Tree SAE, with gradients derived by hand.

Written from docs/spec/tree-sae.md alone, to test the implementation against; nothing here is fast.
Shapes: n tokens, d model width, F features, L layers. Features are numbered 0 .. F-1 through the layers.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .allocation import ROOT, BoolArray, FloatArray, IntArray, Move, greedy_allocation, reallocate_layer


@dataclass
class TreeOptions:
    """What a Tree SAE is trained with besides its sizes; the authors' values, but no schedule."""

    normalize: str | float = "token"  # mean and deviation of each token; "none"; or a factor for all tokens
    std_eps: float = 1e-5
    threshold: float = 1e-3  # a feature is active where its value is above this
    var_eps: float = 1e-8

    aux_coefs: dict[int, float] = field(default_factory=lambda: {0: 1 / 32})  # layer -> coefficient
    k_aux: int = 256
    aux_bias: bool = True  # the decoder bias is part of the reconstructed error
    aux_detach: bool = False  # no gradient through the target of the auxiliary loss and its variance
    aux_rescale: bool = False  # the reconstructed error is multiplied by the token's deviation

    dead_steps: int = 1953
    eligibility: str = "window"  # or "rate"
    eligible_steps: int = 9  # window: a parent must have fired within fewer steps than these
    eligible_tokens: int = (
        50_000  # rate: a parent must fire once in so many tokens, on average over tenfold as many
    )

    capacity_rule: str = "per_batch"  # or "per_instance"
    count: str = "all"  # or "living": the children that a quota is compared with
    min_root: dict[int, int] = field(default_factory=dict)  # layer -> least number of root children
    realloc_first: int | None = None  # step of the first reallocation; None for no reallocation
    realloc_growth: str = "double"  # or "add"
    realloc_cap: int = 10_000
    root_reset_step: int | None = None  # here all dead features go to the root, and reallocation ends

    project: bool = True  # take the part of the decoder's gradient along its rows away
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 6.25e-10


@dataclass
class AdamState:
    """First and second moments of one parameter, in its shape."""

    mean: FloatArray
    square: FloatArray


def adam_step(
    value: FloatArray,
    gradient: FloatArray,
    state: AdamState,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> FloatArray:
    """The parameter after its ``step``-th (from 1) Adam update, any shape; updates ``state``."""
    state.mean = beta1 * state.mean + (1 - beta1) * gradient
    state.square = beta2 * state.square + (1 - beta2) * gradient**2
    mean_correction = 1 - beta1**step
    square_correction = 1 - beta2**step
    denominator = np.sqrt(state.square) / np.sqrt(square_correction) + eps
    return value - (lr / mean_correction) * state.mean / denominator


def largest(scores: FloatArray, k: int) -> list[int]:
    """Places of the ``k`` largest of scores [m]; all of them if there are fewer; ties to the lowest place."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    return order[:k]


@dataclass
class Forward:
    """Everything the losses need of one batch.

    x [n,d]; mean, std [n]; u [n,d] encoder input; h [n,F] pre-activations; gate [n,F] of 0 and 1;
    code [n,F]; xhat: one [n,d] per layer, cumulative.
    """

    x: FloatArray
    mean: FloatArray
    std: FloatArray
    u: FloatArray
    h: FloatArray
    gate: FloatArray
    code: FloatArray
    xhat: list[FloatArray]


class TreeOracle:
    """A Tree SAE and its training, one step at a time."""

    def __init__(
        self,
        E: ArrayLike,
        D: ArrayLike,
        b_dec: ArrayLike,
        parent: ArrayLike,
        layer_sizes: list[int],
        k_per_layer: list[int],
        options: TreeOptions | None = None,
    ) -> None:
        """E [F,d] encoder rows, D [F,d] decoder rows, b_dec [d], parent [F] with -1 for the root."""
        self.E: FloatArray = np.array(E, dtype=np.float64)
        self.D: FloatArray = np.array(D, dtype=np.float64)
        self.b_dec: FloatArray = np.array(b_dec, dtype=np.float64)
        self.parent: IntArray = np.array(parent, dtype=np.int64)
        self.layer_sizes = [int(size) for size in layer_sizes]
        self.k_per_layer = [int(k) for k in k_per_layer]
        self.options = options if options is not None else TreeOptions()

        self.n_layers = len(self.layer_sizes)
        self.n_features = sum(self.layer_sizes)
        self.d = self.b_dec.shape[0]
        self.starts = [sum(self.layer_sizes[:layer]) for layer in range(self.n_layers)]
        self._check()

        self.steps_since_fired: IntArray = np.zeros(self.n_features, dtype=np.int64)
        self.history: list[
            tuple[int, IntArray]
        ] = []  # of every step, tokens and on how many each feature fired
        self.capacity: dict[int, FloatArray] = {}
        self.reset_capacity()
        self.n_steps = 0
        self.adam = {
            name: AdamState(np.zeros_like(value), np.zeros_like(value))
            for name, value in (("E", self.E), ("D", self.D), ("b_dec", self.b_dec))
        }
        self.next_realloc = self.options.realloc_first
        self.interval = self.options.realloc_first

    def _check(self) -> None:
        if self.E.shape != (self.n_features, self.d) or self.D.shape != (self.n_features, self.d):
            raise ValueError("encoder and decoder must be [F, d]")
        if self.parent.shape != (self.n_features,) or len(self.k_per_layer) != self.n_layers:
            raise ValueError("one parent per feature and one k per layer")
        for layer in range(self.n_layers):
            for feature in self.features_of(layer):
                if not ROOT <= self.parent[feature] < self.starts[layer]:
                    raise ValueError(f"the parent of feature {feature} is in no earlier layer")
        if isinstance(self.options.normalize, str) and self.options.normalize not in ("token", "none"):
            raise ValueError("normalize must be 'token', 'none' or a number")
        if self.options.eligibility not in ("window", "rate"):
            raise ValueError("eligibility must be 'window' or 'rate'")
        if self.options.capacity_rule not in ("per_batch", "per_instance"):
            raise ValueError("capacity_rule must be 'per_batch' or 'per_instance'")
        if self.options.realloc_growth not in ("double", "add"):
            raise ValueError("realloc_growth must be 'double' or 'add'")

    def features_of(self, layer: int) -> range:
        """The features of a layer."""
        return range(self.starts[layer], self.starts[layer] + self.layer_sizes[layer])

    def dead(self) -> BoolArray:
        """[F]: has not fired for so many steps that it counts as dead."""
        return self.steps_since_fired >= self.options.dead_steps

    def eligible_parents(self, layer: int) -> BoolArray:
        """[start + 1]: which candidate parents of the layer may have children; the root, last, always may."""
        eligible: list[bool] = []
        for p in range(self.starts[layer]):
            if self.options.eligibility == "window":
                eligible.append(bool(self.steps_since_fired[p] < self.options.eligible_steps))
            else:
                eligible.append(self.firing_rate(p) >= 1 / self.options.eligible_tokens)
        return np.array([*eligible, True], dtype=np.bool_)

    def firing_rate(self, feature: int) -> float:
        """The share of tokens on which the feature fired, tokens long past counting less.

        A token that lies a tokens back counts exp(-a / horizon), the horizon being ten times eligible_tokens; the
        firings of a step are spread evenly over its tokens, and a over the reals, so a step counts the integral.
        """
        horizon = 10.0 * self.options.eligible_tokens
        back = 0
        fired = total = 0.0
        for n, counts in reversed(self.history):
            weight = horizon * (np.exp(-back / horizon) - np.exp(-(back + n) / horizon))
            fired += weight * counts[feature] / n
            total += weight
            back += n
        return fired / total if total > 0 else 0.0

    def reset_capacity(self) -> None:
        """All capacities to zero; layer 0 has none."""
        for layer in range(1, self.n_layers):
            self.capacity[layer] = np.zeros(self.starts[layer] + 1)

    # ---- forward ------------------------------------------------------------------------------------------

    def forward(self, x: ArrayLike) -> Forward:
        """Code and cumulative reconstructions of the tokens x [n,d]; changes nothing."""
        raw = np.array(x, dtype=np.float64)
        n = raw.shape[0]
        mean = np.zeros(n)
        std = np.ones(n)
        if self.options.normalize == "token":
            for t in range(n):
                mean[t] = raw[t].mean()
                std[t] = np.sqrt(((raw[t] - mean[t]) ** 2).sum() / (self.d - 1)) + self.options.std_eps
        elif not isinstance(self.options.normalize, str):
            std[:] = 1.0 / self.options.normalize

        u = np.zeros((n, self.d))
        h = np.zeros((n, self.n_features))
        gate = np.zeros((n, self.n_features))
        code = np.zeros((n, self.n_features))
        for t in range(n):
            u[t] = (raw[t] - mean[t]) / std[t] - self.b_dec
            for i in range(self.n_features):
                h[t, i] = self.E[i] @ u[t]
            for layer in range(self.n_layers):
                for i in self.features_of(layer):
                    p = self.parent[i]
                    gate[t, i] = 1.0 if p == ROOT or code[t, p] > self.options.threshold else 0.0
                scores = np.array([max(h[t, i], 0.0) * gate[t, i] for i in self.features_of(layer)])
                for place in largest(scores, self.k_per_layer[layer]):
                    code[t, self.starts[layer] + place] = scores[place]

        xhat: list[FloatArray] = []
        for layer in range(self.n_layers):
            total = np.zeros((n, self.d))
            for t in range(n):
                standard = self.b_dec.copy()
                for i in range(self.starts[layer] + self.layer_sizes[layer]):
                    standard += code[t, i] * self.D[i]
                total[t] = std[t] * standard + mean[t]
            xhat.append(total)
        return Forward(raw, mean, std, u, h, gate, code, xhat)

    def read(self, forward: Forward, t: int, i: int) -> FloatArray:
        """What feature i encodes on token t [d]."""
        del i
        return forward.u[t]

    def update_counters(self, code: FloatArray) -> None:
        """One more step since each feature fired; 1 for those that fire in this batch. code [n,F]."""
        self.history.append((code.shape[0], (code > self.options.threshold).sum(axis=0)))
        for i in range(self.n_features):
            self.steps_since_fired[i] += 1
            if np.any(code[:, i] > self.options.threshold):
                self.steps_since_fired[i] = 1

    def aux_code(self, forward: Forward, layer: int) -> FloatArray:
        """[n,F]: per token the k_aux dead features of the layer with the largest gated pre-activation."""
        n = forward.x.shape[0]
        dead = self.dead()
        dead_features = [i for i in self.features_of(layer) if dead[i]]
        a = np.zeros((n, self.n_features))
        for t in range(n):
            scores = np.array([forward.h[t, i] * forward.gate[t, i] for i in dead_features])
            for place in largest(scores, self.options.k_aux):
                a[t, dead_features[place]] = max(scores[place], 0.0)
        return a

    # ---- losses and gradients -----------------------------------------------------------------------------

    def losses_and_gradients(self, forward: Forward) -> dict[str, Any]:
        """Losses of a batch and their gradients, with the counters as they are now; changes nothing.

        Returns loss (total), recon [L], aux [L] (without coefficients, 0 for a layer without this term), and
        grad_E [F,d], grad_D [F,d], grad_b_dec [d] of the total.
        """
        options = self.options
        x = forward.x
        n = x.shape[0]
        variance = ((x - x.mean()) ** 2).sum() / (x.size - 1) + options.var_eps

        recon = np.zeros(self.n_layers)
        aux = np.zeros(self.n_layers)
        grad_xhat = [np.zeros_like(x) for _ in range(self.n_layers)]  # of the total, per cumulative layer
        grad_h = np.zeros((n, self.n_features))
        grad_D = np.zeros_like(self.D)
        grad_b_dec = np.zeros_like(self.b_dec)

        for layer in range(self.n_layers):
            difference = forward.xhat[layer] - x
            recon[layer] = (difference**2).mean() / variance
            grad_xhat[layer] += 2.0 * difference / x.size / variance

        for layer, coef in sorted(options.aux_coefs.items()):
            any_dead = any(self.dead()[i] for i in self.features_of(layer))
            if not any_dead and not options.aux_bias:
                continue
            a = self.aux_code(forward, layer)
            scale = forward.std if options.aux_rescale else np.ones(n)
            e_hat = np.zeros_like(x)
            for t in range(n):
                for i in self.features_of(layer):
                    e_hat[t] += a[t, i] * self.D[i]
                if options.aux_bias:
                    e_hat[t] += self.b_dec
                e_hat[t] *= scale[t]
            e = x - forward.xhat[layer]
            e_centered = np.array([e[t] - e[t].mean() for t in range(n)])
            numerator = ((e_hat - e) ** 2).mean()
            denominator = (e_centered**2).mean()
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = numerator / denominator
            if np.isnan(ratio):
                continue
            aux[layer] = ratio

            grad_e_hat = coef * 2.0 * (e_hat - e) / x.size / denominator
            if not options.aux_detach:
                # numerator and denominator both depend on e, and e falls as the reconstruction rises
                grad_e = -grad_e_hat - coef * numerator / denominator**2 * 2.0 * e_centered / x.size
                grad_xhat[layer] -= grad_e
            for t in range(n):
                through = scale[t] * grad_e_hat[t]
                if options.aux_bias:
                    grad_b_dec += through
                for i in self.features_of(layer):
                    grad_D[i] += a[t, i] * through
                    if a[t, i] > 0.0:
                        grad_h[t, i] += self.D[i] @ through

        for t in range(n):
            for layer in range(self.n_layers):
                through = forward.std[t] * grad_xhat[layer][t]
                grad_b_dec += through
                for i in range(self.starts[layer] + self.layer_sizes[layer]):
                    grad_D[i] += forward.code[t, i] * through
                    if forward.code[t, i] > 0.0:
                        grad_h[t, i] += self.D[i] @ through

        grad_E = np.zeros_like(self.E)
        for t in range(n):
            for i in range(self.n_features):
                grad_E[i] += grad_h[t, i] * self.read(forward, t, i)
                grad_b_dec -= grad_h[t, i] * self.E[i]  # the encoder sees x minus the bias

        loss = float(recon.sum())
        for layer, coef in sorted(options.aux_coefs.items()):
            loss += coef * float(aux[layer])
        return {
            "loss": loss,
            "recon": recon,
            "aux": aux,
            "grad_E": grad_E,
            "grad_D": grad_D,
            "grad_b_dec": grad_b_dec,
        }

    # ---- training -----------------------------------------------------------------------------------------

    def update_parameters(
        self, grad_E: FloatArray, grad_D: FloatArray, grad_b_dec: FloatArray, lr: float, step: int
    ) -> None:
        """Decoder rows to unit norm, the part of their gradient along them removed (``project``), then Adam."""
        projected = grad_D.copy()
        for i in range(self.n_features):
            self.D[i] /= np.sqrt((self.D[i] ** 2).sum())
            if self.options.project:
                projected[i] -= (grad_D[i] @ self.D[i]) * self.D[i]
        constants = (step, lr, self.options.beta1, self.options.beta2, self.options.adam_eps)
        self.E = adam_step(self.E, grad_E, self.adam["E"], *constants)
        self.D = adam_step(self.D, projected, self.adam["D"], *constants)
        self.b_dec = adam_step(self.b_dec, grad_b_dec, self.adam["b_dec"], *constants)

    def add_capacity(self, code: FloatArray, loss: float) -> None:
        """Give this step's loss to the candidate parents of each layer. code [n,F]."""
        n = code.shape[0]
        for layer in range(1, self.n_layers):
            root = self.starts[layer]
            active_tokens = [int((code[:, p] > self.options.threshold).sum()) for p in range(root)]
            if self.options.capacity_rule == "per_batch":
                fired = [p for p in range(root) if active_tokens[p] > 0]
                for p in [*fired, root]:
                    self.capacity[layer][p] += loss / (len(fired) + 1)
            else:
                for p in range(root):
                    self.capacity[layer][p] += loss * active_tokens[p]
                self.capacity[layer][root] += loss * n

    def reallocate(self) -> list[Move]:
        """Reallocate the dead features of every layer from the capacities, which start again at zero."""
        moved: list[Move] = []
        for layer in range(1, self.n_layers):
            size = self.layer_sizes[layer]
            min_root = self.options.min_root.get(layer, 0)
            quota = greedy_allocation(self.capacity[layer], self.eligible_parents(layer), size, min_root)
            self.parent, moves = reallocate_layer(
                self.parent, self.starts[layer], size, quota, self.dead(), self.options.count
            )
            moved.extend(moves)
        self.reset_capacity()
        return moved

    def dead_to_root(self) -> list[Move]:
        """Hang every dead feature that is not there yet from the root."""
        moved: list[Move] = []
        for i in range(self.n_features):
            if self.dead()[i] and self.parent[i] != ROOT:
                moved.append((i, int(self.parent[i]), ROOT))
                self.parent[i] = ROOT
        return moved

    def reallocation_due(self, step: int) -> bool:
        """Whether the schedule has an event after this step; moves the schedule on if so."""
        if self.next_realloc is None or self.interval is None or step != self.next_realloc:
            return False
        longer = self.interval * 2 if self.options.realloc_growth == "double" else self.interval + 2
        self.interval = min(longer, self.options.realloc_cap)
        self.next_realloc += self.interval
        return True

    def step(self, x: ArrayLike, lr: float) -> dict[str, Any]:
        """One training step on the raw tokens x [n,d].

        Returns loss, recon [L], aux [L], code [n,F], xhat (list of L arrays [n,d]), grad_E, grad_D and
        grad_b_dec (of the loss, before the decoder's projection), moved (feature, old, new) and event, which
        is "none", "reallocation" or "root_reset".
        """
        self.n_steps += 1
        forward = self.forward(x)
        self.update_counters(forward.code)
        result = self.losses_and_gradients(forward)
        self.update_parameters(result["grad_E"], result["grad_D"], result["grad_b_dec"], lr, self.n_steps)
        self.add_capacity(forward.code, result["loss"])

        moved: list[Move] = []
        event = "none"
        reset_step = self.options.root_reset_step
        due = self.reallocation_due(self.n_steps)
        if reset_step is not None and self.n_steps == reset_step:
            moved = self.dead_to_root()
            event = "root_reset"
        elif due and (reset_step is None or self.n_steps < reset_step):
            moved = self.reallocate()
            event = "reallocation"
        return {**result, "code": forward.code, "xhat": forward.xhat, "moved": moved, "event": event}
