"""Adam for SAEs: it keeps rows at unit norm, and can keep its state in half the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels import AdamStep, Bytes, backend, rows_of_gradient, shards
from ..kernels.low_precision import SIGNED, UNSIGNED, format_of, narrowed, widened

#: The name in the state of a weight for the step in which each of its rows was last updated.
_LAST = "last"
#: The ending of the names of moments in 8 bits for the exponents of their rows.
_EXPONENTS = "_exponents"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_NO_CODE, _INFINITE = -128, 255


class Adam(torch.optim.Optimizer):
    """Adam (Kingma & Ba, arXiv 1412.6980) in one pass over the memory of each weight.

    A parameter group with `unit_rows` holds matrices whose rows are scaled to unit norm before each step. With
    `project`, the component of each row's gradient along the row is removed first, since it would only change the
    row's norm (docs/spec/tree-sae.md#adam).

    A group with `rows="active"` updates only the rows of its matrices that have a gradient; the others rest
    (docs/spec/tree-sae.md#active-rows).

    With `state=torch.bfloat16` the moving averages take half the memory, with `torch.int8` a quarter
    (docs/spec/tree-sae.md#low-precision). They use stochastic rounding: if rounded to nearest, an average that changes
    by a thousandth per step would never change.

    The matrices of a group with `divided` are the rows of this rank's features (`kernels/shards.py`). They are rounded
    as the same rows of a whole matrix are.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        state: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "unit_rows": False,
            "project": False,
            "rows": "all",
            "state": state,
            "divided": False,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if (grad := weight.grad) is not None:
                    self._step(weight, grad, group)
        return loss

    def _step(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            for name, (shape, dtype) in kept(weight, group).items():
                state[name] = torch.zeros(shape, dtype=dtype, device=weight.device)
        state["step"] += 1
        step = AdamStep(
            group["lr"],
            group["betas"][0],
            group["betas"][1],
            group["eps"],
            int(state["step"]),
            unit_rows=group["unit_rows"],
            project=group["project"],
            shard=shards.own_shard() if group["divided"] else (0, 1),
        )
        moments, kernels = [_moment(state, name) for name in _MOMENTS], backend(grad, weight)
        if _LAST in state:
            kernels.adam_rows(weight, *rows_of_gradient(grad), *moments, state[_LAST], step)
        else:
            kernels.adam(weight, grad, *moments, step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # this casts the state to the data type of the weights
        weights = [(weight, group) for group in self.param_groups for weight in group["params"]]
        for i, (weight, group) in enumerate(weights):
            for name, (_, dtype) in kept(weight, group).items():
                if name in (state := self.state[weight]):
                    state[name] = state_dict["state"][i][name].to(weight.device, dtype, copy=True)

    # -- rows that begin again, or change places

    @torch.no_grad()
    def renew(self, weight: Tensor, rows: Int[Tensor, "a"], like: Int[Tensor, "l"]) -> None:
        """Let the moments of `rows` begin anew. The mean starts at 0 and the mean square at that of the rows `like`:
        from 0, the first steps would be several times too long.

        If the weight is divided among ranks, rows are those of the whole matrix.
        """
        if not (state := self.state.get(weight)):
            return
        n, like, rows = len(like), like[shards.mine(like)], rows[shards.mine(rows)]
        like, here = shards.place(like), shards.place(rows)
        usual = _read(_moment(state, "exp_avg_sq"), like)
        if _LAST in state:
            rest = (state["step"].to(usual.device) - state[_LAST][like]).double()
            usual *= (self._group(weight)["betas"][1] ** rest).float()[:, None]
            state[_LAST][here] = int(state["step"])
        mean = (shards.summed(usual.sum(0)) / n).expand(len(rows), -1)
        for name, new in zip(_MOMENTS, (torch.zeros_like(mean), mean), strict=True):
            _write(_moment(state, name), here, new, int(state["step"]), rows)

    @torch.no_grad()
    def rearrange(self, weight: Tensor, at: Int[Tensor, "F"]) -> None:
        """Let the state of rows change places: that of row `at[i]` goes to row `i`.

        If the weight is divided among ranks, rows are those of the whole matrix.
        """
        for name, (shape, _) in kept(weight, self._group(weight)).items():
            if (state := self.state.get(weight)) and len(shape):
                shards.rearrange(state[name], at)

    def _group(self, weight: Tensor) -> dict[str, Any]:
        return next(g for g in self.param_groups if any(weight is p for p in g["params"]))


def kept(weight: Tensor, group: dict[str, Any]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and data type of what Adam keeps of a weight, besides the number of its steps.

    The moving averages of a matrix have the data type of `group["state"]`, and in 8 bits an exponent for each row;
    those of a vector, which are small, have that of the vector. If only active rows are updated, the step in
    which each row was last updated is kept too.
    """
    state: torch.dtype | None = group["state"]
    exact = torch.promote_types(weight.dtype, torch.float32)
    moment = (weight.shape, exact if state is None or weight.dim() < 2 else state)
    found: dict[str, tuple[torch.Size, torch.dtype]] = dict.fromkeys(_MOMENTS, moment)
    if state == torch.int8 and weight.dim() == 2:
        for name, form in zip(_MOMENTS, (SIGNED, UNSIGNED), strict=True):
            found[name] = (weight.shape, form.dtype)
            found[name + _EXPONENTS] = (weight.shape[:1], torch.uint8)
    if group["rows"] == "active" and weight.dim() == 2:
        found[_LAST] = (weight.shape[:1], torch.int64)
    return found


def flaw_of_moment(name: str, tensor: Tensor) -> str:
    """What is wrong with a moment in 8 bits, or with the exponents of its rows, in words; empty if nothing is."""
    if name.endswith(_EXPONENTS):
        return "" if bool((tensor < _INFINITE).all()) else "holds exponents of infinite numbers"
    bad = tensor.dtype == torch.int8 and bool((tensor == _NO_CODE).any())
    return f"holds {_NO_CODE}, which stands for no number" if bad else ""


def _moment(state: dict[str, Tensor], name: str) -> Tensor | Bytes:
    exponents = state.get(name + _EXPONENTS)
    return state[name] if exponents is None else Bytes(state[name], exponents)


def _read(moment: Tensor | Bytes, rows: Int[Tensor, "a"]) -> Float[Tensor, "a d"]:
    if isinstance(moment, Bytes):
        return widened(Bytes(moment.codes[rows], moment.exponents[rows]))
    return moment[rows].float()


def _write(
    moment: Tensor | Bytes,
    rows: Int[Tensor, "a"],
    new: Float[Tensor, "a d"],
    seed: int,
    places: Int[Tensor, "a"],
) -> None:
    """places: the rows by whose numbers they are rounded."""
    if isinstance(moment, Bytes):
        moment.codes[rows], moment.exponents[rows] = narrowed(
            new, format_of(moment.codes.dtype), seed, places
        )
    else:
        moment[rows] = new.to(moment.dtype)
